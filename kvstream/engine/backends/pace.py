"""How many threads a compiled loop is worth, measured as it goes: handing work over costs more than small work does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from math import inf

import torch

from kvstream.engine.backends.team import run_all

Piece = Callable[[slice], None]


@dataclass
class Pace:
    """How fast this machine works: seconds of one thread for one unit of work, the best that was seen.

    seconds: by how large the work was, in powers of two. A single token finds less in a core's caches than a chunk.
    """

    seconds: dict[int, float] = field(default_factory=dict)

    def spread(self, piece: Piece, sets: int, work: int) -> None:
        """Do `piece` of all of 0 … sets − 1, in torch's threads or, if less work, in this; work: in all, in units."""
        threads, size = min(torch.get_num_threads(), sets), work.bit_length()
        best = self.seconds.get(size, inf)
        if threads > 1 and work * best * (1 - 1 / threads) < handing(torch.get_num_threads()):
            threads = 1
        took = _seconds(piece, [slice(sets * n // threads, sets * (n + 1) // threads) for n in range(threads)])
        self.seconds[size] = min(best, took * threads / work)


PACE = Pace()


@cache
def handing(threads: int) -> float:  # noqa: ARG001 - what is cached depends on it
    """How many seconds it takes to hand work over to so many threads, those that torch has now, and back."""
    return min(_seconds(_nothing, [slice(0, 1)] * 2) for _ in range(9))


def _seconds(piece: Piece, pieces: list[slice]) -> float:
    """Do all pieces, each in a thread of its own if there are as many; returns how long that took."""
    started = time.perf_counter()
    run_all([partial(piece, part) for part in pieces])
    return time.perf_counter() - started


def _nothing(_: slice) -> None:
    pass
