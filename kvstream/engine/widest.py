"""The widest numbers there are on each kind of device, in which what adds up over a text is kept."""

from __future__ import annotations

import torch


def exact_dtype(like: torch.Tensor) -> torch.dtype:
    """The widest numbers that a tensor's device has: Apple's has no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64
