"""What else a machine did while latencies were measured. Linux tells most; others less.

It describes and judges nothing: what a difference is worth is told by full against itself in the same cell.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Processors:
    """Processor time since boot, in seconds, over all cores; own: this process and its threads."""

    busy: float
    stolen: float
    total: float
    own: float


@dataclass(frozen=True)
class Before:
    """The machine before a measurement."""

    load: float
    seconds: float
    processors: Processors | None


def before() -> Before:
    """Look at the machine before a measurement starts."""
    return Before(os.getloadavg()[0], time.monotonic(), _processors())


def after(start: Before) -> dict[str, float | str | None]:
    """Describe what else the machine did since `start`, as flat JSON values.

    load_before, load_after: processes waiting or running, on average over a minute. steal: share of processor time that
    a hypervisor gave to others. others: CPU cores that other processes kept busy. governor: how the system chooses the
    processor's frequency. What the system does not tell is None.
    """
    steal = others = None
    if start.processors and (now := _processors()):
        then = start.processors
        steal = (now.stolen - then.stolen) / max(now.total - then.total, 1e-9)
        busy_with_others = (now.busy - then.busy) - (now.own - then.own)
        others = max(0.0, busy_with_others / max(time.monotonic() - start.seconds, 1e-9))
    return {
        "load_before": start.load,
        "load_after": os.getloadavg()[0],
        "steal": steal,
        "others": others,
        "governor": _governor(),
    }


def _governor() -> str | None:
    try:
        return GOVERNOR.read_text().strip()
    except OSError:
        return None


def _processors() -> Processors | None:
    try:
        fields = STAT.read_text().splitlines()[0].split()[1:9]
        user, nice, system, idle, waiting, hard, soft, stolen = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields)
    except (OSError, ValueError, IndexError):
        return None
    busy = user + nice + system + hard + soft
    return Processors(busy, stolen, busy + idle + waiting + stolen, sum(os.times()[:2]))
