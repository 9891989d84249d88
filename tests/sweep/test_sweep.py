"""Real sweeps of a tiny model on Ray: complete, resumable, honest about failures, clear about bad input.

They run in this process, on a Ray that it started, but for what a process of its own is the point of.
"""

import json
import os
import random
import runpy
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from driving import QUICK, arguments, digest, labelled, sweep_here
from situations import TINY
from tiny import WORDS
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from kvstream import load_model, parse_policy, replay
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.grid import axes, planning
from kvstream.grid.axes import Grid
from kvstream.grid.flags import parse_flags
from kvstream.grid.memory_needed import needed_bytes, too_large
from kvstream.policies import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.records.long_cells import Parts
from kvstream.sweep import cluster, jobs, preflight, results
from kvstream.sweep.cluster import choose_device, fit_for, require_suited
from kvstream.sweep.pool import Node
from kvstream.sweep.preflight import divide, question_of

GRID = Grid("g", ("m",), (Full(), StreamingLLM(4, 252), FixSizeL2(256, 0.7, "keep_low")), "kjv", 2, (64, 128))
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # policies of this file reach the workers


@pytest.fixture(scope="module")
def swept(ray_here, world):
    """The records of an uninterrupted sweep, and what it printed."""
    out = world / "records"
    return out, sweep_here(arguments(world, out))


def records_in(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("????????????????.json"))]


