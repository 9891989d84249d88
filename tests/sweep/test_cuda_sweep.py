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

from kvstream.measure import peak_memory
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


@pytest.mark.parametrize("visible", ["", "2,5"])  # as Ray sets it, or is told not to
def test_the_gpu_with_the_least_memory_counts(visible, monkeypatch):
    """A worker may be given any of a machine's."""
    free = {"cuda:0": 60, "cuda:1": 20} if visible else {"cuda:2": 60, "cuda:5": 20}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["2", "5"])
    monkeypatch.setattr(peak_memory, "gpu_bytes", free.__getitem__)
    assert cluster.least_memory("cuda") == 20


def test_a_machine_is_asked_for_all_its_gpus_and_a_wait_for_them_is_told(monkeypatch, capsys):
    taken = []

    def remote(**needs):
        taken.append(needs)
        return lambda _: SimpleNamespace(
            options=lambda label_selector: SimpleNamespace(remote=lambda _: label_selector)
        )

    def get(label):
        time.sleep(0.5 if "b" in label.values() else 0)
        return 8e9

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(cluster, "_gpu_memory", {})
    monkeypatch.setattr(cluster, "SILENCE_S", 0.1)
    machines = [Node("a", 2, 1, 1e9), Node("b", 2, 4, 1e9)]
    assert [node.memory for node in cluster.fit_for("cuda", machines, None)] == [8e9, 8e9]
    assert [needs["num_gpus"] for needs in taken] == [1, 4]
    told = "waiting until Ray has all GPUs of b for this: do other jobs hold them?\n"
    assert capsys.readouterr().out == told
    assert len(cluster.fit_for("cuda", machines, None)) == len(taken) == 2, "a machine is asked once"
