"""Can a sweep write down what it is about to compute? Asked before it computes anything.

Sizes are measured, not looked up: rows like those that a cell will have are made into a file in memory, with losses
that compress no better than real ones. Knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.cells import Cell, LatencyCell, QualityCell
from kvstream.measure.environment import environment
from kvstream.measure.latency import LATENCY_ROWS
from kvstream.measure.quality import TOKEN_ROWS
from kvstream.records.store import Records, commit_record, parquet, sealed, sha256_of

PROBE = ".probe"  # the name of a file that is written only to see whether that works


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
    samples = {cell.document.sha256: cell for cell in cells if isinstance(cell, QualityCell)}
    texts = {text: _token_bytes(cell) for text, cell in samples.items()}  # whose rows take the same room in all cells
    rows = [texts[cell.document.sha256] if isinstance(cell, QualityCell) else _sample_bytes(cell) for cell in cells]
    parts = [size + _held_bytes(cell) for cell, size in zip(cells, rows) if _is_long(cell)]
    sizes = [*rows, *map(_record_bytes, cells), *sorted(parts, reverse=True)[:at_once]]
    return sum(-(-size // block) * block for size in sizes)


def _token_bytes(cell: QualityCell) -> int:
    """Size of a quality cell's rows, scaled from as many of its tokens as a part has."""
    count = min(cell.tokens - 1, PART_TOKENS)
    draw = np.random.default_rng(0)
    columns = {
        "cell": [cell.key] * count,
        "document": [cell.document.name] * count,
        "position": np.arange(1, 1 + count, dtype=np.int32),
        "token": np.asarray(cell.document.token_ids[1 : 1 + count], dtype=np.int32),
        "nll_nats": draw.exponential(size=count).astype(np.float32),
        "correct": draw.random(count) < 0.5,
    }
    return len(parquet([pa.table(columns, schema=TOKEN_ROWS)])) * (cell.tokens - 1) // count


def _sample_bytes(cell: Cell) -> int:
    """Size of a latency cell's rows: a sample per prefill and step of each contender."""
    assert isinstance(cell, LatencyCell)
    labels, repeats = _contenders(cell), cell.repeats
    count = len(labels) * (repeats.prefills + repeats.rounds * repeats.steps)
    columns = {
        "cell": [cell.key] * count,
        "policy": [labels[row % len(labels)] for row in range(count)],
        "phase": ["step"] * count,
        "round": np.arange(count, dtype=np.int32) // len(labels),
        "turn": np.random.default_rng(0).integers(len(labels), size=count, dtype=np.int32),
        "step": np.arange(count, dtype=np.int32) % repeats.steps,
        "seconds": np.random.default_rng(0).exponential(size=count),
    }
    return len(parquet([pa.table(columns, schema=LATENCY_ROWS)]))


def _contenders(cell: LatencyCell) -> list[str]:
    """As many labels as there are contenders at most: each policy and its twin, full again, DynamicCache."""
    return [f"{policy} without eviction" for policy in cell.policies for _ in range(2)] + ["full (again)"] * 2


def _record_bytes(cell: Cell) -> int:
    """Size of a cell's record; each contender of a latency cell is described in about as many words as the cell."""
    described = {"contenders": [cell.fields for _ in _contenders(cell)]} if isinstance(cell, LatencyCell) else {}
    fields = cell.fields | {"threads": 1} | described
    record = commit_record(cell.key, fields, sha256_of(b""), cell.tokens, time.perf_counter(), environment())
    return len(sealed(f"{cell.key}.json", record))


def _is_long(cell: Cell) -> bool:
    return isinstance(cell, QualityCell) and cell.tokens - 1 > PART_TOKENS


def _held_bytes(cell: Cell) -> int:
    """The cache that a long cell leaves between two parts, the old one and the new."""
    assert isinstance(cell, QualityCell)
    return 2 * cell.kv_bytes(cell.policy, cell.tokens)
