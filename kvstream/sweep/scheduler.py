"""Which piece of work goes to which worker next, and what follows from what a worker did. Knows no Ray.

The rules, for the cells of one model and kind; `phases` says in which order these come:

* The model is checked first, by the first worker that asks and can hold it. If it is refused, all its cells are.
* A worker stays with its text, whose first tokens it has replayed; else it takes a text that no other has, else the
  one with most to do. A long text's next part comes before all texts, and so does what is tried again.
* A worker has one piece of work, and one more behind it as long as at least one for each worker waits.
* Work goes where there is memory for it beside what else is computed there.
* What a worker failed at or left behind is tried again, if `retries` says so.
* Texts side by side that ran out of memory are halved, down to one. So is work, right before it would be sent, of which
  `memory_limits` expects the same, with all such work on these texts, so that it goes on sharing first tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvstream.grid.cells import Cell, LatencyCell
from kvstream.sweep.jobs import Job
from kvstream.sweep.memory_limits import MemoryLimits
from kvstream.sweep.pool import Event, Failed, Lost, Told, WorkerInfo
from kvstream.sweep.retries import to_try_again
from kvstream.sweep.waiting import Waiting
from kvstream.sweep.work import Work

IN_FLIGHT = 2  # per worker: what it computes, and what waits so that the worker need not


def phases(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells in the order in which they are computed: quality first, then latency, one model at a time."""
    latency = [cell for cell in cells if isinstance(cell, LatencyCell)]
    quality = [cell for cell in cells if not isinstance(cell, LatencyCell)]
    groups: list[list[Cell]] = []
    for kind in (quality, latency):
        by_model: dict[object, list[Cell]] = {}
        for cell in kind:
            by_model.setdefault(cell.model, []).append(cell)
        groups += by_model.values()
    return groups


class Scheduler:
    """Hands out the work of one phase. Stopped, it hands out nothing new, and is over when workers have nothing left.

    prepare: what becomes of work right before it is sent, such as a job that goes on from its last part.
    say: tells the user a line.
    """

    def __init__(
        self,
        check: Work,
        works: Iterable[Work],
        prepare: Callable[[Any], Any] = lambda work: work,
        say: Callable[[str], None] = print,
    ) -> None:
        self.check: Work | None = check  # as long as it is not passed
        self.prepare = prepare
        self.stopped = False
        self._waiting = Waiting(list(works))
        self._limits = MemoryLimits(say)
        self._held: dict[str, list[Work]] = {}  # by worker
        self._workers: dict[str, WorkerInfo] = {}

    @property
    def waiting(self) -> int:
        """How many pieces of work no worker has yet."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """How many pieces of work the workers have."""
        return sum(map(len, self._held.values()))

    @property
    def over(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self.in_flight and (self.stopped or not self.waiting)

    def next(self, worker: WorkerInfo) -> Work | None:
        """What this worker is to do, now or after what it has; None if nothing."""
        self._workers[worker.id] = worker
        held = self._held.setdefault(worker.id, [])
        if self.stopped or len(held) >= IN_FLIGHT or (held and self.waiting < len(self._workers)):
            return None
        if self.check:
            fits = self.check.memory_bytes <= worker.memory_bytes
            work = self.check if fits and not self.in_flight else None
        elif work := self._taken(worker):
            self._waiting.stays(worker.id, work.text)
            work = self.prepare(work)
        if work:
            held.append(work)
        return work

    def settle(self, event: Event) -> Work | None:
        """Take note of what happened; returns what failed for good, by the event's error."""
        if isinstance(event, Lost):
            return self._lost(event)
        if isinstance(event, Told):
            return None
        self._held[event.worker.id].remove(event.work)
        if isinstance(event, Failed):
            return self._failed(event.work, event)
        if event.work is self.check:
            self.check = None
        elif isinstance(event.work, Job) and not event.work.ends:
            results, _ = event.result
            self._waiting.put_first([event.work.followed(results[0].state)])
        return None

    def give_up(self) -> list[Work]:
        """Take back what waits, if no worker there is can hold it: to be asked when all of them are idle."""
        return self._waiting.take_all()

    def _lost(self, event: Lost) -> Work | None:
        self._workers.pop(event.worker.id, None)
        self._waiting.leaves(event.worker.id)
        held = self._held.pop(event.worker.id, [])
        self._waiting.put_first(held[1:])
        return self._failed(held[0], event) if held else None

    def _failed(self, work: Work, event: Failed | Lost) -> Work | None:
        if isinstance(work, Job) and self._limits.met(work, event):
            self._waiting.put_by_text(work.halves())
            return None
        again = to_try_again(work, event)
        if not again:
            self.stopped |= work is self.check
            return work
        if work is self.check:
            [self.check] = again
        else:
            self._waiting.put_first(again)
        return None

    def _taken(self, worker: WorkerInfo) -> Work | None:
        """Choose work for a worker, and take it out of what waits."""
        room = worker.memory_bytes - self._used_beside(worker)
        for queue in self._waiting.by_preference(worker.id):
            if work := next((work for work in queue if work.memory_bytes <= room), None):
                if self._limits.exceeded(work, worker):
                    self._halve(queue, worker)
                    return self._taken(worker)
                self._waiting.take(work, queue)
                return work
        return None

    def _halve(self, queue: deque[Work], worker: WorkerInfo) -> None:
        """Halve all in a queue that is too much for such a worker."""
        for work in list(queue):
            if isinstance(work, Job) and self._limits.exceeded(work, worker):
                self._waiting.take(work, queue)
                self._waiting.put_by_text(work.halves())

    def _used_beside(self, worker: WorkerInfo) -> float:
        """Bytes that other workers take of this one's memory: each computes one piece of work at a time."""
        used = 0.0
        for id, held in self._held.items():
            if held and id != worker.id and self._workers[id].memory_of == worker.memory_of:
                used += max(work.memory_bytes for work in held)
        return used
