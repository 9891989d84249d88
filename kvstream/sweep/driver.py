"""Has workers compute cells, phase by phase, until none is left, and has what comes of them written down. Knows no Ray.

`scheduler` says what a worker does next, `pool` what happened, `results` what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvstream.grid.cells import Cell, LatencyCell, QualityCell, RecomputeCell
from kvstream.grid.memory_needed import needed_bytes, side_by_side
from kvstream.sweep.interrupt import Interrupt
from kvstream.sweep.jobs import jobs_of
from kvstream.sweep.pool import Failed, Lost, Node, Pool, Slots
from kvstream.sweep.results import Results
from kvstream.sweep.scheduler import Scheduler, phases
from kvstream.sweep.work import Check, Recomputing, Timing, Work

WAIT_S = 1.0  # how long the driver waits at a time, so that it notices a Ctrl-C


@dataclass
class Driver:
    """Computes cells with the workers that `pool_for` gives."""

    slots: Slots  # for quality cells
    latency_slots: Slots
    nodes: list[Node]
    pool_for: Callable[[Slots, list[Node]], Pool]
    results: Results
    interrupt: Interrupt
    refused: dict[str, BaseException] = field(default_factory=dict)  # models, and why

    def measure(self, cells: Sequence[Cell]) -> None:
        """Compute all cells; raises NothingLeft."""
        for phase in phases(cells):
            if self.interrupt.draining:
                return
            spec = phase[0].model.spec
            if spec in self.refused:
                self.results.refused(phase, self.refused[spec], told=True)
            else:
                self._phase(phase)

    def _phase(self, cells: list[Cell]) -> None:
        """Compute cells of one model and kind."""
        timed = isinstance(cells[0], LatencyCell)
        pool = self.pool_for(self.latency_slots if timed else self.slots, self.nodes)
        try:
            pool.load(cells[0], self.results.reporter.say)
        except Exception as error:
            self._refuse(cells, error)
            return
        check = Check(cells=tuple(cells))
        try:
            self._drive(pool, Scheduler(check, self._works(cells), self.results.resumed, self.results.note))
        except BaseException:
            pool.close()
            raise
        if self.interrupt.stopping:
            pool.close()

    def _works(self, cells: Sequence[Cell]) -> list[Work]:
        timings: list[Work] = [Timing(cells=(cell,)) for cell in cells if isinstance(cell, LatencyCell)]
        quality = [cell for cell in cells if isinstance(cell, QualityCell)]
        at_once = 1  # a CPU is busy with one text
        if quality and self.slots.device != "cpu":
            least = min(map(needed_bytes, quality))
            able = [node.memory for node in self.nodes if node.memory >= least]
            at_once = side_by_side(quality, min(able, default=0))
        if at_once > 1:
            self.results.reporter.say(f"up to {at_once} texts side by side, as many as half of a GPU's memory holds")
        windows = [Recomputing(cells=(cell,)) for cell in cells if isinstance(cell, RecomputeCell)]
        return [*timings, *jobs_of(quality, at_once), *windows]

    def _drive(self, pool: Pool, scheduler: Scheduler) -> None:
        self._hand_out(pool, scheduler)
        while not (scheduler.over or self.interrupt.stopping):
            if not (scheduler.in_flight or pool.starting()) and pool.idle():
                lacking = RuntimeError("no machine that is left has the memory that it needs")
                for work in scheduler.give_up():
                    self._give_up(work, lacking)
                continue
            happened = pool.wait(WAIT_S)
            settled = [(event, scheduler.settle(event)) for event in happened]
            self._hand_out(pool, scheduler)  # before anything is written: no worker waits for a disk
            for event, failed in settled:
                self.results.take(event)
                if failed and isinstance(event, Failed | Lost):
                    self._give_up(failed, event.error)

    def _hand_out(self, pool: Pool, scheduler: Scheduler) -> None:
        """Give every worker one piece of work, and then what may wait behind it."""
        scheduler.stopped |= self.interrupt.draining
        sent = True
        while sent:
            sent = False
            for worker in pool.idle():
                if work := scheduler.next(worker):
                    if isinstance(work, Check):
                        self.results.reporter.say(f"checking {work.cells[0].model.spec}")
                    pool.send(worker, work)
                    sent = True

    def _give_up(self, work: Work, error: BaseException) -> None:
        if isinstance(work, Check):
            self._refuse(work.cells, error)
        else:
            self.results.failed(work, error)

    def _refuse(self, cells: Sequence[Cell], error: BaseException) -> None:
        self.refused[cells[0].model.spec] = error
        self.results.refused(cells, error, told=False)
