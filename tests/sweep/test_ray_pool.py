"""Workers on a real Ray: they stay from sweep to sweep, hardly wait between cells, and are replaced when they die."""

import json
import os
import random
import runpy
import signal
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import ray
import torch
from apart import until, workers
from driving import QUICK, arguments, digest, labelled, sweep_here
from tiny import WORDS

from kvstream import RecentOnly
from kvstream.grid.flags import parse_flags
from kvstream.sweep import cluster, ray_pool, watch
from kvstream.sweep.cluster import machines
from kvstream.sweep.main import run
from kvstream.sweep.pool import Done, Lost, Node, Slots
from kvstream.sweep.work import Check
from kvstream.sweep.worker import own_gpu


@pytest.fixture
def one_thread(ray_here, world):
    """How to sweep 33 cells with workers of one thread."""

    def sweep(out, *more):
        result = sweep_here(arguments(world, out, "--threads", "1", *more))
        assert result.returncode == 0, result.stdout + result.stderr
        assert len(digest(out)) == 33
        return result

    return sweep


@pytest.fixture
def finished(monkeypatch):
    """What workers finish, as it is told, but for checks of the model."""
    done, real = [], ray_pool.RayPool.wait

    def wait(pool, seconds):
        events = real(pool, seconds)
        done.extend(event for event in events if isinstance(event, Done) and not isinstance(event.work, Check))
        return events

    monkeypatch.setattr(ray_pool.RayPool, "wait", wait)
    return done


def hardly_waited(done):
    """The workers, each of which began a cell within 0.2 s of the end of the one before."""
    by_worker = {}
    for event in sorted(done, key=lambda event: event.began_s):
        by_worker.setdefault(event.worker.id, []).append(event)
    for events in by_worker.values():
        gaps = sorted(after.began_s - each.ended_s for each, after in pairwise(events))
        assert all(gap >= 0 for gap in gaps)
        # On a busy machine one may be longer, or a worker come late to the work; a process of its own takes seconds.
        assert all(gap < 0.2 for gap in gaps[:-1]), gaps
    assert max(map(len, by_worker.values())) > 3
    return set(by_worker)


def test_workers_stay_for_the_next_sweep_and_hardly_wait_between_cells(one_thread, ray_here, tmp_path, finished):
    one_thread(tmp_path / "first")
    before = {process.pid for process in workers(ray_here)}
    finished.clear()
    told = one_thread(tmp_path / "second")
    assert {process.pid for process in workers(ray_here)} == before
    assert len(before) == 2
    assert "loading" not in told.stdout, "the weights are there, too"
    assert digest(tmp_path / "second") == digest(tmp_path / "first")
    assert len(hardly_waited(finished)) == 2


@pytest.fixture
def on_gpus(ray_here, tmp_path, monkeypatch):
    """Have workers claim the GPUs that Ray counts, and compute on the CPU; returns what they tell, a list a line.

    alter: what each does to its module `worker` first, with a function by which it tells.
    """
    log = tmp_path / "log"

    def claim(alter, memory=8e9):
        class Claims(ray_pool.actor_class("quality").__ray_metadata__.modified_class):
            def __init__(self, device):
                from kvstream.sweep import worker

                def tell(*what):
                    with open(log, "a") as file:
                        print(*what, file=file)

                def gpu(given, visible, own=worker.own_gpu):
                    tell("has", *given, own(given, visible))
                    return "cpu"

                worker.own_gpu = gpu
                alter(worker, tell)
                super().__init__(device)

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        monkeypatch.setattr(ray_pool, "actor_class", lambda name: ray.remote(Claims))
        monkeypatch.setattr(ray_pool.RayPool, "serves", lambda *_: False)
        monkeypatch.setattr(cluster, "_gpu_memory", {node.id: memory for node in machines()})
        return lambda: sorted(line.split() for line in log.read_text().splitlines())

    return claim


