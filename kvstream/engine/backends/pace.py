"""How many threads a compiled loop is worth, measured as it goes: handing work over costs more than small work does."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from statistics import median_low
from threading import Lock

import torch

from kvstream.engine.backends.team import run_all

Piece = Callable[[slice], None]
RUN = 8  # calls in a row with one number of threads, the first of which find caches as the other left them
LONG_S = 2e-3  # a call that takes more is a run by itself
FIRST = 4  # runs of each number before the first choice; later ones follow one more of each
TRIES = 7  # the last of each, whose median counts: any may have been disturbed
AGAIN = 64  # of so many calls' time one's goes to the slower number, as what else the machine does changes


class Pace:
    """Which is quicker on this machine for work of about a size, one thread or all of torch's.

    A single token finds less in a core's caches than a chunk, so that each size, in powers of two, has its own answer.
    """

    def __init__(self) -> None:
        # By size and number of threads the last seconds per unit of work.
        self.taken: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=TRIES))
        # By size and the most threads there may be: those of the calls that are still to be timed, the last one first;
        # and what was found, and for how many calls more it holds.
        self.tries: dict[tuple[int, int], list[int]] = {}
        self.settled: dict[tuple[int, int], tuple[int, int]] = {}
        self.trying = Lock()

    def spread(self, piece: Piece, sets: int, work: int) -> None:
        """Do `piece` of all of 0 … sets − 1, in torch's threads or in this alone; work: in all, in units."""
        size, most = work.bit_length(), min(torch.get_num_threads(), sets)
        if most == 1:
            run_all(pieces(piece, sets, 1))
            return
        threads, calls = self.settled.get((size, most), (1, 0))
        if calls:
            self.settled[size, most] = threads, calls - 1
            run_all(pieces(piece, sets, threads))
            return
        with self.trying:
            self._try(piece, sets, work, most)

    def _try(self, piece: Piece, sets: int, work: int, most: int) -> None:
        """Do the same, and learn from it: both numbers in turns, so that they meet the same moments."""
        size, numbers = work.bit_length(), (most, 1)
        tries = self.tries.setdefault((size, most), [])
        if not tries:
            runs = 1 if all(len(self.taken[size, n]) == TRIES for n in numbers) else FIRST
            tries += [n for _ in range(runs) for n in reversed(numbers) for _ in range(RUN)]
        threads = tries.pop()
        took = _seconds(pieces(piece, sets, threads))
        self.taken[size, threads].append(took / work)
        if took > LONG_S:
            del tries[len(tries) - len(tries) % RUN :]
        if not tries:
            typical = {n: median_low(self.taken[size, n]) for n in numbers}
            best, slower = sorted(numbers, key=lambda n: typical[n])
            calls = AGAIN * (1 if typical[slower] * work > LONG_S else RUN)
            self.settled[size, most] = best, int(calls * typical[slower] / typical[best])


PACES: dict[str, Pace] = defaultdict(Pace)  # by what is done: a unit of one kind of work takes longer than of another


def pieces(piece: Piece, sets: int, threads: int) -> list[Callable[[], None]]:
    """Cut work into as many."""
    if threads == 1:
        return [partial(piece, slice(0, sets))]
    return [partial(piece, slice(sets * n // threads, sets * (n + 1) // threads)) for n in range(threads)]


def _seconds(jobs: list[Callable[[], None]]) -> float:
    """Do all jobs, each in a thread of its own if there are as many; returns how long that took."""
    started = time.perf_counter()
    run_all(jobs)
    return time.perf_counter() - started
