"""What stays behind when a driver is killed: a guardian, which ends what is left of its Ray, and a last word."""

import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from apart import until

from kvstream.sweep import guardian
from kvstream.sweep.lastword import LastWord

# A driver with a process of Ray's from before, one from after, and another from after, which print their ids.
DRIVER = """
import subprocess, sys, time
from kvstream.sweep.guardian import Guardian

def start(name):
    print(subprocess.Popen([name, "600"], executable="/bin/sleep", stdout=subprocess.DEVNULL).pid, flush=True)

if not {told}:
    start("ray::Before")
time.sleep(0.05)  # the system counts a process's age in hundredths of a second
guardian = Guardian()
if {told}:
    agent = "os.wait() if os.fork() else os.execv('/bin/sleep', ['ray::Agent', '600'])"
    subprocess.Popen([sys.executable, "-c", f"import os; {{agent}}"])
    time.sleep(1)
start("ray::Agent")
start("sleep")
if {told}:
    guardian.started()
sys.stdin.read()
"""


def lives(process):
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def ended(process, seconds):
    """Wait for its end; its zombie may stay, where nobody takes the dead away."""
    end = time.monotonic() + seconds
    while lives(process):
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.05)


def ignores(process, number):
    """Whether a process has come so far that it ignores a signal."""
    [mask] = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(mask, 16) >> (number - 1) & 1


@pytest.fixture
def driver():
    """Start such a driver: (told) → it, its guardian, what of its Ray is to end, and what is to live."""
    left = []

    def start(told):
        command = [sys.executable, "-c", DRIVER.format(told=told)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, start_new_session=True, **pipes)
        pids = [int(process.stdout.readline()) for _ in range(2 if told else 3)]
        ending, living = [[psutil.Process(pid) for pid in group] for group in (pids[-2:-1], [*pids[:-2], pids[-1]])]
        children = psutil.Process(process.pid).children(recursive=True)
        ending += [child for child in children if child.cmdline()[:1] == ["ray::Agent"] and child not in ending]
        left.extend([*children, psutil.Process(process.pid)])
        [watching] = [child for child in children if guardian.__file__ in child.cmdline()]
        end = time.monotonic() + 20
        while not ignores(watching, signal.SIGTERM):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)  # it looks
        return process, watching, ending, living

    yield start
    for process in filter(lives, left):
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("told", [False, True], ids=["while Ray starts", "while Ray runs"])
def test_what_outlives_a_killed_driver_is_ended(driver, told):
    process, watching, ending, living = driver(told)
    assert len(ending) == 1 + told, "the child of a child, too"
    for number in (signal.SIGINT, signal.SIGTERM):
        watching.send_signal(number)
    process.kill()
    process.wait()
    time.sleep(guardian.GRACE_S / 2)
    assert all(map(lives, ending)), "Ray has time to end by itself"
    ended(watching, guardian.GRACE_S)
    for one in ending:
        ended(one, 1)
    assert all(map(lives, living)), "Rays of before, and what is not Ray's"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_ends_at_once_where_nothing_is_left(driver):
    process, watching, ending, _ = driver(True)
    for one in ending:
        one.kill()
    process.stdin.close()
    assert process.wait(5) == 0
    ended(watching, guardian.GRACE_S - 1)


def test_a_sweep_can_do_without_it(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    guardian.Guardian().started()


SPEAKER = """
import os, signal, sys
from kvstream.sweep.lastword import LastWord
with LastWord(r"it's over; $HOME `id` %s \\n") as last:
    {what}
"""


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("pass", 0, False),
        ("sys.exit(3)", 3, False),
        ("os.kill(0, signal.SIGINT)", -signal.SIGINT, False),  # a terminal's Ctrl-C reaches the whole group
        ("os._exit(1)", 1, True),
        ("os.kill(0, signal.SIGTERM)", -signal.SIGTERM, True),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, True),
        ("sys.stdin.read(1); last._shell.terminate(); os._exit(1)", 1, True),
    ],
)
def test_a_last_word_is_said_where_a_process_cannot(what, code, said):
    command = [sys.executable, "-c", SPEAKER.format(what=what)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    if "stdin" in what:
        [shell] = until(lambda: psutil.Process(process.pid).children(), 20, "the shell")
        until(lambda: ignores(shell, signal.SIGTERM), 20, "what it ignores")
    out, err = process.communicate("x" if "stdin" in what else None, timeout=60)
    assert process.returncode == code
    words = "\nit's over; $HOME `id` %s \\n\n"
    assert err == words if said else words not in err
    assert not out


def test_one_can_do_without_a_last_word(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    with LastWord("nothing"):
        pass
