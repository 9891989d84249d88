"""Sweeps apart from all else on this machine, whose cells wait at a gate: for tests that kill, freeze and unplug.

Each sweep has a session of its own, as one in a terminal has, and a Ray folder of its own: whatever it leaves running
is found by its session, and a Ray that somebody runs on this machine is neither found nor touched.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from driving import ROOT, digest
from nursery import NEST, fork

RAY = str(Path(sys.executable).parent / "ray")
RECORD = "????????????????.json"
CELLS = 9  # of a gated sweep: eight that wait at the gate, and full

# A sweep whose cells wait while there is a gate, or one that names their budget, and tell who computes them: lines of
# pid, node, begin or end, budget and seconds.
GATED = """
import json, os, pathlib, time
from dataclasses import dataclass
from kvstream import FixSizeL2, Full
from kvstream.grid import axes
from kvstream.grid.axes import Grid, Repeats
from kvstream.sweep.main import main

axes._policy = lambda axis, policy: None  # a sweep refuses policies of others, whose code is in no cell's key
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
    def token_scores(self, *keys_and_values):
        budget = self.regions.budget
        tell(f"begin {{budget}}")
        while waits(budget):
            time.sleep(0.02)
        {then}
        tell(f"end {{budget}}")
        return super().token_scores(*keys_and_values)

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
    """Processes of a session that live."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def named(session, name):
    """Processes of a session whose name begins so."""
    found = []
    for process in family(session):
        with suppress(psutil.Error):
            if process.name().startswith(name):
                found.append(process)
    return found


def workers(session):
    """Those of them that compute a quality cell."""
    return named(session, "ray::quality")


class Started:
    """A command in a session of its own; what it says goes to files, which no orphan can hold open."""

    def __init__(self, command, env, name):
        self.said = [Path(f"{name}.{stream}") for stream in ("out", "err")]
        for path in self.said:
            path.touch()
        self.env = env
        is_script = command[0] in (sys.executable, RAY) and command[1] != "-m"
        self.process = self._forked(command) if is_script else self._spawned(command)
        self.session = self.process.pid

    def _forked(self, command):
        script = command[command[0] == sys.executable :]
        return fork(script, self.env, ROOT, *map(str, self.said), f"{self.said[0]}.code")

    def _spawned(self, command):
        with open(self.said[0], "a") as out, open(self.said[1], "a") as err:
            heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # if tests run by `… &`
            options = heard | {"cwd": ROOT, "env": self.env, "start_new_session": True}
            return subprocess.Popen(command, stdout=out, stderr=err, **options)

    def out(self):
        return self.said[0].read_text()

    def err(self):
        return self.said[1].read_text()

    def send(self, number):
        """Send a signal to the whole group, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.session, number)

    def ended(self, seconds=180):
        """Wait for it to end; returns its exit code."""
        return self.process.wait(seconds)

    def leaves_nothing(self):
        """Wait for all its processes to be gone."""
        until(lambda: not family(self.session), 30, "the end of its processes")


@contextmanager
def apart():
    """Give a way to start commands that share a Ray folder; afterwards kill what is left of them, and the folder.

    The folder's name is short, as the paths of sockets in it may have no more than 107 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", NEST: str(folder)}
    started = []

    def start(command, **more):
        started.append(Started(command, env | more, folder / str(len(started))))
        return started[-1]

    try:
        yield start
    finally:
        for process in [process for one in started for process in family(one.session)]:
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


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


def head(start, *flags, ip="127.0.0.1", **environment):
    """Start a Ray of its own for sweeps to find; returns what was started, and its address."""
    with socket.create_server((ip, 0)) as server:
        address = f"{ip}:{server.getsockname()[1]}"
    options = ["--include-dashboard=false", "--no-monitor", "--disable-usage-stats", f"--node-ip-address={ip}"]
    options += ["--include-log-monitor=false"]
    options += ["--min-worker-port=0", "--max-worker-port=0"]  # any that are free: another Ray may run beside it
    port = f"--port={address.partition(':')[2]}"
    begun = start([RAY, "start", "--head", port, *options, *(flags or ["--num-cpus=2"])], **environment)
    assert begun.ended() == 0, begun.err()
    return begun, address