def test_each_gpu_has_a_worker_that_keeps_the_model_from_cell_to_cell(on_gpus, world, tmp_path, finished):
    """Ray gives out GPUs as on a machine that has two."""

    def alter(worker, tell):
        def load(*given, real=worker.Worker.load, **more):
            tell("loads")
            real(*given, **more)

        worker.Worker.load = load

    told = on_gpus(alter)
    result = sweep_here(arguments(world, tmp_path / "records", "--device", "auto"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Ray: 1 node with 2 CPUs and 2 GPUs" in result.stdout
    assert len(digest(tmp_path / "records")) == 33
    assert told() == [["has", "0", "cuda:0"], ["has", "1", "cuda:0"], ["loads"], ["loads"]], "Ray hides the other one"
    assert len(hardly_waited(finished)) == 2


def test_texts_that_run_out_of_a_gpus_memory_are_halved_down_to_one_which_is_recorded(on_gpus, world, tmp_path):
    """Two texts fit, under one policy not even one does."""

    def alter(worker, tell):
        def evaluate(*given, real=worker.evaluate_quality, **named):
            count, policy = len(named["token_ids_BN"]), named["policy"]
            tell("replays", count, policy)
            if count > 2 or policy == RecentOnly(9):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(*given, **named)

        worker.evaluate_quality = evaluate

    out, texts = tmp_path / "records", tmp_path / "texts"
    texts.mkdir()
    for seed in range(8):
        (texts / f"{seed}.txt").write_text(" ".join(random.Random(seed).choices(WORDS, k=300)))
    told = on_gpus(alter, memory=64e9)

    def sweep(policies):
        """How it ended, and with how many texts each policy was tried."""
        more = ["--documents", "8", "--text", str(texts), "--device", "auto"]
        ended = sweep_here(labelled(world, out, policies, 200, *more))
        tried = [(policy, int(count)) for what, count, policy in told() if what == "replays"]
        return ended, {policy: [count for label, count in tried if label == policy] for policy in policies.split(",")}

    result, tried = sweep("full,recent_only(8)")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(digest(out)) == 16
    for counts in tried.values():
        assert counts[:4] == [2] * 4
        assert set(counts[4:]) <= {4, 8}
    assert 2 <= sum(map(len, tried.values())) - 8 <= 6, "what both had been sent when the first failed"
    for line in ("8 texts side by side, goes on with 4 at a time", "4 texts side by side, goes on with 2 at a time"):
        assert result.stdout.count(f"out of memory with {line}; what needs about as much is halved from here on") == 1
    result, tried = sweep("recent_only(9)")
    assert result.returncode == 1
    assert "8 of 8 cells are not finished" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert tried["recent_only(9)"][:8] == [1] * 8
    assert "FAILED, MemoryError: its device ran out of memory; give shorter texts" in result.stdout
    failures = [json.loads(path.read_text()) for path in out.glob("*.failed.json")]
    assert {(failure["fields"]["budget"], failure["attempts"]) for failure in failures} == {(9, 1)}
    for failure in failures:
        why, details = failure["error"].splitlines()
        assert why.startswith("MemoryError: its device ran out of memory; give shorter texts or contexts, smaller ")
        assert details == "CUDA out of memory. Tried to allocate 2.00 GiB"


def test_a_worker_that_died_in_between_is_replaced(one_thread, ray_here, tmp_path):
    one_thread(tmp_path / "before")
    victim = workers(ray_here)[0]
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    one_thread(tmp_path / "after")
    assert digest(tmp_path / "after") == digest(tmp_path / "before")
    assert victim.pid not in {process.pid for process in workers(ray_here)}


def test_who_died_is_being_replaced_when_that_is_told(ray_here):
    """Else what only a large machine holds would be given up while small ones are idle and nobody is starting."""
    pool = ray_pool.pool_for(Slots("cpu", 2), machines())  # which ends the workers of other slots
    ready = until(lambda: not pool.wait(0.1) and pool.idle(), 60, "its worker")
    [victim] = until(lambda: len(found := workers(ray_here)) == 1 and found, 30, "the end of all others")
    victim.kill()
    victim.wait(10)
    pool.send(ready[0], SimpleNamespace(call=("check", {"token_ids_T": None})))
    told = until(lambda: pool.wait(0.1), 60, "its loss")
    assert [type(event) for event in told] == [Lost]
    assert pool.starting()


@pytest.fixture
def unlucky(ray_here, world, tmp_path, monkeypatch, capsys):
    """Have new workers sweep 33 cells, without patience; returns what is said of why none is finished."""
    for name in ("ALONE_S", "PAUSE_S"):
        monkeypatch.setattr(watch, name, 0.0)
    monkeypatch.setattr(ray_pool.RayPool, "serves", lambda *_: False)

    def sweep():
        flags = arguments(world, tmp_path / "records", "--threads", "1")[2:]
        grid, options = parse_flags(runpy.run_path(str(QUICK))["GRID"], "", flags)
        assert run(grid, "?", options) == 33
        assert not digest(tmp_path / "records")
        told = capsys.readouterr().err
        assert "33 of 33 cells are not finished" in told
        return told

    return sweep


def test_a_machine_with_another_kvstream_is_left_out(unlucky, monkeypatch):
    """It is the only one here, so the sweep ends; the worker's own report tells."""
    monkeypatch.setattr(ray_pool, "own_code", lambda: "newer")
    told = unlucky()
    assert told.count("left out: code: kvstream on ") == 1
    assert " is not the one of the sweep's driver; install the same on all machines" in told
    assert "no machine with 1 CPU for a cell and the same kvstream as the driver is left; install" in told


def test_a_machine_on_which_no_worker_starts_is_left_out(unlucky, monkeypatch):
    class Broken:
        def __init__(self, device):
            os._exit(1)

        def report(self):
            return "", ""

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(ray_pool, "actor_class", lambda name: ray.remote(Broken))
    assert "left out: no worker starts on it (the process that computed it was killed" in unlucky()


def test_the_end_of_all_machines_is_told_after_a_while(unlucky, monkeypatch):
    """The head lives on, without a CPU."""
    real, looks = watch.cluster.machines, iter(range(1000))
    monkeypatch.setattr(watch.cluster, "machines", lambda: real() if next(looks) < 2 else [])
    assert "stopping: no machine with 1 CPU for a cell is left; repeat the sweep" in unlucky()


@pytest.mark.parametrize(
    ("given", "visible", "device"),
    [
        ([0], "", "cuda:0"),
        ([3], "", "cuda:3"),  # Ray hides none
        ([3], "3", "cuda:0"),  # Ray hides the others
        (["2"], "2", "cuda:0"),
        ([7], "5,7", "cuda:1"),  # Ray hides none, the machine shows two
        (["GPU-b"], "GPU-a,GPU-b", "cuda:1"),
    ],
)
def test_a_worker_computes_on_the_gpu_that_it_was_given(given, visible, device):
    assert own_gpu(given, visible) == device


def test_a_worker_takes_a_gpu_some_cores_or_a_machine():
    node = Node("n", 8, 4, 1e9)
    quality, latency, gpu = Slots("cpu", 3), Slots("cuda", None, whole=True), Slots("cuda", 1)
    assert (quality.on(node), quality.takes(node)) == (2, {"num_cpus": 3, "num_gpus": 0})
    assert (gpu.on(node), gpu.takes(node)) == (4, {"num_cpus": 1, "num_gpus": 1})
    assert (latency.on(node), latency.takes(node)) == (1, {"num_cpus": 8, "num_gpus": 4})
    assert (latency.threads_on(node), Slots("cpu", 2, whole=True).threads_on(node)) == (8, 2)
    assert Slots("cuda", 4).on(node) == 2, "no more than the cores allow"
    assert Slots("cpu", 9).on(node) == Slots("cpu", 9, whole=True).on(node) == 0
