"""How many threads a compiled loop is worth, measured as it goes: handing work over costs more than small work does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import torch

from kvstream.engine.backends.team import run_all

Piece = Callable[[slice], None]


@dataclass
class Pace:
    """How fast this machine works, and hands work over.

    seconds: of one thread for one unit of work, the best that was seen. handing: to two threads and back.
    """

    seconds: float = inf
    handing: float = 0.0

    def spread(self, piece: Piece, sets: int, work: int) -> None:
        """Do `piece` of all of 0 … sets − 1, in as many of torch's threads as are worth it; work: in all, in units."""
        most = min(torch.get_num_threads(), sets)
        if most > 1 and not self.handing:
            self.handing = min(_seconds(_nothing, [slice(0, 1)] * 2) for _ in range(9))
        worth = most if most == 1 or self.seconds == inf else work * self.seconds / self.handing
        threads = int(min(most, max(1, worth)))
        took = _seconds(piece, [slice(sets * n // threads, sets * (n + 1) // threads) for n in range(threads)])
        self.seconds = min(self.seconds, took * threads / work)


PACE = Pace()


def _seconds(piece: Piece, pieces: list[slice]) -> float:
    """Do all pieces, each in a thread of its own if there are several; returns how long that took."""
    started = time.perf_counter()
    run_all([partial(piece, part) for part in pieces])
    return time.perf_counter() - started


def _nothing(_: slice) -> None:
    pass
