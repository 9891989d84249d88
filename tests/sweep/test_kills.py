"""Workers, drivers and whole sweeps are killed, and clocks jump: nothing finished is lost, and nothing stays behind."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import psutil
import pyarrow.parquet as pq
import pytest
from apart import (
    CELLS,
    RECORD,
    failures,
    family,
    gated,
    goes_on,
    head,
    told,
    until,
    workers,
)
from driving import QUICK, arguments, digest, labelled, sweep_here
from tiny import WORDS


@pytest.mark.long
def test_a_worker_that_is_killed_twice_costs_one_cell(start, world, tmp_path, whole):
    """Whoever kills it; the kernel does where memory is short."""
    command = gated(world, tmp_path)
    (tmp_path / "gate").write_text("8")
    sweep = start(command)
    killed = set()
    for _ in range(2):
        [pid] = until(lambda: {pid for pid, *_, budget, _ in told(tmp_path) if budget == 8} - killed, 60, "its worker")
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    assert sweep.ended() == 1
    [failure] = failures(tmp_path)
    assert failure["attempts"] == 2
    assert failure["error"].splitlines()[0] == (
        "RuntimeError: the process that computed it was killed or crashed, or its machine was lost"
    )
    assert "FAILED, RuntimeError: the process that computed it was killed" in sweep.out()
    assert f"1 of {CELLS} cells is not finished" in sweep.err()
    assert "Traceback" not in sweep.out() + sweep.err()
    assert len(digest(tmp_path / "records")) == CELLS - 1
    goes_on(start, command, tmp_path, whole)


HUNGRY = """
        if budget == 8:
            held = [bytearray(b"1") * 10**8 for _ in range({steps}) if not time.sleep(0.03)]
            time.sleep(20)
"""


@pytest.mark.long
def test_a_cell_that_fills_the_memory_is_killed_by_ray_and_costs_only_itself(start, world, tmp_path, whole):
    """The limit is half of what is free: what other tests take beside this one may not come near it."""
    memory = psutil.virtual_memory()
    if memory.available < 8e9:
        pytest.skip("needs eight gigabytes that nobody uses")
    limit = str((memory.total - memory.available / 2) / memory.total)
    hungry = HUNGRY.format(steps=int(memory.available * 0.7 / 10**8))
    command = [*gated(world, tmp_path, then=hungry.strip()), "--threads", "2"]
    (tmp_path / "gate").unlink()
    sweep = start(command, RAY_memory_usage_threshold=limit, RAY_memory_monitor_refresh_ms="50")
    assert sweep.ended() == 1
    [failure] = failures(tmp_path)
    assert failure["attempts"] == 2
    assert failure["error"].startswith("RuntimeError: its machine ran out of memory, and Ray killed the cell; give ")
    assert "python" not in failure["error"], "the commands of other processes, which Ray lists, are nobody's business"
    assert "Traceback" not in sweep.out() + sweep.err()
    assert len(digest(tmp_path / "records")) == CELLS - 1


EARLY = """
import os, signal, sys
WHERE, NUMBER = {where!r}, {number}

def strike():
    os.kill(0 if NUMBER == signal.SIGINT else os.getpid(), NUMBER)  # a terminal's Ctrl-C reaches the whole group
{hook}
import runpy
sys.argv = {command!r}
runpy.run_path({script!r}, run_name="__main__")
"""
HOOKS = {
    "texts": "from kvstream.grid import planning as place; name = 'load_documents'",
    "Ray's start": "import ray._private.node as place; place = place.Node; name = 'start_ray_processes'",
    "after Ray's start": "from kvstream.sweep import cluster as place; name = 'choose_device'",
}
AROUND = """
inner = getattr(place, name)
def struck(*given, **named):
    strike()
    return inner(*given, **named)
setattr(place, name, struck)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "number"),
    [("texts", signal.SIGTERM), ("Ray's start", signal.SIGINT), ("Ray's start", signal.SIGTERM),
     ("after Ray's start", signal.SIGINT)],
    ids=str,
)  # fmt: skip
def test_a_sweep_can_be_stopped_before_its_first_cell(start, world, tmp_path, where, number):
    command = arguments(world, tmp_path / "records")[1:]
    names = {"where": where, "number": int(number), "hook": HOOKS[where] + AROUND, "command": command}
    (tmp_path / "early.py").write_text(EARLY.format(**names, script=str(QUICK)))
    sweep = start([sys.executable, str(tmp_path / "early.py")])
    rays_own = {int(signal.SIGTERM)} if (number, where) == (signal.SIGTERM, "Ray's start") else set()
    assert sweep.ended(60) in {130, *rays_own}
    assert "Traceback" not in sweep.out() + sweep.err()
    assert not digest(tmp_path / "records")
    sweep.leaves_nothing()


