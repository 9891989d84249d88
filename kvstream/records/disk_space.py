"""Can a sweep write down what it is about to compute? Asked before it computes anything.

Sizes are estimates from above, of losses and times that compress no better than real ones; tests hold real files to
them.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.cells import Cell, LatencyCell, QualityCell
from kvstream.records.store import Records

PROBE = ".probe"  # the name of a file that is written only to see whether that works
FILE_BYTES = 2_500  # of a Parquet file without rows, and of a commit record
TOKEN_BYTES = 14  # of a row of a quality cell, with a vocabulary of 150,000
SAMPLE_BYTES = 11  # of a row of a latency cell
CONTENDER_BYTES = 800  # that the record of a latency cell takes for each of its contenders


def require_writable(records: Records) -> None:
    """Write a file and remove it. OSError, as of any write that fails, where that is impossible."""
    records.storage.write(PROBE, b"to see whether this can be written")
    records.storage.remove(PROBE)


def require_room(records: Records, cells: Sequence[Cell], at_once: int) -> None:
    """Raise ValueError unless the disk of the records has room for these cells; at_once: as many are on their way."""
    if (room := records.storage.room()) is None:
        return
    needed = written_bytes(cells, at_once, room.block)
    if needed > room.free:
        raise ValueError(
            f"out: {records.storage.where!r} has {room.free / 1e6:,.1f} MB left, and this sweep will write about "
            f"{needed / 1e6:,.1f} MB; make room there, or give another --out"
        )


def written_bytes(cells: Sequence[Cell], at_once: int, block: int) -> int:
    """Estimate what these cells will take on a disk of such blocks: their files, and at the peak parts of long ones."""
    parts = sorted((_part_bytes(cell) for cell in cells if isinstance(cell, QualityCell)), reverse=True)[:at_once]
    sizes = [*map(_row_bytes, cells), *map(_record_bytes, cells), *parts]
    return sum(-(-size // block) * block for size in sizes)


def _row_bytes(cell: Cell) -> int:
    """A quality cell has a row per token, a latency cell one per prefill and step of each contender."""
    if isinstance(cell, LatencyCell):
        samples = _contenders(cell) * (cell.repeats.prefills + cell.repeats.rounds * cell.repeats.steps)
        return FILE_BYTES + SAMPLE_BYTES * samples
    return FILE_BYTES + TOKEN_BYTES * cell.tokens


def _record_bytes(cell: Cell) -> int:
    return FILE_BYTES + CONTENDER_BYTES * (_contenders(cell) if isinstance(cell, LatencyCell) else 0)


def _contenders(cell: LatencyCell) -> int:
    """How many there are at most: each policy and its twin, full again, DynamicCache."""
    return 2 * len(cell.policies) + 2


def _part_bytes(cell: QualityCell) -> int:
    """What a long cell leaves on its way: its rows so far and the caches between two parts, the old one and the new."""
    long = cell.tokens - 1 > PART_TOKENS
    return _row_bytes(cell) + 2 * cell.kv_bytes(cell.policy, cell.tokens) if long else 0
