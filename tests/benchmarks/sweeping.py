"""What a sweep's own process does beside the cells; a part of replay.py. How long workers wait: gaps.py.

driver   processor time per cell, and the seconds until a sweep with 10,000 finished cells knows what is left to do
"""

import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import results

from kvstream import StreamingLLM
from kvstream.grid.cells import QualityCell
from kvstream.inputs.documents import Document
from kvstream.inputs.models import resolve
from kvstream.measure.rows import TOKEN_ROWS
from kvstream.records.store import Records, sealed
from kvstream.sweep.cluster import connect
from kvstream.sweep.driver import Driver
from kvstream.sweep.interrupt import Interrupt
from kvstream.sweep.pool import Slots
from kvstream.sweep.progress import Reporter
from kvstream.sweep.ray_pool import pool_for
from kvstream.sweep.results import Results

FINISHED, TOKENS, TIMED = 10_000, 8192, 200


def cells_of(count: int, tokens: int) -> list[QualityCell]:
    """So many cells of one model and text, each under a policy of its own."""
    ids = np.random.default_rng(0).integers(0, 50_000, tokens, dtype=np.int32)
    document = Document("random", ids, hashlib.sha256(ids.tobytes()).hexdigest())
    info = resolve("shape:pythia-70m")
    return [
        QualityCell(info, "cpu", "float32", "none", document, (tokens,), StreamingLLM(4, 252 + n)) for n in range(count)
    ]


def driver() -> None:
    """What the sweep's own process does."""
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder))
        cells = cells_of(TIMED, 17)
        nodes, one = connect(None), Slots("cpu", 1)
        written = Results(records, reporter := Reporter(len(cells), 1))
        reporter.cell = lambda *_: None  # type: ignore[method-assign]  # 200 lines that say nothing
        drive = Driver(one, one, nodes, pool_for, written, Interrupt())
        drive.measure(cells[:1])  # the start of workers and the model are no cell's cost
        before = time.process_time()
        drive.measure(cells[1:])
        each = (time.process_time() - before) / (len(cells) - 1)
        assert written.finished == TIMED
        print(f"  the driver's processor time per cell: {1e3 * each:.1f} ms   target ≤ 20")
        cells = cells_of(FINISHED, TOKENS)
        _finish(records, cells)
        started = time.perf_counter()
        left = {cell.key for cell in cells} - records.finished([cell.key for cell in cells])
        seconds = time.perf_counter() - started
        assert not left
    print(f"  {FINISHED:,} cells of {TOKENS:,} tokens found finished in {seconds:.1f} s   target ≤ 5", flush=True)
    results.append({"part": "driver", "ms_per_cell": 1e3 * each, "cells": FINISHED, "resume_s": seconds})


def _finish(records: Records, cells: list[QualityCell]) -> None:
    """Leave the files of finished cells: one is committed, and the others are like it."""
    random, count = np.random.default_rng(0), TOKENS - 1
    columns = (["k" * 16] * count, ["random"] * count, range(1, TOKENS), random.integers(0, 50_000, count))
    scores = random.random(count, np.float32), random.random(count) < 0.4
    compared = random.random(count, np.float32), random.random(count) < 0.9, random.integers(1, 999, count, np.uint16)
    rows = pa.table([*columns, *scores, *compared], schema=TOKEN_ROWS)
    records.commit(cells[0].key, cells[0].fields, [rows], 1.0, {})
    record = records.read_json(f"{cells[0].key}.json")
    data = records.storage.read(record["file"])
    for key in (cell.key for cell in cells):
        file = record["file"].replace(cells[0].key, key)
        (Path(records.storage.where) / file).write_bytes(data)
        (Path(records.storage.where) / f"{key}.json").write_bytes(
            sealed(f"{key}.json", record | {"cell": key, "file": file})
        )
