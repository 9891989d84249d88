"""Memory: what a device has, and the peak of some work above what was held before it. Knows nothing of caches.

CUDA's allocator counts by itself. On a CPU the kernel's high-water mark of the process is used, which Linux lets one
reset; where that is impossible (macOS) the process's memory is sampled, which sees less where freed memory is used
again. On MPS the driver's total is sampled.

What is compared with its equals is the memory of tensors. The process's differs by a factor of two for the same work:
an allocator keeps blocks that are freed, and more of them the longer the process runs.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.profiler import ProfilerActivity, profile

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
SAMPLE_S = 0.005


def gpu_bytes(device: str) -> int:
    """Bytes that a GPU has for tensors now: 0 where torch cannot use the device."""
    if device == "mps":
        return torch.mps.recommended_max_memory() if torch.backends.mps.is_available() else 0
    return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else 0


def peak_bytes(device: str, work: Callable[[], None]) -> int:
    """Run `work` and return the most bytes it held at any moment beyond those held before."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if device == "mps":
        return _sampled(torch.mps.driver_allocated_memory, work)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # free pages back to the kernel, else the work would use them again unseen
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return _sampled(lambda: psutil.Process().memory_info().rss, work)
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def peak_tensor_bytes(device: str, work: Callable[[], None]) -> int:
    """Run `work` and return the most bytes of tensors that it held at any moment beyond those held before.

    On a CPU torch's profiler notes each block, which takes time: work is not to be timed meanwhile.
    """
    if device != "cpu":
        return peak_bytes(device, work)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted:
        work()
    events: Any = noted.profiler.kineto_results.events()
    blocks = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = np.cumsum([size for _, size in sorted(blocks, key=lambda block: block[0])])
    return int(held.max(initial=0))


def _sampled(read: Callable[[], int], work: Callable[[], None]) -> int:
    before, peak, done = read(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, read())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:  # else it would go on beside what is timed later
        done.set()
        watcher.join()
    return max(peak, read()) - before


def _status_bytes(name: str) -> int:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
