"""How attention is computed on each kind of device: one backend each, and one function that chooses.

Nothing else in the engine asks what a device is. What a backend does is said where it is done plainly: `Reference`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kvstream.engine.backends.cpu import Cpu
from kvstream.engine.backends.cuda import serves
from kvstream.engine.backends.reference import Reference


def backend_for(device: torch.device, dtype: torch.dtype) -> Reference:
    """Choose the backend for keys of a dtype on a device: `cpu`, `cuda`, or where neither serves `reference`."""
    if device.type == "cpu":
        return Cpu(device)
    if device.type != "cuda" or not serves(device, dtype):
        return Reference(device)
    from kvstream.engine.backends.cuda.backend import Cuda  # which needs Triton

    return Cuda(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """How long an action takes, until a device has done all of it."""
    synchronize(device)
    started = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all it was given, where it has a queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
