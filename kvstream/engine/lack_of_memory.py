"""Whether an error is for want of a device's memory, however it says so."""

from __future__ import annotations

import torch

WORDS = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")  # of Apple's GPUs, CUDA's libraries, CPUs


def lacks_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that it came from, is that a device had no memory left.

    What ends the recording of a CUDA graph that lacks memory is another error, which hides the first.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
