"""How wide numbers are: the widest of a device, in which what adds up over a text is kept, and products of float32."""

from __future__ import annotations

from typing import Any

import torch

LEGACY = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


def exact_dtype(like: torch.Tensor) -> torch.dtype:
    """The widest numbers that a tensor's device has: Apple's has no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def float32_products(kind: str) -> str:
    """How torch was told to multiply float32 on this kind of device: `tf32`, `bf16`, else `ieee`.

    Its newer names (https://docs.pytorch.org/docs/stable/notes/cuda.html#tf32-on-ampere) also say what was told by the
    older ones, which raise an error where the newer were used.
    """
    if kind not in ("cpu", "cuda"):
        return "ieee"
    backend: Any = torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn
    told = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if told is None:  # torch 2.8
        older = LEGACY[torch.get_float32_matmul_precision()]
        told = older if kind == "cpu" else "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return told if told in ("tf32", "bf16") else "ieee"