def failures_in(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.failed.json"))]


def test_a_sweep_is_complete_and_its_rows_are_replays(swept, world):
    out, finished = swept
    assert finished.returncode == 0, finished.stderr
    plan = json.loads((out / "sweep.json").read_text())
    policies = 1 + 2 * 2 + 2 + 2 * 2  # full; 1 and 4 sinks, recent_only, two strategies, at two budgets each
    assert len(plan["cells"]) == len(set(plan["cells"])) == 3 * policies
    assert set(digest(out)) == set(plan["cells"])
    model, tokenizer = load_model(str(world / "model"))
    for key in plan["cells"]:
        record = json.loads((out / f"{key}.json").read_text())
        fields, table = record["fields"], pq.read_table(out / record["file"])
        assert record["rows"] == table.num_rows == 399
        assert table["position"].to_pylist() == list(range(1, 400))
        assert fields["lengths"] == [50, 400]
        text = (world / "texts" / f"{fields['document']}.txt").read_text()
        ids = torch.tensor(tokenizer(text).input_ids[:400])
        assert table["token"].to_pylist() == ids[1:].tolist()
        if fields["strategy"] != "random":  # whose seed is the document's own
            nll = replay(model, ids, parse_policy(fields["policy"]))
            assert np.abs(nll.numpy() - table["nll_nats"].to_numpy()).max() < 1e-5
        full = fields["policy_name"] == "full"
        assert fields["kv_bytes"] == 3 * (400 if full else fields["budget"]) * 64 * 2 * 4
        assert fields["kv_bytes_full"] == 3 * 400 * 64 * 2 * 4
        assert {"python", "torch", "ray", "cpu", "cores", "commit"} <= set(record["environment"])


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_second_run_reuses_everything_and_starts_no_ray(swept, world, device, monkeypatch):
    out, _ = swept
    monkeypatch.setattr(cluster, "device_here", lambda: "cpu")
    monkeypatch.setattr(cluster, "uses_ray", lambda: False)
    monkeypatch.setattr(cluster, "connect", lambda where: pytest.fail("Ray was asked for"))
    monkeypatch.setattr(cluster, "answering", lambda: None)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    again = sweep_here(arguments(world, out, "--device", device))
    assert (again.returncode, again.stdout.splitlines()) == (
        0,
        [
            f"quick: 33 cells, 33 finished before, 0 to do → {out}",
            f"report: python analysis/report.py --records {out}",
        ],
    )
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


def test_records_carry_the_question_that_was_asked(swept, world):
    """Flags replaced axes, so the docstring speaks of other models and texts."""
    asked = json.loads((swept[0] / "sweep.json").read_text())["question"]
    assert asked == (
        f"What do 11 policies cost and gain on {world / 'model'}? "
        f"Perplexity over the first 50 and 400 tokens of 3 documents of {world / 'texts'}."
    )


@pytest.mark.parametrize(
    ("changes", "question"),
    [
        ({"policies": (RecentOnly(8),)},
         "What does recent_only(8) cost and gain on m? "
         "Perplexity over the first 64 and 128 tokens of 2 documents of kjv."),
        ({"models": ("a", "b", "c"), "documents": 1, "lengths": (4096,), "contexts": (512, 2048)},
         "What do 3 policies cost and gain on a, b and c? Perplexity over the first 4,096 tokens of 1 document of kjv. "
         "Latency after 512 and 2,048 tokens."),
        ({"lengths": (), "contexts": (64,), "batches": (1, 4)},
         "What do 3 policies cost and gain on m? Latency after 64 tokens, 1 and 4 texts at once."),
        ({"lengths": (), "contexts": (1,)}, "What do 3 policies cost and gain on m? Latency after 1 token."),
    ],
)  # fmt: skip
def test_a_grid_without_words_of_its_own_is_put_into_words(changes, question):
    assert question_of(replace(GRID, **changes)) == question


def test_another_grid_reuses_the_cells_they_share_and_a_damaged_one_is_recomputed(swept, world, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(swept[0], out)
    expected = digest(out)
    victim = records_in(out)[0]
    rows = out / victim["file"]
    rows.write_bytes(rows.read_bytes()[:-1])
    bounded = "streaming_llm,recent_only,fix_size_l2"
    other = sweep_here(arguments(world, out, "--policies", bounded, "--budgets", "8,64"))
    assert other.returncode == 0, other.stderr
    assert f"30 cells, {15 - (victim['fields']['budget'] == 8)} finished before" in other.stdout
    assert sweep_here(arguments(world, out)).returncode == 0
    assert {key: value for key, value in digest(out).items() if key in expected} == expected


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [("cuda", "float32", "no node"), ("mps", "float32", "Apple silicon"), ("auto", "tf32", "NVIDIA.*device cpu")],
)
def test_a_device_that_is_not_there_is_refused(device, dtype, words):
    with pytest.raises(ValueError, match=words):
        choose_device(device, dtype, nodes([2]))
    with pytest.raises(ValueError, match="'float64' does not exist on mps"):
        require_suited("mps", "float64")
    with pytest.raises(ValueError, match=r"compiled: only NVIDIA GPUs .* this is cpu; use --no-compiled"):
        choose_device("auto", "float32", nodes([2]), compiled=True)
    require_suited("mps", "float32")  # as records of elsewhere may be, of which nothing is to do
    assert choose_device("auto", "float32", nodes([2])) == "cpu"
    assert choose_device("auto", "tf32", [Node("0", 2, 1, 1e9)]) == ("mps" if sys.platform == "darwin" else "cuda")


def test_gpus_that_torch_cannot_use_are_refused_before_a_model_loads(monkeypatch):
    """Ray counts what it is told to; torch was asked where the GPUs are said to be."""
    monkeypatch.setattr(cluster, "_gpu_memory", {"a": 0, "b": 8e9})
    machines = [Node("a", 2, 1, 1e9), Node("b", 2, 1, 1e9), Node("c", 2, 0, 1e9)]
    assert fit_for("cuda", machines, None) == [Node("b", 2, 1, 8e9)]
    with pytest.raises(ValueError, match="device: 'cuda' asked, and Ray counts GPUs, but torch finds none there"):
        fit_for("cuda", machines[:1], None)


def test_a_gpu_machine_that_does_not_tell_its_memory_is_left_out(monkeypatch, capsys):
    """It has no kvstream, or is lost while it is asked."""
    asked = SimpleNamespace(
        options=lambda label_selector: SimpleNamespace(remote=lambda _: label_selector[cluster.NODE_ID])
    )

    def get(name):
        if name == "b":
            raise ray.exceptions.RayError("no module named kvstream\nand more")
        return 8e9

    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: asked)
    monkeypatch.setattr(ray, "wait", lambda asked, timeout: (asked, []))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(cluster, "_gpu_memory", {})
    machines = [Node("a", 2, 1, 1e9), Node("b", 2, 1, 1e9)]
    assert fit_for("cuda", machines, None) == [Node("a", 2, 1, 8e9)]
    told = "left out: machine b does not tell its GPU's memory (no module named kvstream)\n"
    assert capsys.readouterr().err == told


def long_text(world, out, policies, tokens):
    """The same over a long text."""
    if not (world / "long").is_dir():
        (world / "long").mkdir()
        (world / "long" / "long.txt").write_text(" ".join(random.Random(9).choices(WORDS, k=5000)))
    return [*labelled(world, out, policies, tokens, texts="long"), "--metrics", "nll"]


