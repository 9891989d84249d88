"""Signs that a machine was busy with something else while latencies were measured. Linux tells most; others less."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STEAL_LIMIT = 0.01  # share of processor time that a hypervisor gave to others
IDLE_LIMIT = 0.25  # share of the cores that others may have kept busy before we start


@dataclass(frozen=True)
class Before:
    """The machine before a measurement."""

    load: float
    jiffies: tuple[int, int] | None


def before() -> Before:
    """Look at the machine before a measurement starts."""
    return Before(os.getloadavg()[0], _jiffies())


def after(start: Before) -> dict[str, float | str | None]:
    """Describe what else the machine did since `start`: flat JSON values, `noisy` naming the reasons, or None."""
    steal = None
    if start.jiffies and (now := _jiffies()):
        total = now[1] - start.jiffies[1]
        steal = (now[0] - start.jiffies[0]) / total if total else 0.0
    reasons = []
    if steal is not None and steal > STEAL_LIMIT:
        reasons.append(f"{100 * steal:.1f} % of processor time stolen")
    if start.load > IDLE_LIMIT * (os.cpu_count() or 1):
        reasons.append(f"load {start.load:.1f} before the start")
    return {
        "load_before": start.load,
        "load_after": os.getloadavg()[0],
        "steal": steal,
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.exists() else None,
        "noisy": "; ".join(reasons) or None,
    }


def _jiffies() -> tuple[int, int] | None:
    """Stolen and total processor time since boot."""
    try:
        fields = [int(value) for value in STAT.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return fields[7], sum(fields)
