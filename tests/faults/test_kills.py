"""Workers, drivers and whole sweeps are killed, and clocks jump: nothing finished is lost, and nothing stays behind.

Each sweep here has a session of its own, as one in a terminal has, and a Ray folder of its own: whatever it leaves
running is found by its session, and a Ray that somebody runs on this machine is neither found nor touched.
"""

import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WORDS
from driving import QUICK, ROOT, arguments, digest

from kvstream import StreamingLLM, guardian, tasks
from kvstream.chunks import PART_TOKENS
from kvstream.pacing import together
from kvstream.weights import to_arrays

pytestmark = pytest.mark.long

RAY = str(Path(sys.executable).parent / "ray")
RECORD = "????????????????.json"
CELLS = 9  # of a gated sweep: eight that wait at the gate, and full

# A sweep whose cells wait while there is a gate, or one that names their budget, and tell who computes them: lines of
# pid, node, begin or end, budget and seconds.
GATED = """
import json, os, pathlib, time
from dataclasses import dataclass
from kvstream import FixSizeL2, Full
from kvstream.grid import Grid, Repeats
from kvstream.sweep import main

FOLDER = pathlib.Path({folder!r})

def waits(budget):
    try:
        named = (FOLDER / "gate").read_text().split()
    except FileNotFoundError:
        return False
    return not named or str(budget) in named

def tell(what):
    import ray
    node = ray.get_runtime_context().get_node_id()
    with open(FOLDER / "told", "a") as file:
        file.write(f"{{os.getpid()}} {{node}} {{what}} {{time.monotonic()}}\\n")

@dataclass(frozen=True)
class Gated(FixSizeL2):
    def scores(self, keys_BHSD):
        budget = self.regions.budget
        tell(f"begin {{budget}}")
        while waits(budget):
            time.sleep(0.02)
        {then}
        tell(f"end {{budget}}")
        return super().scores(keys_BHSD)

GATED = tuple(Gated(budget, 0.5, "keep_low") for budget in range(8, 16))
GRID = Grid("gated", ({model!r},), (Full(), *GATED), {texts!r}, {documents}, (300,){more})
if __name__ == "__main__":
    {before}
    main(GRID, "Do cells survive?\\n\\nYes.")
"""
OWN_RAY = """os.environ["RAY_OVERRIDE_RESOURCES"] = '{"CPU": 2}'"""  # whatever this machine has


def gated(world, folder, before=OWN_RAY, then="pass", documents=1, more=""):
    """Write that script into `folder`, closed; returns the command that runs it with records in folder/records."""
    names = {"model": str(world / "model"), "texts": str(world / "texts"), "folder": str(folder)}
    (folder / "gated.py").write_text(GATED.format(**names, before=before, then=then, documents=documents, more=more))
    (folder / "gate").touch()
    return [sys.executable, str(folder / "gated.py"), "--out", str(folder / "records"), "--device", "cpu"]


def told(folder):
    """What the cells told: pid, node, begin or end, budget, seconds."""
    path = folder / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), *words, int(budget), float(seconds)) for pid, *words, budget, seconds in map(str.split, lines)]


def until(true, seconds, what):
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return result


def family(session):
    """Processes of a session that live, and the guardian that its leader started, which has a session of its own."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            mine = os.getsid(process.pid) == session or is_guardian(process, session)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_guardian(process, driver):
    """Whether a process watches over what that driver leaves."""
    return process.cmdline()[-3:-1] == [guardian.__file__, str(driver)]


def workers(session):
    """Those of them that compute a quality cell."""
    found = []
    for process in family(session):
        with suppress(psutil.Error):
            if process.name().startswith("ray::quality"):
                found.append(process)
    return found


class Started:
    """A command in a session of its own; what it says goes to files, which no orphan can hold open."""

    def __init__(self, command, env):
        self.said = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  # they live as long as this does
        self.env = env
        out, err = self.said
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # where this was started by `… &`
        options = heard | {"cwd": ROOT, "env": env, "start_new_session": True}
        self.process = subprocess.Popen(command, stdout=out, stderr=err, **options)
        self.session = self.process.pid

    def out(self, stream=0):
        self.said[stream].seek(0)
        return self.said[stream].read()

    def err(self):
        return self.out(1)

    def send(self, number):
        """Send a signal to the whole group, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.session, number)

    def ended(self, seconds=90):
        """Wait for it to end; returns its exit code."""
        return self.process.wait(seconds)

    def leaves_nothing(self):
        """Wait for all its processes to be gone, the guardian of its Ray among them."""
        until(lambda: not family(self.session), 30, "the end of its processes")


