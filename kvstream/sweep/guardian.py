"""Ends what a killed sweep leaves of the Ray that it started.

When a driver dies without a word (SIGKILL, a lack of memory), Linux ends Ray's head and node with it, and these their
workers; but the node's agents try for a minute to report that to a head that is no more
(`ray/_private/process_watcher.py`). They erase whose they are, so a process must know them before: the guardian, which
the driver starts ahead of Ray and which ends soon after it, whatever happens. Run as a file, it imports no more than
psutil and waits for its driver without waking up.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil

GRACE_S = 5.0  # Ray ends all but its agents within three seconds
OF_RAY = re.compile(r"(.*/)?(raylet|gcs_server)|ray::.*|.*/ray/.*\.py")  # a word of a process's command line


class Guardian:
    """The driver's end of the pipe to its guardian. It is never closed: the system does that when the driver ends."""

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        command = [sys.executable, "-P", __file__, str(os.getpid()), str(os.getsid(0))]
        quiet = subprocess.DEVNULL
        with suppress(OSError):  # a sweep can do without
            # In a session of its own, no Ctrl-C and no signal to the driver's group reaches it.
            subprocess.Popen(command, stdin=reading, stdout=quiet, stderr=quiet, start_new_session=True)
        os.close(reading)

    def started(self) -> None:
        """Tell it that all of Ray's processes are there."""
        with suppress(OSError):  # somebody ended it
            os.write(self._writing, b"!")


def guard(driver: int, session: int) -> None:
    """Wait for the end of a driver that leads or belongs to a session, and end what outlives it of its Ray."""
    family = None
    if sys.stdin.buffer.read(1):
        with suppress(psutil.Error):
            family = list(filter(_is_rays, psutil.Process(driver).children(recursive=True)))
        sys.stdin.buffer.read()
    end = time.monotonic() + GRACE_S
    while time.monotonic() < end and (family is None or any(map(_lives, family))):
        time.sleep(0.2)
    for process in _started_in(session) if family is None else family:
        with suppress(psutil.Error):
            if _lives(process):
                process.kill()


def _started_in(session: int) -> Iterator[psutil.Process]:
    """Find the Ray whose start the driver did not survive: these few seconds, nobody else started one there."""
    born = psutil.Process().create_time()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.create_time() >= born and _is_rays(process):
                yield process


def _is_rays(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(map(OF_RAY.fullmatch, process.cmdline()))
    return False


def _lives(process: psutil.Process) -> bool:
    """Whether it runs. In a container without an init nobody takes the dead away."""
    with suppress(psutil.Error):
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends by itself, and not before its driver
    guard(*map(int, sys.argv[1:]))
