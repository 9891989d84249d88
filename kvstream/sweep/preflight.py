"""What a sweep asks, has to do, and will take, found before anything is computed. Knows no Ray.

A cell that no machine can hold is not run, and the others are; a sweep that cannot run at all ends here.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kvstream.grid.axes import Grid
from kvstream.grid.cells import Cell, QualityCell, TextCell
from kvstream.grid.flags import Options
from kvstream.grid.memory_needed import largest, needed_bytes, size_in_words, too_large
from kvstream.grid.planning import Source, latency_cells, quality_cells, recompute_cells
from kvstream.grid.terminal import counted, visible
from kvstream.records.long_cells import tidy
from kvstream.records.store import Records
from kvstream.sweep.pool import Node, Slots


def question_of(grid: Grid) -> str:
    """Put into words what a grid asks, for records and reports, where no sweep's docstring does."""
    policies = f"do {len(grid.policies)} policies" if len(grid.policies) > 1 else f"does {grid.policies[0]}"
    words = [f"What {policies} cost and gain on {_and(grid.models)}?"]
    if grid.lengths:
        documents = counted(grid.documents, "document")
        words.append(f"Perplexity over the first {_and(grid.lengths)} tokens of {documents} of {grid.text}.")
    if grid.contexts:
        batches = "" if grid.batches == (1,) else f", {_and(grid.batches)} texts at once"
        tokens = "token" if grid.contexts == (1,) else "tokens"
        words.append(f"Latency after {_and(grid.contexts)} {tokens}{batches}.")
    return " ".join(words)


def _and(items: Sequence[str] | Sequence[int]) -> str:
    """List names or numbers as a sentence does."""
    *first, last = (item if isinstance(item, str) else f"{item:,}" for item in items)
    return f"{', '.join(first)} and {last}" if first else last


@dataclass
class Plan:
    """A grid whose models and texts are known, the records that are to hold its cells, and what of them is there."""

    grid: Grid
    question: str
    options: Options
    sources: list[Source]
    records: Records
    device: str = ""  # for which the following were found
    cells: list[Cell] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    todo: list[Cell] = field(default_factory=list)  # what is to be computed
    refused: dict[Cell, str] = field(default_factory=dict)  # that no machine can hold, and why
    available: float = 0.0  # bytes of memory on the largest machine, infinite where it was not asked

    def look(self, device: str) -> None:
        """Find out which cells are finished, unless that is known."""
        if device != self.device:
            axes = self.grid, self.sources, device, self.options.dtype
            self.device = device
            latency = latency_cells(*axes, self.options.threads)
            cells = [*quality_cells(*axes), *recompute_cells(*axes), *latency]
            more = {cell: compared for cell in cells if (compared := compared_with_full(cell))}
            found = self.records.finished([cell.key for cell in (*cells, *more.values())])
            # A cell that was compared with full in another sweep holds all that is asked of one that is not.
            self.cells = [more[cell] if cell in more and more[cell].key in found else cell for cell in cells]
            self.finished = found & {cell.key for cell in self.cells}
            self.todo = [cell for cell in self.cells if cell.key not in self.finished]

    def describe(self) -> None:
        """Print the cells and what those would cost that are to do, and what cannot be done: `--dry-run`."""
        print(visible(self.question))
        for cell in self.cells:
            state = "  finished" if cell.key in self.finished else "  not run" if cell in self.refused else ""
            print(f"  {cell.key}  {cell}  {counted(cell.tokens, 'token')}{state}")
        tokens = sum(cell.tokens for cell in self.todo)
        tflop = sum(cell.tokens * cell.model.flops_per_token for cell in self.todo) / 1e12
        begin = ", and half a minute to begin" if self.todo else ""
        cells = counted(len(self.cells), "cell")
        refused = f", {len(self.refused):,} that no machine can hold" if self.refused else ""
        print(f"{self.grid.name}: {cells}, {len(self.finished):,} finished, {len(self.todo):,} to do{refused}")
        print(
            f"cost: {tokens:,} tokens, {tflop:,.1f} TFLOP beside attention; "
            f"at 50 GFLOP/s per CPU core, {tflop / 0.05 / 60:,.1f} core-minutes{begin}"
        )
        if self.todo:
            told = self.available < math.inf
            known = (
                f"{size_in_words(self.available)} are available" if told else "a GPU tells its own when the sweep runs"
            )
            print(f"memory: {largest(self.todo)}; {known}")
        self._tell_refused()

    def _tell_refused(self) -> None:
        """Say what cannot be run, each reason once."""
        for why, cells in Counter(self.refused.values()).items():
            print(f"not run: {why}{'' if cells == 1 else f' ({cells:,} cells)'}", file=sys.stderr)

    def refuse_too_large(self, nodes: list[Node]) -> None:
        """Take out what no machine can hold; ValueError if that is everything."""
        self.available = max(node.memory for node in nodes)
        self.refused = {cell: why for cell in self.todo if (why := too_large(cell, self.available))}
        if self.refused and len(self.refused) == len(self.cells):
            raise ValueError(next(iter(self.refused.values())))
        self.todo = [cell for cell in self.todo if cell not in self.refused]

    def require_room(self) -> None:
        """ValueError if the disk certainly lacks room for the rows of the quality cells that are to do."""
        self.records.require_room(sum(cell.rows for cell in self.todo if isinstance(cell, TextCell)))

    def divided(self, nodes: list[Node]) -> Slots:
        """What each quality cell takes of the machines."""
        evaluated = [cell for cell in self.todo if isinstance(cell, TextCell)]
        largest = max(map(needed_bytes, evaluated), default=0.0)
        return divide(self.device, nodes, self.options.threads, len(evaluated), largest)

    def begin(self) -> None:
        """Write down what the sweep consists of, and tell how much of it is to do, and what cannot be done."""
        self.records.plan(self.grid, self.question, self.cells)
        self.records.forget_failures()
        cells = f"{counted(len(self.cells), 'cell')}, {len(self.finished):,} finished before"
        print(f"{self.grid.name}: {cells}, {len(self.todo):,} to do → {self.options.out}", flush=True)
        if others := tidy(self.records, self.finished, {cell.key for cell in self.cells}):
            begun = "begun by other code or for another grid and unfinished"
            print(f"{self.options.out} also holds {counted(others, 'long cell')}, {begun}")
        for cell, why in self.refused.items():
            self.records.fail(cell.key, cell.fields, why, 0)
        self._tell_refused()


def compared_with_full(cell: Cell) -> Cell | None:
    """The same cell, if it is one of quality, with each token compared with full's prediction; None if it has that."""
    if not isinstance(cell, QualityCell) or cell.metrics == "kl":
        return None
    return replace(cell, metrics="kl")


def divide(device: str, nodes: list[Node], threads: int | None, cells: int, needed: float = 0.0) -> Slots:
    """Divide the cluster among quality cells: one GPU each, or as many CPU cores that all are busy.

    threads: asked for, else chosen. needed: the bytes of the largest cell; a node that can hold it must have the cores.
    """
    if device != "cpu":
        return Slots(device, threads or 1)

    def fit(each: int) -> int:
        return sum(node.cores // each for node in nodes)

    most = max(node.cores for node in nodes if node.memory >= needed)
    return Slots(device, threads or next((each for each in range(most, 1, -1) if fit(each) >= cells), 1))