@contextmanager
def apart():
    """Give a way to start commands that share a Ray folder; afterwards kill what is left of them, and the folder.

    The folder's name is short, as the paths of sockets in it may have no more than 107 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    started = []

    def start(command, **more):
        started.append(Started(command, env | more))
        return started[-1]

    try:
        yield start
    finally:
        for process in [process for one in started for process in family(one.session)]:
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start():
    with apart() as start:
        yield start


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Digests of a gated sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    command = gated(world, folder)
    (folder / "gate").unlink()
    with apart() as start:
        sweep = start(command)
        assert sweep.ended() == 0, sweep.err()
        sweep.leaves_nothing()
    result = digest(folder / "records")
    assert len(result) == CELLS
    return result


def failures(folder):
    return [json.loads(path.read_text()) for path in (folder / "records").glob("*.failed.json")]


def goes_on(start, command, folder, whole):
    """The same command again, with the gate open, gives the rows of a sweep that nothing disturbed."""
    (folder / "gate").unlink(missing_ok=True)
    before = len(digest(folder / "records"))
    again = start(command)
    assert again.ended() == 0, again.err()
    assert f"{before} finished before" in again.out()
    assert digest(folder / "records") == whole
    assert not failures(folder)
    again.leaves_nothing()


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
    assert f"1 of {CELLS} cells are not finished" in sweep.err()
    assert "Traceback" not in sweep.out() + sweep.err()
    assert len(digest(tmp_path / "records")) == CELLS - 1
    goes_on(start, command, tmp_path, whole)


HUNGRY = """
        if budget == 8 and not (FOLDER / "fed").exists():
            held = [bytearray(b"1") * 10**8 for _ in range(80) if not time.sleep(0.03)]
            time.sleep(20)
"""


def test_a_cell_that_fills_the_memory_is_killed_by_ray_and_costs_only_itself(start, world, tmp_path, whole):
    memory = psutil.virtual_memory()
    limit = str((memory.total - memory.available + 3e9) / memory.total)  # three gigabytes more than are in use
    command = [*gated(world, tmp_path, then=HUNGRY.strip()), "--threads", "2"]
    (tmp_path / "gate").unlink()
    sweep = start(command, RAY_memory_usage_threshold=limit, RAY_memory_monitor_refresh_ms="50")
    assert sweep.ended() == 1
    [failure] = failures(tmp_path)
    assert failure["attempts"] == 2
    assert failure["error"].startswith("RuntimeError: its machine ran out of memory, and Ray killed the cell; give ")
    assert "Traceback" not in sweep.out() + sweep.err()
    assert len(digest(tmp_path / "records")) == CELLS - 1
    (tmp_path / "fed").touch()
    goes_on(start, command, tmp_path, whole)


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
    "texts": "from kvstream import plan as place; name = 'load_documents'",
    "Ray's start": "import ray._private.node as place; place = place.Node; name = 'start_ray_processes'",
    "after Ray's start": "from kvstream import cluster as place; name = 'choose_device'",
}
AROUND = """
inner = getattr(place, name)
def struck(*given, **named):
    strike()
    return inner(*given, **named)
setattr(place, name, struck)
"""


@pytest.mark.parametrize("where", HOOKS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_sweep_can_be_stopped_before_its_first_cell(start, world, tmp_path, where, number):
    command = arguments(world, tmp_path / "records")[1:]
    names = {"where": where, "number": int(number), "hook": HOOKS[where] + AROUND, "command": command}
    (tmp_path / "early.py").write_text(EARLY.format(**names, script=str(QUICK)))
    sweep = start([sys.executable, str(tmp_path / "early.py")])
    assert sweep.ended(60) in {130, -signal.SIGTERM, signal.SIGTERM}  # the last is Ray's own, while it starts
    assert "Traceback" not in sweep.out() + sweep.err()
    assert not digest(tmp_path / "records")
    sweep.leaves_nothing()


@pytest.mark.long
@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGKILL"])
def test_a_driver_that_is_stopped_leaves_no_process_and_the_same_command_goes_on(start, world, tmp_path, whole, how):
    command = gated(world, tmp_path)
    sweep = start(command)
    until(lambda: len({pid for pid, *_ in told(tmp_path)}) == 2, 60, "two cells at the gate")
    if how == "SIGKILL":
        sweep.process.kill()
        assert sweep.ended() == -signal.SIGKILL
    elif how == "SIGTERM":
        sweep.process.terminate()
    else:
        for process in family(sweep.session):  # more than a terminal would reach
            process.send_signal(signal.SIGINT)
    if how.startswith("Ctrl-C"):
        until(lambda: "SIGINT: finishing the cells that run" in sweep.err(), 5, "an answer to Ctrl-C")
    if how == "Ctrl-C":
        time.sleep(2)
        assert sweep.process.poll() is None, "it waits for the cells that run"
        (tmp_path / "gate").unlink()
    elif how == "Ctrl-C twice":
        sweep.send(signal.SIGINT)
    assert sweep.ended(15) == (-signal.SIGKILL if how == "SIGKILL" else 1)
    assert "Traceback" not in sweep.out() + sweep.err()
    sweep.leaves_nothing()
    finished = len(digest(tmp_path / "records"))
    if how == "Ctrl-C":
        assert 4 <= finished <= 5, "two ran and two waited with Ray, full may have come before; nothing new began"
        assert len({pid for pid, *_ in told(tmp_path)}) == 2
    else:
        assert finished <= 2
    if how != "SIGKILL":
        assert f"{CELLS - finished} of {CELLS} cells are not finished" in sweep.err()
    goes_on(start, command, tmp_path, whole)


CLOCK = """
import time
real = time.time

