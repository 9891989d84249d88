"""A sweep with Ray on NVIDIA GPUs: one worker keeps the model and goes from cell to cell. `make test-gpu`.

What a machine with several of them is asked first is tested without one.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from kvstream.sweep import cluster
from kvstream.sweep.pool import Node

GAPS = Path(__file__).parent.parent / "benchmarks" / "gaps.py"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_workers_on_a_gpu_wait_little_between_cells():
    command = [sys.executable, str(GAPS), "--device", "cuda", "--sweeps", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=GAPS.parent.parent.parent)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    assert found["device"] == "cuda"
    for sweep in found["sweeps"]:
        assert sweep["cells"] == 33
        assert sweep["gap_median_s"] < 0.2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_latency_cell_on_a_gpu_is_of_recorded_steps(world, tmp_path):
    flags = [
        "--models",
        str(world / "model"),
        "--lengths",
        "none",
        "--contexts",
        "300",
        "--prefills",
        "2",
        "--rounds",
        "5",
    ]
    policies = ["--policies", "full,streaming_llm(4,60),fix_size_l2(70,0.5,keep_low),h2o(64,32)"]
    command = [sys.executable, "sweeps/quick.py", *flags, *policies, "--device", "cuda", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=GAPS.parent.parent.parent)
    assert run.returncode == 0, run.stderr[-3000:]
    [commit] = [json.loads(path.read_text()) for path in tmp_path.glob("????????????????.json")]
    launched = {each["label"]: each["launched"] for each in commit["fields"]["contenders"]}
    assert launched.pop("DynamicCache") == "eager"
    assert set(launched.values()) == {"CUDA graph"}


def test_a_wait_for_gpus_is_told_and_names_those_that_have_none_free(monkeypatch, capsys):
    answers, needs = {"a": 0.3, "b": 0.0}, []  # after how many seconds; the slow one is asked first

    def remote(**given):
        needs.append(given)
        return lambda _: SimpleNamespace(
            options=lambda label_selector: SimpleNamespace(remote=lambda _: label_selector[cluster.NODE_ID])
        )

    def wait(asked, timeout):
        time.sleep(min(answers[id] for id in asked) if timeout is None else 0)
        return [id for id in asked if timeout is None or answers[id] <= timeout], []

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda id: 8e9)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(cluster, "_gpu_memory", {})
    monkeypatch.setattr(cluster, "SILENCE_S", 0.1)
    machines = [Node("a", 2, 1, 1e9), Node("b", 2, 4, 1e9)]
    assert [node.memory for node in cluster.fit_for("cuda", machines, None)] == [8e9, 8e9]
    assert needs == [{"num_cpus": 0, "num_gpus": 1, "max_calls": 1}]
    assert capsys.readouterr().out == "waiting for a free GPU of a: do other jobs of this Ray hold them?\n"
    assert len(cluster.fit_for("cuda", machines, None)) == 2
    assert len(needs) == 1, "a machine is asked once"
