"""How many threads a compiled loop is worth, measured as it goes: handing work over costs more than small work does."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from kvstream.engine.backends.team import run_all

Piece = Callable[[slice], None]
TRIES = 9  # of one thread and of all, of which the median counts: the first may have compiled, and any been disturbed


class Pace:
    """Which is quicker on this machine for work of about a size, one thread or all of torch's.

    A single token finds less in a core's caches than a chunk, so that each size, in powers of two, has its own answer.
    """

    def __init__(self) -> None:
        # By size and number of threads the last seconds per unit of work.
        self.taken: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=TRIES))

    def spread(self, piece: Piece, sets: int, work: int) -> None:
        """Do `piece` of all of 0 … sets − 1, in torch's threads or in this alone; work: in all, in units."""
        known = {n: self.taken[work.bit_length(), n] for n in (min(torch.get_num_threads(), sets), 1)}
        threads = min(known, key=lambda n: median(known[n]) if len(known[n]) == TRIES else 0.0)
        took = _seconds(piece, [slice(sets * n // threads, sets * (n + 1) // threads) for n in range(threads)])
        known[threads].append(took / work)


PACES: dict[str, Pace] = defaultdict(Pace)  # by what is done: a unit of one kind of work takes longer than of another


def _seconds(piece: Piece, pieces: list[slice]) -> float:
    """Do all pieces, each in a thread of its own if there are as many; returns how long that took."""
    started = time.perf_counter()
    run_all([partial(piece, part) for part in pieces])
    return time.perf_counter() - started
