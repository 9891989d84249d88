"""What a sweep has to do and what it will take, found before anything is computed. Knows no Ray.

A cell that no machine can hold is not run, and the others are; a sweep that cannot run at all ends here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from kvstream.grid.axes import Grid
from kvstream.grid.cells import Cell, QualityCell
from kvstream.grid.flags import Options
from kvstream.grid.memory_needed import needed_bytes, too_large
from kvstream.grid.planning import Source, latency_cells, quality_cells
from kvstream.records.long_cells import tidy
from kvstream.records.store import Records
from kvstream.sweep.slots import Node, Slots, divide


@dataclass
class Plan:
    """A grid whose models and texts are known, the records that are to hold its cells, and what of them is there."""

    grid: Grid
    question: str
    options: Options
    sources: list[Source]
    records: Records
    device: str | None = None  # for which the following were found
    cells: list[Cell] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    todo: list[Cell] = field(default_factory=list)  # what is to be computed
    refused: dict[Cell, str] = field(default_factory=dict)  # that no machine can hold, and why

    def span(self, device: str) -> list[Cell]:
        """All cells of the grid on a device."""
        axes = self.grid, self.sources, device, self.options.dtype
        return [*quality_cells(*axes), *latency_cells(*axes, self.options.threads)]

    def look(self, device: str) -> None:
        """Find out which cells are finished, unless that is known."""
        if device != self.device:
            self.device, self.cells = device, self.span(device)
            self.finished = self.records.finished([cell.key for cell in self.cells])
            self.todo = [cell for cell in self.cells if cell.key not in self.finished]

    def refuse_too_large(self, nodes: list[Node]) -> None:
        """Take out what no machine can hold; ValueError if that is everything."""
        available = max(node.memory for node in nodes)
        self.refused = {cell: why for cell in self.todo if (why := too_large(cell, available))}
        if self.refused and len(self.refused) == len(self.cells):
            raise ValueError(next(iter(self.refused.values())))
        self.todo = [cell for cell in self.todo if cell not in self.refused]

    def divided(self, nodes: list[Node]) -> Slots:
        """What each quality cell takes of the machines."""
        assert self.device is not None
        evaluated = [cell for cell in self.todo if isinstance(cell, QualityCell)]
        largest = max(map(needed_bytes, evaluated), default=0.0)
        return divide(self.device, nodes, self.options.threads, len(evaluated), largest)

    def begin(self) -> None:
        """Write down what the sweep consists of, and tell how much of it is to do, and what cannot be done."""
        self.records.plan(self.grid, self.question, self.cells)
        self.records.forget_failures()
        counted = f"{len(self.cells)} cells, {len(self.finished)} finished before"
        print(f"{self.grid.name}: {counted}, {len(self.todo)} to do → {self.options.out}", flush=True)
        if others := tidy(self.records, self.finished, {cell.key for cell in self.cells}):
            told = "long cells that other code or another grid has begun lie in"
            print(f"{others} {told} {self.options.out}, unfinished")
        for cell, why in self.refused.items():
            self.records.fail(cell.key, cell.fields, why, 0)
            print(f"not run: {why}", file=sys.stderr)
