"""What makes a finished cell another cell, and what does not: results of different code or settings never mix."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstream import grid
from kvstream.grid import LatencyCell, QualityCell, Repeats
from kvstream.models import resolve
from kvstream.policies import FixSizeL2, Full, StreamingLLM
from kvstream.records import Records
from kvstream.text import Document

IDS = np.arange(100, dtype=np.int32)
MODEL = resolve("shape:pythia-70m")


def text(name, ids=IDS):
    return Document(name, ids, hashlib.sha256(ids.tobytes()).hexdigest())


@pytest.fixture
def quality():
    return QualityCell(MODEL, "cpu", "float32", StreamingLLM(4, 60), "texts", text("one"), (50, 100))


@pytest.fixture
def latency():
    return LatencyCell(MODEL, "cpu", "float32", (Full(), StreamingLLM(4, 60)), 512, 1, Repeats(), None)


QUALITY = {
    "policy": {"policy": FixSizeL2(64, 0.5, "keep_low")},
    "a policy's axis": {"policy": StreamingLLM(3, 61)},
    "position mode": {"policy": StreamingLLM(4, 60, position="absolute")},
    "one token": {"document": text("one", np.append(IDS[:-1], np.int32(7)))},
    "length": {"document": text("one", IDS[:-1])},
    "document's name, which seeds draws": {"document": text("two")},
    "dtype": {"dtype": "bfloat16"},
    "device": {"device": "cuda"},
    "model": {"model": resolve("shape:pythia-160m")},
    "weights": {"model": replace(MODEL, identity="others")},
}
LATENCY = {
    "policies": {"policies": (Full(),)},
    "context": {"context": 513},
    "batch": {"batch": 2},
    "repeats": {"repeats": Repeats(rounds=41)},
    "threads": {"threads": 1},
}
IRRELEVANT = {
    "where the text lies": {"text": "elsewhere"},
    "shorter lengths, which are prefixes": {"lengths": (10, 100)},
    "which of two GPUs": {"device": "cpu:1"},
    "how the model was named": {"model": replace(MODEL, spec="another-path")},
    "a note": {"model": replace(MODEL, note="noted")},
}


@pytest.mark.parametrize("change", QUALITY)
def test_what_decides_a_quality_cell_makes_it_another(quality, change):
    assert replace(quality, **QUALITY[change]).key != quality.key


@pytest.mark.parametrize("change", LATENCY)
def test_what_decides_a_latency_cell_makes_it_another(latency, change):
    assert replace(latency, **LATENCY[change]).key != latency.key


@pytest.mark.parametrize("change", IRRELEVANT)
def test_what_decides_nothing_leaves_a_cell_as_it_is(quality, change):
    assert replace(quality, **IRRELEVANT[change]).key == quality.key


@pytest.mark.parametrize("module", [*grid.QUALITY, "policies/fix_size_l2"])
def test_a_changed_line_of_the_engine_makes_every_cell_another(quality, monkeypatch, module):
    before, real = quality.key, Path.read_bytes
    changed = Path(grid.__file__).parent / f"{module}.py"
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + b"#" * (path == changed))
    grid.code_digest.cache_clear()
    assert quality.key != before
    monkeypatch.undo()
    grid.code_digest.cache_clear()
    assert quality.key == before


def test_another_schema_makes_every_cell_another_and_is_refused_by_readers(quality, monkeypatch, tmp_path):
    from analysis.records import RecordsError, read_records
    from kvstream.verifying import verify

    before = quality.key
    records = Records(tmp_path)
    monkeypatch.setattr("kvstream.grid.SCHEMA", 1000)
    monkeypatch.setattr("kvstream.records.SCHEMA", 1000)
    assert quality.key != before
    records.plan("g", "Which?", [100], [])
    records.fail(quality.key, {}, "ValueError: no", 1)
    with pytest.raises(ValueError, match="has schema 1000, this kvstream reads"):
        verify(records)
    records.write_json(f"{quality.key}.json", {"schema": 1000})
    with pytest.raises(RecordsError, match="schema: 1000, this report reads"):
        read_records(tmp_path)