def test_a_long_text_goes_on_from_its_last_part(ray_here, world, tmp_path, monkeypatch):
    """The disk is full when the second part is to be written; the same command goes on after the first."""
    for module in (jobs, results):
        monkeypatch.setattr(module, "PART_TOKENS", CHUNK_SIZE)
    whole, cut, policies = tmp_path / "whole", tmp_path / "cut", "full,streaming_llm(4,60)"
    assert sweep_here(long_text(world, whole, policies, 1300)).returncode == 0
    add = Parts.add

    def once(parts, *given):
        if parts.parts:
            raise OSError("no space left")
        add(parts, *given)

    with monkeypatch.context() as full_disk:
        full_disk.setattr(Parts, "add", once)
        ended = sweep_here(long_text(world, cut, policies, 1300))
        assert (ended.returncode, ended.stderr) == (2, "error: no space left\n")
    assert not digest(cut)
    again = sweep_here(long_text(world, cut, policies, 1300))
    assert again.returncode == 0, again.stderr
    assert "goes on after 512 of 1,300 tokens" in again.stdout
    assert digest(cut) == digest(whole)
    assert not list(cut.glob("*.part*")) + list(cut.glob("*.state"))
    assert [record["rows"] for record in records_in(cut)] == [1299, 1299]
    for record in (*records_in(cut), *records_in(whole)):
        assert [part["tokens"] for part in record["fields"]["parts"]] == [512, 1024, 1299]
        assert all(part["seconds"] > 0 and part["peak_bytes"] > 0 for part in record["fields"]["parts"])


class DeadlyOnce(FixSizeL2):
    """Kills the process that first asks it for scores."""

    def token_scores(self, *given):
        with suppress(FileExistsError):
            os.mkdir(f"/tmp/kvstream-{self.seed}")
            os.kill(os.getpid(), 9)
        return super().token_scores(*given)


class Deadly(FixSizeL2):
    def token_scores(self, *given):
        os.kill(os.getpid(), 9)


class Faulty(FixSizeL2):
    def token_scores(self, *given):
        raise RuntimeError("broken on purpose\nsecond line")


def test_cells_that_fail_are_recorded_and_the_rest_finish(ray_here, world, tmp_path, monkeypatch):
    """One kills its process once, one always, one raises; the first is tried again and finishes."""
    monkeypatch.setattr(axes, "_policy", lambda axis, policy: None)  # else a sweep refuses policies of others
    out, number = tmp_path / "records", random.SystemRandom().randrange(1 << 60)
    kinds = ((DeadlyOnce, 8), (Deadly, 9), (Faulty, 10))
    failing = [kind(budget, 0.5, "keep_low", seed=number) for kind, budget in kinds]
    policies = (Full(), *failing, RecentOnly(8))
    grid = Grid("failing", (str(world / "model"),), policies, str(world / "texts"), 1, (300,))
    flags = ["--out", str(out), "--device", "cpu"]
    result = sweep_here(flags, grid, "Does one bad cell stop the others?\n\nNo.")
    assert result.returncode == 1, result.stderr
    assert "2 of 5 cells are not finished" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    os.rmdir(f"/tmp/kvstream-{number}")
    assert len(digest(out)) == 3
    told = sorted((each["fields"]["budget"], each["attempts"], each["error"]) for each in failures_in(out))
    killed = "RuntimeError: the process that computed it was killed or crashed, or its machine was lost"
    assert [(budget, attempts) for budget, attempts, _ in told] == [(9, 2), (10, 1)]
    assert told[0][2].splitlines()[0] == killed
    assert told[1][2] == "RuntimeError: broken on purpose\nsecond line"
    assert json.loads((out / "sweep.json").read_text())["question"] == "Does one bad cell stop the others?"


def test_where_no_model_is_usable_there_is_nothing_to_report(ray_here, world, tmp_path, monkeypatch):
    monkeypatch.setattr("kvstream.sweep.ray_pool.RayPool.load", lambda *_: 1 / 0)
    result = sweep_here(labelled(world, tmp_path / "records", "full", 50))
    assert result.returncode == 1, result.stderr
    assert "[1/1, unknown time left] not run: no cell of" in result.stdout.splitlines()[-1]


