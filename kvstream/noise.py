"""Signs that a machine was busy with something else while latencies were measured. Linux tells most; others less."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

STAT = Path("/proc/stat")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STEAL_LIMIT = 0.01  # share of processor time that a hypervisor gave to others
OTHERS_LIMIT = 0.1  # CPU cores that other processes kept busy
LOAD_LIMIT = 0.5  # processes waiting or running, on average over a minute, beside the measurement's threads


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
    """Describe what else the machine did since `start`: flat JSON values, `noisy` naming the reasons, or None."""
    steal = others = None
    if start.processors and (now := _processors()):
        then = start.processors
        steal = (now.stolen - then.stolen) / max(now.total - then.total, 1e-9)
        busy_with_others = (now.busy - then.busy) - (now.own - then.own)
        others = max(0.0, busy_with_others / max(time.monotonic() - start.seconds, 1e-9))
    load_after = os.getloadavg()[0]
    reasons = []
    if steal is not None and steal > STEAL_LIMIT:
        reasons.append(f"{100 * steal:.1f} % of processor time stolen")
    if others is not None and others > OTHERS_LIMIT:
        reasons.append(f"other processes used {others:.1f} CPU cores")
    # Where the kernel does not tell whose time it was, load beyond the measurement's threads was somebody else's.
    if others is None and load_after > torch.get_num_threads() + LOAD_LIMIT:
        reasons.append(f"load {load_after:.1f} with {torch.get_num_threads()} threads at work")
    return {
        "load_before": start.load,
        "load_after": load_after,
        "steal": steal,
        "others": others,
        "governor": _governor(),
        "noisy": "; ".join(reasons) or None,
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
