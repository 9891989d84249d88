"""What a sweep costs beside its cells, and how cells share a machine; two parts of replay.py.

workers  one worker of all threads, or as many workers of one thread, against one thread alone: what the sweep chooses
         between by measuring (`sweep.pacing`). The parallel efficiency is the better one's rate over the number
         of threads times the rate of one alone.
driver   processor time of the sweep's own process per cell, and the seconds until a sweep with 10,000 finished
         cells knows what is left to do
"""

import hashlib
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measuring import interleaved, ratio, results

from kvstream import StreamingLLM
from kvstream.grid.cells import QualityCell
from kvstream.inputs.documents import Document
from kvstream.inputs.models import resolve
from kvstream.measure.rows import TOKEN_ROWS
from kvstream.records.store import Records, sealed
from kvstream.sweep.cluster import Slots, connect
from kvstream.sweep.fleet import Fleet
from kvstream.sweep.interrupt import Interrupt
from kvstream.sweep.pacing import together
from kvstream.sweep.progress import Reporter
from kvstream.sweep.results import Ledger
from kvstream.sweep.worker import pace, weights_of

FINISHED, TOKENS, TIMED = 10_000, 8192, 200


def cells_of(count: int, tokens: int) -> list[QualityCell]:
    """So many cells of one model and text, each under a policy of its own."""
    ids = np.random.default_rng(0).integers(0, 50_000, tokens, dtype=np.int32)
    document = Document("random", ids, hashlib.sha256(ids.tobytes()).hexdigest())
    info = resolve("shape:pythia-70m")
    return [
        QualityCell(info, "cpu", "float32", StreamingLLM(4, 252 + n), "none", document, (tokens,)) for n in range(count)
    ]


def workers(rounds: int) -> None:
    """Rates of one worker and of several at once."""
    threads = torch.get_num_threads()
    ways = {"one thread alone": (1, 1), "one worker, all threads": (1, threads), "workers of one thread": (threads, 1)}
    found = interleaved([partial(_labelled, label, *way) for label, way in ways.items()], rounds)
    for label, rates in found.items():
        print(f"  {label}: {np.median(rates):,.0f} tokens/s", flush=True)
    found["the better"] = np.maximum(found["one worker, all threads"], found["workers of one thread"])
    found[f"{threads} × one thread alone"] = threads * found["one thread alone"]
    ratio(found, "workers of one thread", "one worker, all threads", part="workers")
    ratio(found, "the better", f"{threads} × one thread alone", "target ≥ 0.95", part="workers")


def _labelled(label: str, count: int, threads: int) -> dict[str, float]:
    return {label: _rate(count, threads)}


def _rate(count: int, threads: int) -> float:
    """Tokens per second of so many processes together."""
    context = get_context("spawn")
    barrier, told = context.Barrier(count), context.Queue()
    started = [context.Process(target=_pace, args=(threads, barrier, told)) for _ in range(count)]
    for process in started:
        process.start()
    paces = [told.get(timeout=300) for _ in started]
    for process in started:
        process.join()
    return together(paces)


def _pace(threads: int, barrier, told) -> None:
    [cell] = cells_of(1, 2049)
    weights = weights_of(cell)
    torch.set_num_threads(threads)
    barrier.wait()
    told.put(pace(weights, cell, threads, 3.0))


def driver() -> None:
    """What the sweep's own process does."""
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder))
        cells = cells_of(TIMED, 17)
        nodes = connect(None)
        with Reporter(len(cells), 1) as reporter, Interrupt() as interrupt:
            reporter.cell = lambda *_: None  # type: ignore[method-assign]  # 200 lines that say nothing
            ledger = Ledger(records, reporter)
            fleet = Fleet(Slots("cpu", 1, 1, 1), nodes, ledger, interrupt)
            fleet._weights(cells)  # loading them is no cell's cost
            before = time.process_time()
            fleet.evaluate(cells)
            each = (time.process_time() - before) / len(cells)
        assert ledger.finished == TIMED
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
    rows = pa.table([*columns, random.random(count, np.float32), random.random(count) < 0.4], schema=TOKEN_ROWS)
    records.commit(cells[0].key, cells[0].fields, [rows], 1.0, {})
    record = records.read_json(f"{cells[0].key}.json")
    data = records.storage.read(record["file"])
    for key in (cell.key for cell in cells):
        file = record["file"].replace(cells[0].key, key)
        (Path(records.storage.where) / file).write_bytes(data)
        (Path(records.storage.where) / f"{key}.json").write_bytes(
            sealed(f"{key}.json", record | {"cell": key, "file": file})
        )
