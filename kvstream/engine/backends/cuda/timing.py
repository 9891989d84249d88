"""How long a card takes for work, and when that tells it apart from other work. Needs no Triton."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

ROUNDS = 5  # of which the quickest counts: whatever else a card does makes others slower
CLEARLY = 0.95  # of the first's time: what is as quick is not taken, so that equal cards choose, and round, alike
AHEAD = 10_000_000  # cycles, some milliseconds


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds that a card takes for work which was done once before."""
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]
        torch.cuda._sleep(AHEAD)  # so that launches are there before the card is, and take none of its time
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        marks[-1].synchronize()  # not the whole card: another thread may be recording a step on it
    return min(before.elapsed_time(after) for before, after in pairwise(marks))
