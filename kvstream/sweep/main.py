"""A sweep from the command line: finished cells drop out, the others fan out over the machines there are.

Whatever can be known to fail is said before a model is loaded, in one line.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from kvstream.grid.axes import Grid
from kvstream.grid.cells import Cell, LatencyCell, QualityCell
from kvstream.grid.exits import leave, refuse
from kvstream.grid.flags import Options, parse_flags
from kvstream.sweep.interrupt import Interrupt, Lost

if TYPE_CHECKING:
    from kvstream.grid.planning import Source
    from kvstream.records.store import Records
    from kvstream.sweep.cluster import Node, Slots
    from kvstream.sweep.results import Ledger


def main(grid: Grid, manual: str, arguments: Sequence[str] | None = None) -> None:
    """Run a sweep from the command line and end the program: exit code 0, 1 if a cell failed, 2 for invalid input.

    manual: what `--help` shows, the sweep's docstring; its first paragraph is the question that records carry, unless
    flags replaced an axis of the grid.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked, options = parse_flags(grid, manual, arguments)
        own = replace(asked, repeats=grid.repeats) == grid  # how often something is measured is not what is asked
        question = " ".join(manual.strip().partition("\n\n")[0].split()) if own else question_of(asked)
        unfinished = run(asked, question, options)
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        leave(130)
    except Lost:
        # Its traceback holds buffers of Ray's store: to release them without that Ray would end the process here.
        leave(1, at_once=True)
    leave(1 if unfinished else 0)


def question_of(grid: Grid) -> str:
    """Put into words what a grid asks, where no docstring does."""
    policies = f"do {len(grid.policies)} policies" if len(grid.policies) > 1 else f"does {grid.policies[0]}"
    words = [f"What {policies} cost and gain on {_and(grid.models)}?"]
    if grid.lengths:
        documents = f"{grid.documents} documents" if grid.documents > 1 else "1 document"
        words.append(f"Perplexity over the first {_and(grid.lengths)} tokens of {documents} of {grid.text}.")
    if grid.contexts:
        batches = "" if grid.batches == (1,) else f", {_and(grid.batches)} texts at once"
        words.append(f"Latency after {_and(grid.contexts)} tokens{batches}.")
    return " ".join(words)


def _and(items: Sequence[str] | Sequence[int]) -> str:
    """List names or numbers as a sentence does."""
    *first, last = (item if isinstance(item, str) else f"{item:,}" for item in items)
    return f"{', '.join(first)} and {last}" if first else last


def run(grid: Grid, question: str, options: Options) -> int:
    """Measure what the records in `options.out` lack of `grid`; count the cells that failed or were not reached.

    Where nothing is lacking, no Ray is started. Raises ValueError for whatever can be known to fail before a model is
    loaded, and Lost if Ray ends or has no machine left.
    """
    from kvstream.grid import planning
    from kvstream.records.store import Records
    from kvstream.sweep import cluster
    from kvstream.sweep.dry_run import describe
    from kvstream.sweep.ray_address import answering

    cluster.refuse_lost(options.out)
    where = None if options.dry_run else answering()
    if not where and not options.dry_run:
        cluster.refuse_lacking(options.device, options.threads)
    sweep = Sweep(grid, question, options, planning.prepare(grid), Records(options.out))
    auto = options.device == "auto"
    if options.dry_run:
        describe(grid, question, sweep.span(cluster.device_here() if auto else options.device), sweep.records)
        return 0
    with sweep.records.locked():
        if not (where and auto):  # else only the cluster knows the device
            sweep.look(cluster.device_here() if auto else options.device)
        return sweep.finish(where)


