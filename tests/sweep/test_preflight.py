"""A dry run is the real one up to the first model: it refuses in the same line, writes nothing and starts no Ray."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from driving import labelled, sweep_here

from kvstream.measure import peak_memory
from kvstream.records import storage
from kvstream.records.store import Records
from kvstream.sweep import cluster, preflight
from kvstream.sweep.pool import Node

HERE = Node(cluster.HERE, 2, 0, 8e9)


def never(*_):
    raise AssertionError("a dry run must not ask for this")


@pytest.fixture
def alone(monkeypatch):
    """No Ray runs, and the machine is one of two cores."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "uses_ray", lambda: False)
    monkeypatch.setattr(cluster, "_left_behind", lambda: None)
    monkeypatch.setattr(cluster, "this_machine", lambda: HERE)
    monkeypatch.setattr(cluster, "connect", never)


@pytest.fixture
def dry(alone, world, tmp_path):
    """Factory: flags → how a dry run ends that leaves nothing behind."""

    def run(*flags, policies="full"):
        before = set(tmp_path.rglob("*"))
        ended = sweep_here(labelled(world, tmp_path / "records", policies, 50, *flags, "--dry-run"))
        assert set(tmp_path.rglob("*")) == before
        return ended

    return run


@pytest.mark.parametrize(
    ("flags", "machine", "words"),
    [
        (["--device", "cuda"], {}, "device: 'cuda' asked, but no node of the cluster has a GPU; use --device cpu"),
        (["--threads", "3"], {}, "threads: 3 asked, the largest node has 2 CPUs; give no more"),
        (["--threads", "3"], {"cores": 1}, "threads: 3 asked, the largest node has 1 CPU; give no more"),
        ([], {"memory": 1e6}, "lengths: 50 tokens of"),
        (["--lengths", "none", "--contexts", "40"], {"memory": 1e6}, "contexts: 40 × batch 1 of"),
        (["--out", "file"], {}, "out: cannot write to 'file' (File exists); give another --out"),
        (["--out", "file/inside"], {}, "out: cannot write to 'file/inside' (Not a directory); give another --out"),
        (["--out", "dead"], {}, "out: cannot write to 'dead' (File exists); give another --out"),
        (["--out", "x" * 300], {}, "(File name too long); give another --out"),
        (["--out", "s3:/x"], {}, "out: 's3:/x' is no address"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:30],
)
def test_what_the_run_refuses_the_dry_run_refuses_in_the_same_line(
    dry, world, tmp_path, monkeypatch, flags, machine, words
):
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    one = replace(HERE, **machine)
    monkeypatch.setattr(cluster, "this_machine", lambda: one)
    refused = dry(*flags)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert words in refused.stderr
    monkeypatch.setattr(cluster, "connect", lambda where: [one])
    real = sweep_here(labelled(world, tmp_path / "records", "full", 50, *flags))
    assert (real.returncode, real.stderr) == (2, refused.stderr)


@pytest.mark.skipif(sys.platform == "darwin", reason="there it is")
def test_apples_gpu_is_refused_elsewhere(dry):
    ended = dry("--device", "mps")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: device: 'mps' needs Apple silicon")


def test_a_place_where_nobody_may_write_is_refused(dry, monkeypatch):
    """Root may everywhere, so the system's answer is given for it."""

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    ended = dry("--out", "/somewhere/else")
    told = "error: out: cannot write to '/somewhere/else' (Permission denied); give another --out\n"
    assert (ended.returncode, ended.stderr) == (2, told)


def test_a_disk_without_room_is_refused(dry, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.stat(path) and SimpleNamespace(total=9, free=9))
    ended = dry()
    assert ended.returncode == 2
    assert "has 0.0 MB left, and this sweep will write at least" in ended.stderr


def test_gpus_that_torch_cannot_use_are_refused(dry, monkeypatch):
    monkeypatch.setattr(cluster, "this_machine", lambda: replace(HERE, gpus=1))
    monkeypatch.setattr(cluster, "_gpu_memory", {})
    monkeypatch.setattr(peak_memory, "gpu_bytes", lambda device: 0)
    ended = dry("--device", "cuda")
    assert ended.returncode == 2
    assert "Ray counts GPUs, but torch finds none there" in ended.stderr
    monkeypatch.setattr(cluster, "_gpu_memory", {})
    monkeypatch.setattr(peak_memory, "gpu_bytes", lambda device: 7e9)
    assert "; 7.0 GB are available\n" in dry("--device", "cuda").stdout


def test_an_address_without_a_ray_is_refused(dry, monkeypatch):
    """As the same command without --dry-run is; no other machine's lack of a GPU is guessed at."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    ended = dry("--device", "cuda")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: RAY_ADDRESS: no Ray answers at '127.0.0.1:9'")


def test_a_cluster_is_asked_in_place_of_this_machine(dry, monkeypatch):
    """It is joined; nobody's GPU is waited for, however busy they are."""
    monkeypatch.setattr(cluster, "answering", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "this_machine", never)
    monkeypatch.setattr(cluster, "_ask_memory", never)
    monkeypatch.setattr(cluster, "_gpu_memory", {})
    monkeypatch.setattr(cluster, "connect", lambda where: {"10.0.0.1:6379": [Node("far", 4, 1, 1e9)]}[where])
    asked, chosen = dry("--device", "cuda"), dry("--device", "auto")
    assert asked == chosen
    assert asked.returncode == 0, asked.stderr
    assert "for the largest quality cell; a GPU tells its own when the sweep runs\n" in asked.stdout
    assert asked.stdout != dry("--device", "cpu").stdout


def test_nothing_is_asked_of_machines_where_all_is_finished(dry, monkeypatch):
    """As records of elsewhere may be."""
    monkeypatch.setattr(Records, "finished", lambda records, keys: set(keys))
    monkeypatch.setattr(cluster, "this_machine", never)
    ended = dry("--device", "cuda")
    assert ended.returncode == 0, ended.stderr
    assert "quick: 1 cell, 1 finished, 0 to do\n" in ended.stdout
    assert "memory:" not in ended.stdout


def test_a_cell_that_no_machine_can_hold_is_told_and_counts(dry, monkeypatch):
    large = "lengths: it is too large; give shorter ones"
    monkeypatch.setattr(preflight, "too_large", lambda cell, available: large if cell.label == "full" else None)
    ended = dry(policies="full,recent_only(8)")
    assert (ended.returncode, ended.stderr) == (1, f"not run: {large}\n")
    assert [line.split()[-1] for line in ended.stdout.splitlines() if line.startswith("  ")] == ["run", "tokens"]
    assert "quick: 2 cells, 0 finished, 1 to do, 1 that no machine can hold\n" in ended.stdout


def test_memory_is_told_of_both_kinds_of_cells(dry):
    told = dry("--contexts", "40").stdout.splitlines()[-1]
    assert told.startswith("memory: about ")
    assert " MB for the largest quality cell, about " in told
    assert told.endswith(" MB for the largest latency cell; 8.0 GB are available")
    assert "quality" not in dry("--contexts", "40", "--lengths", "none").stdout.splitlines()[-1]


def test_cells_that_are_not_finished_are_counted_in_words_that_agree(alone, world, tmp_path, monkeypatch):
    """Here as no driver computes any."""
    monkeypatch.setattr(cluster, "connect", lambda where: [HERE])
    monkeypatch.setattr("kvstream.sweep.driver.Driver.measure", lambda *_: None)
    for policies, words in (
        ("full", "1 of 1 cell is not finished; the same command tries it again"),
        ("full,recent_only(8)", "2 of 2 cells are not finished; the same command tries them again"),
    ):
        ended = sweep_here(labelled(world, tmp_path / "records", policies, 50))
        assert (ended.returncode, ended.stderr) == (1, f"{words}\n")


def test_this_machine_is_counted_where_ray_keeps_its_own_way_elsewhere(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray._private.resource_and_label_spec", None)
    one = cluster.this_machine()
    assert (one.cores, one.gpus) == (os.cpu_count(), torch.cuda.device_count())
    assert 0 < one.memory <= psutil.virtual_memory().total


@pytest.mark.long
def test_this_machine_is_what_a_ray_that_is_started_counts():
    code = (
        "from kvstream.sweep import cluster; [one] = [cluster.this_machine()]; [node] = cluster.connect(None); "
        "print((one.cores, one.gpus) == (node.cores, node.gpus), abs(one.memory / node.memory - 1) < 0.2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True True"
