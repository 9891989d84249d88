"""What else a machine did while latencies were measured. Linux tells most; others less.

It describes and judges nothing: what a difference is worth the report says, from this and from full against itself.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Before(NamedTuple):
    """The machine before a measurement: its load, the time, and seconds of all its cores and of this process."""

    load: float
    seconds: float
    cores: Any
    own: float


def before() -> Before:
    """Look at the machine before a measurement starts."""
    return Before(os.getloadavg()[0], time.monotonic(), psutil.cpu_times(), sum(os.times()[:2]))


def after(start: Before) -> dict[str, float | str | None]:
    """Describe what else the machine did since `start`, as flat JSON values.

    load_before, load_after: processes waiting or running, on average over a minute. steal: share of processor time that
    a hypervisor gave to others. others: CPU cores that other processes kept busy. governor: how the system chooses the
    processor's frequency. What the system does not tell is None.
    """
    now = psutil.cpu_times()
    spent = {name: getattr(now, name) - getattr(start.cores, name) for name in now._fields if "guest" not in name}
    busy = sum(seconds for name, seconds in spent.items() if name not in ("idle", "iowait", "steal"))
    others = busy - (sum(os.times()[:2]) - start.own)
    try:
        governor = GOVERNOR.read_text().strip()
    except OSError:
        governor = None
    return {
        "load_before": start.load,
        "load_after": os.getloadavg()[0],
        "steal": spent["steal"] / max(sum(spent.values()), 1e-9) if "steal" in spent else None,
        "others": max(0.0, others / max(time.monotonic() - start.seconds, 1e-9)),
        "governor": governor,
    }
