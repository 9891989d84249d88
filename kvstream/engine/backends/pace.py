"""How many threads a compiled loop is worth, measured as it goes: handing work over costs more than small work does."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from kvstream.engine.backends.team import run_all

Piece = Callable[[slice], None]
TRIES = 9  # of one thread and of all, the last ones, whose median counts: any may have been disturbed
AGAIN = 64  # of so many calls' time one's goes to the slower number, as what else the machine does changes


class Pace:
    """Which is quicker on this machine for work of about a size, one thread or all of torch's.

    A single token finds less in a core's caches than a chunk, so that each size, in powers of two, has its own answer.
    """

    def __init__(self) -> None:
        # By size and number of threads the last seconds per unit of work.
        self.taken: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=TRIES))
        self.calls: Counter[int] = Counter()

    def spread(self, piece: Piece, sets: int, work: int) -> None:
        """Do `piece` of all of 0 … sets − 1, in torch's threads or in this alone; work: in all, in units."""
        size = work.bit_length()
        known = {n: self.taken[size, n] for n in (min(torch.get_num_threads(), sets), 1)}
        self.calls[size] += 1
        # In turns at first, so that both meet the same moments.
        typical = {n: median(taken or [0.0]) for n, taken in known.items()}
        threads, *other = sorted(known, key=lambda n: (len(known[n]), typical[n]))
        if other and all(len(taken) == TRIES for taken in known.values()):
            every = int(AGAIN * typical[other[0]] / typical[threads])
            threads = other[0] if self.calls[size] % every == 0 else threads
        took = _seconds(piece, [slice(sets * n // threads, sets * (n + 1) // threads) for n in range(threads)])
        known[threads].append(took / work)


PACES: dict[str, Pace] = defaultdict(Pace)  # by what is done: a unit of one kind of work takes longer than of another


def _seconds(piece: Piece, pieces: list[slice]) -> float:
    """Do all pieces, each in a thread of its own if there are as many; returns how long that took."""
    started = time.perf_counter()
    run_all([partial(piece, part) for part in pieces])
    return time.perf_counter() - started