@dataclass
class Sweep:
    """A grid whose models and texts are known, the records that are to hold its cells, and what of them is there."""

    grid: Grid
    question: str
    options: Options
    sources: list[Source]
    records: Records
    device: str | None = None  # for which the following were found
    cells: list[Cell] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)

    def span(self, device: str) -> list[Cell]:
        """All cells of the grid on a device."""
        from kvstream.grid import planning as planning

        axes = self.grid, self.sources, device, self.options.dtype
        return [*planning.quality_cells(*axes), *planning.latency_cells(*axes, self.options.threads)]

    def look(self, device: str) -> None:
        """Find out which cells are finished, unless that is known."""
        if device != self.device:
            self.device, self.cells = device, self.span(device)
            self.finished = self.records.finished([cell.key for cell in self.cells])

    @property
    def missing(self) -> list[Cell]:
        """The cells that are not finished."""
        return [cell for cell in self.cells if cell.key not in self.finished]

    def finish(self, where: str | None) -> int:
        """Measure what is missing on the Ray that answers at `where`, else on one of this machine; count what is left.

        Tells last how to look at the records.
        """
        if self.cells and not self.missing:
            self._begin({})
            unfinished = 0
        else:
            unfinished = self._measure_on(where)
        if unfinished < len(self.cells):
            print(f"report: python analysis/report.py --records {shlex.quote(self.options.out)}")
        return unfinished

    def _measure_on(self, where: str | None) -> int:
        from kvstream.grid.memory_needed import needed_bytes, too_large
        from kvstream.records import disk_space
        from kvstream.sweep import cluster

        options = self.options
        disk_space.require_writable(self.records)
        nodes = cluster.connect(where)
        device = cluster.choose_device(options.device, options.dtype, nodes)
        nodes = cluster.fit_for(device, nodes, options.threads)
        self.look(device)
        available = max(node.memory for node in nodes)
        refused = {cell: why for cell in self.missing if (why := too_large(cell, available))}
        if refused and len(refused) == len(self.cells):
            raise ValueError(next(iter(refused.values())))
        todo = [cell for cell in self.missing if cell not in refused]
        evaluated = [cell for cell in todo if isinstance(cell, QualityCell)]
        largest = max(map(needed_bytes, evaluated), default=0.0)
        slots = cluster.divide(device, nodes, options.threads, len(evaluated), largest)
        disk_space.require_room(self.records, todo, slots.count)
        self._begin(refused)
        return len(refused) + (_measure(todo, slots, nodes, self.records) if todo else 0)

    def _begin(self, refused: dict[Cell, str]) -> None:
        """Write down what the sweep consists of, and tell how much of it is to do, and what cannot be done."""
        from kvstream.records.long_cells import tidy

        self.records.plan(self.grid, self.question, self.cells)
        self.records.forget_failures()
        counted = f"{len(self.cells)} cells, {len(self.finished)} finished before"
        todo = len(self.missing) - len(refused)
        print(f"{self.grid.name}: {counted}, {todo} to do → {self.options.out}", flush=True)
        if others := tidy(self.records, self.finished, {cell.key for cell in self.cells}):
            told = "long cells that other code or another grid has begun lie in"
            print(f"{others} {told} {self.options.out}, unfinished")
        for cell, why in refused.items():
            self.records.fail(cell.key, cell.fields, why, 0)
            print(f"not run: {why}", file=sys.stderr)


def _measure(cells: list[Cell], slots: Slots, nodes: list[Node], records: Records) -> int:
    """Quality cells first, side by side; then latency cells, alone. Counts those that failed or were not reached.

    Raises Lost, once its reason is said.
    """
    from kvstream.sweep.fleet import Fleet
    from kvstream.sweep.lastword import LastWord
    from kvstream.sweep.progress import Reporter
    from kvstream.sweep.results import Ledger
    from kvstream.sweep.watch import AGAIN

    reporter = Reporter(len(cells), sum(cell.tokens for cell in cells))
    ledger = Ledger(records, reporter)
    killed = f"stopping: the sweep was killed, or the Ray on this machine ended and took it along; {AGAIN}"
    with Interrupt() as interrupt, LastWord(killed):
        try:
            with reporter:
                fleet = Fleet(slots, nodes, ledger, interrupt)
                quality = [cell for cell in cells if isinstance(cell, QualityCell)]
                latency = [cell for cell in cells if isinstance(cell, LatencyCell)]
                for _, evaluated in groupby(quality, key=lambda cell: cell.model):
                    fleet.evaluate(list(evaluated))
                for _, timed in groupby(latency, key=lambda cell: cell.model):
                    fleet.time(list(timed))
        except Lost as lost:
            print(f"stopping: {lost}", file=sys.stderr)
            _unfinished(ledger, len(cells))
            raise
        return _unfinished(ledger, len(cells))


def _unfinished(ledger: Ledger, cells: int) -> int:
    """Count the cells that failed or were not reached, and tell so."""
    if unfinished := cells - ledger.finished:
        print(f"{unfinished} of {cells} cells are not finished; the same command tries them again", file=sys.stderr)
    return unfinished
