"""Records for tests: of real cells, and of writes that fail or are killed at any of their calls."""

import errno

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kvstream.grid import planning
from kvstream.grid.axes import Grid
from kvstream.measure.quality import Evaluated, evaluate
from kvstream.records.long_cells import Parts
from kvstream.records.store import Records, parquet
from kvstream.sweep.jobs import seeded

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
BEFORE, AFTER = (pa.table({"cell": [KEY] * 3, "nll_nats": [start, start + 1, start + 2]}) for start in (1.0, 7.0))


def swept(world, model, folder, policies, documents):
    """A folder with the records of so many documents under some policies, computed here; returns also the cells."""
    grid = Grid("g", (str(world / "model"),), policies, str(world / "texts"), documents, (100, 300))
    cells = planning.quality_cells(grid, planning.prepare(grid), "cpu", "float32")
    records = Records(folder)
    records.plan(grid, "Which?", cells)
    for cell in cells:
        policy, name = seeded(cell.policy, cell.document.name), cell.document.name
        ids = cell.document.token_ids[None]
        [result] = evaluate(model, ids, policy, cells=[cell.key], documents=[name], device="cpu")
        records.commit(cell.key, cell.fields, [result.rows], result.seconds, {})
    return records, cells


def file_of(records, key):
    """The name of the file that a cell's commit record names."""
    return records.read_json(f"{key}.json")["file"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


class Nth:
    """Has the n-th of the calls that it counts do something else."""

    def __init__(self, number, instead):
        self.calls, self.number, self.instead = 0, number, instead

    def count(self):
        self.calls += 1
        if self.calls == self.number:
            self.instead()


class Written:
    """A file whose calls count. What fails has written half; and it is closed all the same, like any other."""

    def __init__(self, file, nth):
        self.file, self.nth, self.fileno = file, nth, file.fileno

    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.nth.count()
        self.file.write(data[half:])

    def flush(self):
        self.nth.count()
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.file.close()
        if kind is None:
            self.nth.count()


def fail():
    raise OSError(errno.EIO, "Input/output error")


def left_before(records):
    """What a write finds: a finished cell, the record of a failure, the state after an earlier part."""
    records.commit(KEY, {"n": 1}, [BEFORE], 0.5, {})
    records.fail(KEY, {}, "ValueError: no", 1)
    Parts(records, OTHER).clear()
    records.storage.write(f"{OTHER}.256.state", b"")


def commit_anew(records):
    records.commit(KEY, {"n": 2}, [AFTER], 0.5, {})


def add_part(records):
    Parts(records, OTHER).add(Evaluated(AFTER, 0.5, {"kept": torch.arange(3)}), 512)


def rows_of(records, key):
    """A cell's rows, which are whole."""
    record, data = records.committed(key)
    assert record["rows"] == 3
    return record, pq.read_table(pa.BufferReader(data))


def cell_is_sound(records):
    """It is as it was before, or as it is after."""
    record, rows = rows_of(records, KEY)
    assert rows.equals({1: BEFORE, 2: AFTER}[record["fields"]["n"]])


def part_is_sound(records):
    """It is there whole or not at all."""
    begun = Parts(records, OTHER).load()
    assert begun is None or (begun.tokens == 512 and begun.state["kept"].equal(torch.arange(3)))


def rewritten(records, key, change):
    """Replace a cell's rows and have its record agree with the file, as nobody's accident would."""
    record, data = records.committed(key)
    file, sha256 = records.write_named(key, "parquet", parquet([change(pq.read_table(pa.BufferReader(data)))]))
    records.storage.remove(record["file"])
    records.write_json(f"{key}.json", record | {"file": file, "sha256": sha256})
