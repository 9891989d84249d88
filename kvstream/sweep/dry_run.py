"""`--dry-run`: which cells a sweep consists of, which are finished, and what the others would cost."""

from __future__ import annotations

from kvstream.grid.axes import Grid
from kvstream.grid.cells import Cell
from kvstream.grid.terminal import visible
from kvstream.records.store import Records


def describe(grid: Grid, question: str, cells: list[Cell], records: Records) -> None:
    """Print the cells and what they would cost."""
    finished = records.finished([cell.key for cell in cells])
    print(visible(question))
    for cell in cells:
        print(f"  {cell.key}  {cell}  {cell.tokens:,} tokens{'  finished' if cell.key in finished else ''}")
    missing = [cell for cell in cells if cell.key not in finished]
    tokens = sum(cell.tokens for cell in missing)
    tflop = sum(cell.tokens * cell.model.flops_per_token for cell in missing) / 1e12
    print(f"{grid.name}: {len(cells)} cells, {len(finished)} finished, {len(missing)} to do")
    print(
        f"cost: {tokens:,} tokens, {tflop:,.1f} TFLOP beside attention; "
        f"at 50 GFLOP/s per CPU core, {tflop / 0.05 / 60:,.0f} core-minutes"
    )
