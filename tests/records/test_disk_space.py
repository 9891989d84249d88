"""Whether the disk has room for a sweep's records, asked before anything is computed."""

import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from record_cases import swept

from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.axes import Repeats
from kvstream.grid.cells import LatencyCell
from kvstream.inputs.models import resolve
from kvstream.measure.latency import LATENCY_ROWS
from kvstream.policies import Full, StreamingLLM
from kvstream.records.disk import Folder
from kvstream.records.disk_space import require_room, written_bytes
from kvstream.records.storage import Room
from kvstream.records.store import Records

POLICIES = (Full(), StreamingLLM(4, 28))


@pytest.fixture(scope="module")
def cells_of(world, tiny_neox, tmp_path_factory):
    """A records folder and its quality cells."""
    return swept(world, tiny_neox(), tmp_path_factory.mktemp("space") / "records", POLICIES, 3)


def taken(records, block):
    """What the files of all cells take on a disk of such blocks."""
    sizes = [path.stat().st_size for path in records.storage.folder.glob("????????????????.*")]
    return sum(-(-size // block) * block for size in sizes)


@pytest.mark.parametrize("block", [1, 4096])
def test_what_quality_cells_will_take_is_known_from_above(cells_of, block):
    records, cells = cells_of
    assert taken(records, block) <= written_bytes(cells, 2, block) <= 1.6 * taken(records, block)


def test_what_a_latency_cell_will_take_is_known_from_above(tmp_path):
    cell = LatencyCell(resolve("shape:pythia-70m"), "cpu", "float32", POLICIES, 512, 1, Repeats(), None)
    labels = [*map(str, POLICIES), "streaming_llm(4,28) without eviction", "full (again)", "dynamic"]
    count, draw = len(labels) * (5 + 40 * 4), np.random.default_rng(0)
    columns = {
        "cell": [cell.key] * count,
        "policy": [labels[row % len(labels)] for row in range(count)],
        "phase": ["step"] * count,
        "round": np.arange(count, dtype=np.int32) // len(labels),
        "turn": draw.integers(len(labels), size=count, dtype=np.int32),
        "step": np.arange(count, dtype=np.int32) % 4,
        "seconds": draw.exponential(size=count),
    }
    contenders = [cell.fields | {"label": label, "role": "policy", "of": None, "kv_bytes": 1} for label in labels]
    records = Records(tmp_path)
    environment = {"cpu": "x" * 100, "platform": "x" * 100}
    rows = [pa.table(columns, schema=LATENCY_ROWS)]
    records.commit(cell.key, cell.fields | {"contenders": contenders}, rows, 1.0, environment)
    assert taken(records, 1) <= written_bytes([cell], 1, 1) <= 1.6 * taken(records, 1)


def test_parts_of_long_texts_take_room_too(cells_of):
    _, cells = cells_of
    assert written_bytes(cells, 9, 1) == written_bytes(cells, 0, 1), "short ones have none"

    class Long(type(cells[0])):
        tokens = 2 * PART_TOKENS

    [long] = [Long(**{name: getattr(cell, name) for name in cell.__dataclass_fields__}) for cell in cells[:1]]
    rows, both = written_bytes([long], 0, 1), written_bytes([long, long], 9, 1)
    held = 2 * long.kv_bytes(long.policy, long.tokens)
    assert rows > 2 * PART_TOKENS * 14
    assert both - 2 * rows == pytest.approx(2 * (rows + held), rel=0.01)
    assert written_bytes([long, long], 1, 1) - 2 * rows == pytest.approx(rows + held, rel=0.01)


def test_too_little_room_is_said(cells_of, monkeypatch):
    records, cells = cells_of
    needed = written_bytes(cells, 1, 4096)
    monkeypatch.setattr(Folder, "room", lambda self: Room(needed, 4096))
    require_room(records, cells, 1)
    monkeypatch.setattr(Folder, "room", lambda self: Room(needed - 1, 4096))
    said = rf"out: '{re.escape(records.storage.where)}' has 0\.1 MB left, and this sweep will write about 0\.1 MB; make"
    with pytest.raises(ValueError, match=said):
        require_room(records, cells, 1)


def test_the_room_on_a_disk_is_the_systems_own_count(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    assert 0.9 * free < Folder(tmp_path).room().free < 1.1 * free
    counts_nothing = os.statvfs_result((4096, 4096, *[0] * 8))
    monkeypatch.setattr(os, "statvfs", lambda path: counts_nothing)
    assert Folder(tmp_path).room() is None
    require_room(Records(tmp_path), [], 1)