@pytest.mark.long
@pytest.mark.parametrize("ways", [("SIGKILL", "Ctrl-C twice"), ("SIGTERM", "Ctrl-C")], ids=" then ".join)
def test_a_driver_that_is_stopped_and_the_same_command_go_on_to_the_same_rows(start, world, tmp_path, whole, ways):
    """Nothing of a sweep is left behind but, where it was killed, two of Ray's own processes for a minute."""
    command = gated(world, tmp_path)
    for how in ways:
        (tmp_path / "gate").touch()
        (tmp_path / "told").unlink(missing_ok=True)
        before = len(digest(tmp_path / "records"))
        sweep = start(command)
        until(lambda: len({pid for pid, *_ in told(tmp_path)}) == 2, 60, "two cells at the gate")
        if how == "SIGKILL":
            sweep.process.kill()
        elif how == "SIGTERM":
            sweep.process.terminate()
        else:
            for process in family(sweep.session):  # more than a terminal would reach
                process.send_signal(signal.SIGINT)
            until(lambda sweep=sweep: "SIGINT: finishing the cells that run" in sweep.err(), 20, "an answer to Ctrl-C")
        if how == "Ctrl-C twice":
            sweep.send(signal.SIGINT)
        elif how == "Ctrl-C":
            time.sleep(2)
            assert sweep.process.poll() is None, "it waits for the cells that run"
            (tmp_path / "gate").unlink()
        assert sweep.ended(60) == (-signal.SIGKILL if how == "SIGKILL" else 1)
        assert "Traceback" not in sweep.out() + sweep.err()
        finished = len(digest(tmp_path / "records")) - before
        if how == "Ctrl-C":
            assert 2 <= finished <= 5, "two ran and two waited with workers, full may have come before"
        else:
            assert finished <= 2
        if how == "SIGKILL":
            until(lambda sweep=sweep: not workers(sweep.session), 30, "the end of its workers")
        else:
            assert "cells are not finished" in sweep.err()
            sweep.leaves_nothing()
    goes_on(start, command, tmp_path, whole)


def test_a_wall_clock_that_jumps_changes_nothing(ray_here, world, tmp_path, monkeypatch):
    """A day forth and back, in the driver, which tells what time is left."""
    real, jumps = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + (86400 if next(jumps) % 2 else -86400))
    begun = time.monotonic()
    swept = sweep_here(arguments(world, tmp_path / "records", "--documents", "1", "--lengths", "300"))
    assert swept.returncode == 0, swept.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob(RECORD)]
    assert all(0 < record["seconds"] < time.monotonic() - begun for record in records)
    lines = [line for line in swept.stdout.splitlines() if ": PPL" in line]
    assert len(lines) == len(records) == 11
    assert all(re.search(r", 0:0\d:\d\d left\] .*, [1-9][\d,]* tokens/s$", line) for line in lines), lines
    assert " day" not in swept.stdout, "the time left is told in days"


def test_what_a_grid_names_twice_is_computed_once(ray_here, world, tmp_path):
    """Policies and budgets fall together; texts that are the same under two names are two documents."""
    texts, out = tmp_path / "texts", tmp_path / "records"
    texts.mkdir()
    for name in ("one", "other"):
        shutil.copy(world / "texts" / "one.txt", texts / f"{name}.txt")
    policies = "full,recent_only,full,recent_only(8),fix_size_l2"
    axes = ["--budgets", "8,8", "--strategies", "random,random", "--keep-ratios", ".5,.5"]
    where = ["--text", str(texts), "--documents", "2"]
    sweep = sweep_here(labelled(world, out, policies, "300,300", *axes, *where))
    assert sweep.returncode == 0, sweep.stderr
    assert "6 cells, 0 finished before, 6 to do" in sweep.stdout
    lines = [line.partition("] ")[2].partition(": PPL")[0] for line in sweep.stdout.splitlines() if ": PPL" in line]
    assert len(lines) == len(set(lines)) == 6
    keys = json.loads((out / "sweep.json").read_text())["cells"]
    assert len(keys) == len(set(keys)) == len(digest(out)) == 6
    losses = {}
    for path in out.glob(RECORD):
        record = json.loads(path.read_text())
        table = pq.read_table(out / record["file"])
        assert table["position"].to_pylist() == list(range(1, 300))
        assert set(table["cell"].to_pylist()) == {record["cell"]}
        assert set(table["document"].to_pylist()) == {record["fields"]["document"]}
        losses.setdefault(record["fields"]["policy"], []).append(table["nll_nats"].to_pylist())
    assert losses["full"][0] == losses["full"][1]
    assert losses["recent_only(8)"][0] == losses["recent_only(8)"][1]
    drawn = losses["fix_size_l2(8,0.5,random)"]
    assert drawn[0] != drawn[1], "draws follow the document's name"


