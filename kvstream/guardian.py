"""Ends what a killed sweep leaves of the Ray that it started.

When a driver dies without a word (SIGKILL, a lack of memory), Linux ends Ray's head and node with it, and these their
workers; but the node's agents try for a minute to report that to a head that is no more
(`ray/_private/process_watcher.py`). They erase whose they are, so a process must know them before: the guardian, which
the driver starts ahead of Ray and which ends soon after it, whatever happens. Run as a file, it imports no more than
psutil and waits for its driver without waking up.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

GRACE_S = 5.0  # Ray ends all but its agents within three seconds
LOOK_S = 0.2  # between two looks while Ray starts


class Guardian:
    """The driver's end of the pipe to its guardian. It is never closed: the system does that when the driver ends."""

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        command = [sys.executable, "-P", __file__, str(os.getpid())]
        quiet = subprocess.DEVNULL
        # In a session of its own, no Ctrl-C and no signal to the driver's group reaches it.
        subprocess.Popen(command, stdin=reading, stdout=quiet, stderr=quiet, start_new_session=True)
        os.close(reading)

    def started(self) -> None:
        """Tell it that Ray is complete, so that it looks once more and then only waits."""
        with suppress(OSError):  # somebody ended it
            os.write(self._writing, b"!")


def guard(driver: psutil.Process) -> None:
    """Note what processes the driver starts until it tells, wait for its end, and end those that outlive it."""
    born, family = psutil.Process().create_time(), set()
    pause: float | None = LOOK_S
    while True:
        told = bool(select.select([sys.stdin], [], [], pause)[0])
        if told and not os.read(sys.stdin.fileno(), 1):
            break
        with suppress(psutil.NoSuchProcess):
            family |= {child for child in driver.children(recursive=True) if child.create_time() >= born}
        if told:
            pause = None
    family.discard(psutil.Process())
    end = time.monotonic() + GRACE_S
    while (left := [process for process in family if _lives(process)]) and time.monotonic() < end:
        time.sleep(LOOK_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _lives(process: psutil.Process) -> bool:
    """Whether it runs. In a container without an init nobody takes the dead away."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends by itself, and not before its driver
    guard(psutil.Process(int(sys.argv[1])))
