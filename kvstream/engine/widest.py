"""How wide numbers are: the widest that a device has, in which what adds up over a text is kept, and TF32."""

from __future__ import annotations

from typing import Any

import torch


def exact_dtype(like: torch.Tensor) -> torch.dtype:
    """The widest numbers that a tensor's device has: Apple's has no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def in_tf32() -> bool:
    """Whether this process has GPUs multiply float32 in TF32."""
    matmul: Any = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # it was told so by torch's newer name, which then is the only one that answers
        return bool(matmul.fp32_precision == "tf32")