KILLS = int(os.environ.get("KVSTREAM_KILLS", "25"))  # `make test-faults` asks for a hundred
LONG = 3000  # tokens, in parts of a size that workers compute many times a second
SMALL_PARTS = """
from kvstream.engine import chunks
from kvstream.sweep import watch
chunks.PART_TOKENS = 512
watch.ALONE_S = 1.0  # a machine is left out when three workers were killed while they start
import runpy, sys
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def long_sweep(world, folder):
    """Write texts and a script into `folder`; returns the command of a sweep of six long cells, but for its --out."""
    texts, script = folder / "texts", folder / "small_parts.py"
    texts.mkdir()
    script.write_text(SMALL_PARTS)
    for seed in range(2):
        (texts / f"{seed}.txt").write_text(" ".join(random.Random(seed).choices(WORDS, k=LONG)))
    policies = "streaming_llm(4,28),recent_only(8),fix_size_l2(8,0.5,random)"
    python, *command = labelled(world, "none", policies, f"1000,{LONG}", "--documents", "2", "--text", str(texts))
    return [python, str(script), *command, "--out"]


def killed(process):
    """Kill a process; returns whether it was there."""
    with suppress(psutil.Error):
        process.kill()
        return True
    return False


def goes_on_for(sweep, seconds):
    """Whether it does; returns when it ends."""
    with suppress(subprocess.TimeoutExpired):
        sweep.ended(seconds)
    return sweep.process.poll() is None


@pytest.mark.kills
def test_kills_at_random_moments_change_no_row(start, world, tmp_path):
    """Workers and drivers on a Ray that goes on, and whole sweeps with a Ray of their own."""
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    print(f"SEED={seed}")
    draw = random.Random(seed)
    ray, address = head(start)
    command = long_sweep(world, tmp_path)
    sweeps, kills, finished = [start([*command, str(tmp_path / "whole")], RAY_ADDRESS=address)], Counter(), 0
    assert sweeps[0].ended(120) == 0, sweeps[0].err()
    whole = digest(tmp_path / "whole")
    assert len(whole) == 6
    end = time.monotonic() + 1200
    ends = ["driver"] * (KILLS // 8) + ["group"] * max(1, KILLS // 20)  # what ends a sweep
    draw.shuffle(ends)
    while ends or kills.total() < KILLS:
        out = tmp_path / f"disturbed{finished}"
        everything = ends[-1] if ends else "driver"
        early = bool(ends) and draw.random() < 0.5  # whatever it does, before it computes, too
        own = everything == "group"
        sweep = start([*command, str(out)], RAY_ADDRESS="local" if own else address)
        sweeps.append(sweep)
        session = sweep.session if own else ray.session
        while goes_on_for(sweep, draw.uniform(0.0, 2.0 if early else 0.4)):
            assert time.monotonic() < end, f"only {dict(kills)} in 20 minutes"
            if not early and not workers(session):
                continue
            if not early and draw.random() < 0.85:  # one, or all at once
                kills["worker"] += sum(map(killed, workers(session)[: draw.choice([1, None])]))
            elif sum(map(killed, family(sweep.session) if own else [sweep.process])):
                kills[everything] += 1
                ends = ends[:-1]
        code = sweep.ended()
        assert code in (0, 1, -signal.SIGKILL), sweep.err()
        if code == 0:
            assert digest(out) == whole
            finished += 1
    out = tmp_path / f"disturbed{finished}"
    print(f"{dict(kills)}, {finished} of {len(sweeps)} sweeps finished in between")
    sweeps.append(start([*command, str(out)], RAY_ADDRESS=address))
    assert sweeps[-1].ended(120) == 0, sweeps[-1].err()
    assert digest(out) == whole
    assert not list(out.glob("*.part*")) + list(out.glob("*.state")) + list(out.glob("*.failed.json"))
    assert "Traceback" not in "".join(sweep.out() + sweep.err() for sweep in sweeps)
    until(lambda: not [process for sweep in sweeps for process in family(sweep.session)], 30, "the end of all sweeps")
    until(lambda: not workers(ray.session), 30, "the end of their workers")