def jumping():
    return real() + (86400 if int(time.monotonic()) % 2 else -86400)

time.time = jumping
"""


def test_a_wall_clock_that_jumps_changes_nothing(start, world, tmp_path, whole):
    """A day forth and back, every second, in the driver and in the workers."""
    (tmp_path / "jumping.py").write_text(CLOCK)
    command = gated(world, tmp_path, before=f"{OWN_RAY}; import jumping", then="import jumping; time.sleep(0.3)")
    (tmp_path / "gate").unlink()
    begun = time.monotonic()
    sweep = start(command, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert sweep.ended() == 0, sweep.err()
    elapsed = time.monotonic() - begun
    assert digest(tmp_path / "records") == whole
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob(RECORD)]
    assert all(0 < record["seconds"] < elapsed for record in records)
    assert " h " not in sweep.out(), "the time left is told in hours"
    rates = [int(rate.replace(",", "")) for rate in re.findall(r", ([-\d,]+) tokens/s", sweep.out())]
    assert len(rates) == CELLS
    assert all(300 / elapsed < rate for rate in rates)


def test_the_pace_of_threads_does_not_follow_a_clock_that_jumps(tiny_model, monkeypatch):
    """Set back by a day in the middle, a wall clock would have it measure for a day; here it is set right again."""
    text = np.random.default_rng(0).integers(0, 97, 1100, dtype=np.int32)
    cell = SimpleNamespace(document=SimpleNamespace(token_ids=text), policy=StreamingLLM(4, 60), device="cpu")
    real, begun = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() - 86400 * (0.5 < time.monotonic() - begun < 30))
    weights = tasks.Weights(*to_arrays(tiny_model("neox", torch.float32)), tasks._code())
    done = tasks.pace(weights, cell, 1, 2.0)
    assert 2.0 <= done[-1] - done[0] < 20
    assert sorted(done) == done
    assert together([done, done]) > 0


def test_what_a_grid_names_twice_is_computed_once(start, world, tmp_path):
    """Policies and budgets fall together; texts that are the same under two names are two documents."""
    texts, out = tmp_path / "texts", tmp_path / "records"
    texts.mkdir()
    for name in ("one", "other"):
        shutil.copy(world / "texts" / "one.txt", texts / f"{name}.txt")
    axes = [
        "--policies",
        "full,recent_only,full,recent_only(8),fix_size_l2",
        "--budgets",
        "8,8",
        "--keep-ratios",
        ".5,.5",
    ]
    command = [*arguments(world, out, *axes, "--lengths", "300,300"), "--text", str(texts), "--documents", "2"]
    sweep = start([*command, "--strategies", "random,random"])
    assert sweep.ended() == 0, sweep.err()
    assert "6 cells, 0 finished before, 6 to do" in sweep.out()
    lines = [line.partition("] ")[2].partition(": PPL")[0] for line in sweep.out().splitlines() if ": PPL" in line]
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


def head(start, *flags, ip="127.0.0.1"):
    """Start a Ray of its own for sweeps to find, as a user does; returns what was started, and its address."""
    with socket.create_server((ip, 0)) as server:
        address = f"{ip}:{server.getsockname()[1]}"
    options = ["--include-dashboard=false", "--disable-usage-stats", f"--node-ip-address={ip}"]
    port = f"--port={address.partition(':')[2]}"
    begun = start([RAY, "start", "--head", port, *options, *(flags or ["--num-cpus=2"])])
    assert begun.ended() == 0, begun.err()
    return begun, address


# Forks sweeps that have imported everything before, so that a hundred of them take minutes. Each line that it reads is
# an address of Ray and a command; it answers with the sweep's process and, in the end, its exit code.
NURSERY = """
import os, sys
sys.path.insert(0, {sweeps!r})
import datasets, torch, transformers
import kvstream.fleet, kvstream.ledger, kvstream.plan, kvstream.progress, kvstream.records, quick

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["RAY_ADDRESS"], *command = line.split()
        kvstream.sweep.main(quick.GRID, quick.__doc__, command)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Sweeps on the same two long texts, one at a time."""

    def __init__(self, world, folder, env):
        texts, self.log = folder / "texts", folder / "log"
        texts.mkdir()
        for seed in range(2):
            words = random.Random(seed).choices(WORDS, k=PART_TOKENS + 3000)
            (texts / f"{seed}.txt").write_text(" ".join(words))
        policies = "streaming_llm(4,4),streaming_llm(4,28),recent_only(8),recent_only(32),fix_size_l2(8,0.5,random)"
        self.command = arguments(world, "OUT", "--lengths", f"1000,{PART_TOKENS + 3000}", "--documents", "2")[2:]
        at = self.command.index("--budgets")
        self.command[at : at + 2] = ["--policies", policies, "--text", str(texts)]
        script = NURSERY.format(sweeps=str(ROOT / "sweeps"), log=str(self.log))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.parent = subprocess.Popen([sys.executable, "-c", script], env=env, cwd=ROOT, **pipes)

    def start(self, address, out):
        """Start a sweep; returns its process, which leads a session."""
        print(
            address, *(str(out) if word == "OUT" else word for word in self.command), file=self.parent.stdin, flush=True
        )
        return int(self.parent.stdout.readline())

    def ended(self, seconds):
        """Wait at most so long for its end; returns its exit code, None if it goes on."""
        if not select.select([self.parent.stdout], [], [], seconds)[0]:
            return None
        return int(self.parent.stdout.readline())


@pytest.mark.long
def test_a_hundred_kills_at_random_moments_change_no_row(start, world, tmp_path):
    """Workers and drivers on a Ray that goes on, and whole sweeps with a Ray of their own."""
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    print(f"SEED={seed}")
    draw = random.Random(seed)
    ray, address = head(start)
    nursery = Nursery(world, tmp_path, ray.env)
    sweeps, kills, finished = set(), Counter(), 0
    nursery.start(address, tmp_path / "whole")
    assert nursery.ended(120) == 0, nursery.log.read_text()
    whole = digest(tmp_path / "whole")
    assert len(whole) == 10
    while kills.total() < 100 or min(kills[victim] for victim in ("worker", "driver", "group")) < 3:
        out = tmp_path / f"disturbed{finished}"
        own = draw.random() < 0.15
        sweep = nursery.start("local" if own else address, out)
        sweeps.add(sweep)
        session = sweep if own else ray.session
        code = None
        if draw.random() < 0.7:  # else it is killed whatever it does, before it computes, too
            while code is None and not workers(session):
                code = nursery.ended(0.05)
        while code is None and (code := nursery.ended(draw.uniform(0.0, 1.5))) is None:
            victim = draw.choice(["group", "worker"] if own else ["worker", "worker", "driver"])
            if victim == "worker":
                for process in workers(session)[:1]:
                    process.kill()
                    kills[victim] += 1
            else:
                for process in family(sweep) if victim == "group" else [psutil.Process(sweep)]:
                    with suppress(psutil.Error):
                        process.kill()
                kills[victim] += 1
        assert code in (0, 1, -signal.SIGKILL), nursery.log.read_text()[-3000:]
        if code == 0:
            assert digest(out) == whole
            finished += 1
    out = tmp_path / f"disturbed{finished}"
    for _ in range(2):  # a cell that was killed twice in a row has failed, and is tried again
        nursery.start(address, out)
        code = nursery.ended(120)
    nursery.parent.stdin.close()
    print(f"{dict(kills)}, {finished} sweeps finished in between")
    assert code == 0, nursery.log.read_text()[-3000:]
    assert digest(out) == whole
    assert not list(out.glob("*.part*")) + list(out.glob("*.state")) + list(out.glob("*.failed.json"))
    assert "Traceback" not in nursery.log.read_text()
    until(lambda: not [process for sweep in sweeps for process in family(sweep)], 30, "the end of all sweeps")
    until(lambda: not workers(ray.session), 30, "the end of their workers")