def test_a_cell_that_no_machine_can_hold_is_not_run_and_the_others_are(ray_here, world, tmp_path, monkeypatch):
    out = tmp_path / "records"
    flags = long_text(world, out, "full,recent_only(8)", 4096)
    grid, _ = parse_flags(runpy.run_path(str(QUICK))["GRID"], "", flags[2:])
    both = planning.quality_cells(grid, planning.prepare(grid), "cpu", "float32")
    between = sum(map(needed_bytes, both)) / 2
    monkeypatch.setattr(preflight, "too_large", lambda cell, available: too_large(cell, between))
    result = sweep_here(flags)
    assert result.returncode == 1, result.stderr
    assert "not run: lengths: 4096 tokens of" in result.stderr
    assert "give shorter lengths, or a policy that bounds the cache" in result.stderr
    [finished], [failed] = records_in(out), failures_in(out)
    assert finished["fields"]["policy"] == "recent_only(8)"
    assert failed["attempts"] == 0


def test_a_dry_run_prints_cells_and_cost_and_writes_nothing(world, tmp_path):
    result = sweep_here(arguments(world, tmp_path / "none", "--dry-run"))
    assert result.returncode == 0, result.stderr
    assert "quick: 33 cells, 0 finished, 33 to do" in result.stdout
    assert "cost: 13,200 tokens" in result.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("per_node", "threads", "cells", "expected"),
    [
        ([2], None, 18, (1, 2)),
        ([8], None, 2, (4, 2)),
        ([1, 3], None, 2, (1, 4)),
        ([3, 3], None, 2, (3, 2)),
        ([2, 6], 4, 9, (4, 1)),
    ],
)
def test_cores_are_divided_so_that_all_are_busy(per_node, threads, cells, expected):
    slots = divide("cpu", nodes(per_node), threads, cells)
    assert (slots.threads, sum(map(slots.on, nodes(per_node)))) == expected


def test_more_threads_than_a_node_has_are_refused():
    with pytest.raises(ValueError, match=r"threads: 3 asked, the largest node has 2 CPUs"):
        fit_for("cpu", nodes([2, 2]), 3)
    assert [node.cores for node in fit_for("cpu", nodes([2, 4, 8]), 3)] == [4, 8]


def test_a_cell_takes_no_more_cores_than_a_node_that_can_hold_it_has():
    machines = [Node("small", 8, 0, 1e9), Node("large", 2, 0, 1e12)]
    assert divide("cpu", machines, None, 1, needed=1e8).threads == 8
    assert divide("cpu", machines, None, 1, needed=1e11).threads == 2


def nodes(cores):
    return [Node(str(place), count, 0, 1e9) for place, count in enumerate(cores)]


def test_a_model_that_is_refused_is_told_once_and_costs_no_other_cells(ray_here, world, tmp_path):
    """One of its layers does not rotate, which no configuration tells; the other model's cells come after."""
    refused, out = tmp_path / "refused", tmp_path / "records"
    shutil.copytree(world / "model", refused)
    torch.manual_seed(0)
    sizes = TINY | {"vocab_size": 97, "no_rope_layers": [1, 0, 1]}
    SmolLM3ForCausalLM(SmolLM3Config(**sizes)).save_pretrained(refused)
    once = ["--documents", "3", "--contexts", "8", "--prefills", "1", "--rounds", "1", "--steps", "1"]
    models = ["--models", f"{refused},{world / 'model'}"]
    result = sweep_here(labelled(world, out, "full,recent_only(8)", 400, *once, *models))
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert "FAILED" not in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    [told] = [line for line in lines if "KL divergence" in line]
    assert told.startswith(
        f"[6/14, unknown time left] not run: no cell of {refused}: model=SmolLM3ForCausalLM computes"
    )
    assert lines.index(told) < min(number for number, line in enumerate(lines) if "PPL" in line)
    assert "7 of 14 cells are not finished" in result.stderr
    failed = failures_in(out)
    assert sorted(each["fields"]["kind"] for each in failed) == ["latency", *["quality"] * 6]
    assert {each["fields"]["model"] for each in failed} == {str(refused)}
    [error] = {each["error"] for each in failed}
    assert error.startswith("ValueError: model=SmolLM3ForCausalLM computes something that kvstream does not (KL")
    assert len(digest(out)) == 7
    checked = [line for line in lines if line.startswith("checking")]
    assert checked == [f"checking {refused}", *[f"checking {world / 'model'}"] * 2], (
        "by quality's and latency's workers"
    )
    ends = {record["cell"]: datetime.fromisoformat(record["written_at"]).timestamp() for record in records_in(out)}
    [timed] = [record for record in records_in(out) if record["fields"]["kind"] == "latency"]
    began = ends.pop(timed["cell"]) + 1 - timed["seconds"]
    assert began >= max(ends.values()), "it waits for all quality cells"
