"""Kernels in Triton for NVIDIA's GPUs, and the backend that is made of them. This file alone needs no Triton."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)  # of a card: products of bfloat16 and of TF32


@cache
def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compute with a dtype on a CUDA device: Triton is installed, and the card is new enough."""
    if dtype not in DTYPES or torch.version.cuda is None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
