"""The guardian of a Ray ends what a killed driver leaves of it, nothing else, and itself."""

import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from kvstream import guardian

# A driver with a process of before and one of Ray's, which print their ids.
DRIVER = """
import os, subprocess, sys, time
from kvstream.guardian import Guardian

def asleep():
    print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=True).pid, flush=True)

asleep()
time.sleep(0.05)  # the system counts a process's age in hundredths of a second
guardian = Guardian()
asleep()
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


@pytest.fixture
def driver():
    """Start such a driver: (told) → it, the process of before, the one of Ray, the guardian."""
    left = []

    def start(told):
        command = [sys.executable, "-c", DRIVER.format(told=told)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        before, ray = [psutil.Process(int(process.stdout.readline())) for _ in range(2)]
        children = psutil.Process(process.pid).children()
        [watching] = [child for child in children if guardian.__file__ in child.cmdline()]
        left.extend([before, ray, watching, psutil.Process(process.pid)])
        time.sleep(1)  # it starts, and looks
        return process, before, ray, watching

    yield start
    for process in filter(lives, left):
        process.kill()


@pytest.mark.parametrize("told", [False, True], ids=["while Ray starts", "while Ray runs"])
def test_what_outlives_a_killed_driver_is_ended(driver, told):
    process, before, ray, watching = driver(told)
    for number in (signal.SIGINT, signal.SIGTERM):
        watching.send_signal(number)
    process.kill()
    process.wait()
    time.sleep(guardian.GRACE_S / 2)
    assert lives(ray), "Ray has time to end by itself"
    ended(watching, guardian.GRACE_S)
    assert not lives(ray)
    assert lives(before)


def test_it_ends_at_once_where_nothing_is_left(driver):
    process, _, ray, watching = driver(True)
    ray.kill()
    process.stdin.close()
    assert process.wait(5) == 0
    ended(watching, 1)
