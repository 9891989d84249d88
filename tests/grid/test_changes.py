"""What makes a finished cell another cell, and what does not: results of different code or settings never mix."""

import ast
import copy
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import golden
import numpy as np
import pytest
import torch

from analysis.numbers.database import open_database
from analysis.read.records import read_records
from kvstream.grid import code_version
from kvstream.grid.axes import Grid, Repeats
from kvstream.grid.cells import LatencyCell, QualityCell
from kvstream.inputs.documents import Document
from kvstream.inputs.models import resolve
from kvstream.policies import FixSizeL2, Full, StreamingLLM
from kvstream.records.store import Records
from kvstream.sweep import worker

IDS = np.arange(100, dtype=np.int32)
MODEL = resolve("shape:pythia-70m")


def text(name, ids=IDS):
    return Document(name, ids, hashlib.sha256(ids.tobytes()).hexdigest())


@pytest.fixture
def quality():
    return QualityCell(MODEL, "cpu", "float32", "texts", text("one"), (50, 100), StreamingLLM(4, 60))


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
    "compiled steps": {"repeats": Repeats(compiled=True)},
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


PACKAGE = Path(code_version.__file__).parent.parent
# What these modules and folders compute is in a cell's identity, or decides nothing.
NAMED_OTHERWISE = {
    "grid": "makes the identity",
    "inputs/__init__": "says what lies there",
    "inputs/checkpoint": "a model's files are in its identity",
    "inputs/hub": "a model's commit is in its identity",
    "inputs/model_loading": "a model's files are in its identity",
    "inputs/models": "a model's files are in its identity",
    "inputs/recall": "token ids are in the identity",
    "inputs/text_files": "token ids are in the identity",
    "inputs/text_sources": "token ids are in the identity",
    "measure/__init__": "says what lies there",
    "measure/environment": "describes the machine",
    "measure/rows": "columns; the schema's number is in the identity",
    "sweep/work": "says what a worker is sent, not how it computes",
}


def inside(module, names):
    """Whether a module is one of these, or lies in a folder that is."""
    return any(module == name or module.startswith(f"{name}/") for name in names)


def reached(*modules):
    """The modules of the package that these import, wherever in them and however far away, themselves included."""
    there = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py")}
    found, waiting = set(), list(modules)
    while waiting:
        if (module := waiting.pop()) in found:
            continue
        assert module in there, f"{module}: no such module"
        found.add(module)
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kvstream."):
                path = node.module.removeprefix("kvstream.").replace(".", "/")
                named = {path, f"{path}/__init__", *(f"{path}/{alias.name}" for alias in node.names)}
                waiting += named & there
    return found


def test_every_module_that_decides_numbers_is_in_the_digest():
    quality, latency = code_version.QUALITY, code_version.LATENCY
    asked = reached("measure/quality", "inputs/documents", "sweep/jobs", "sweep/worker")
    left = {module for module in asked if not inside(module, quality + latency)}
    assert {module for module in left if not inside(module, NAMED_OTHERWISE)} == set()
    assert {name for name in NAMED_OTHERWISE if not any(inside(module, [name]) for module in left)} == set()
    for own, modules in ((reached("measure/quality", "sweep/jobs"), quality), (reached("measure/latency"), latency)):
        assert {module for module in own if not inside(module, (*modules, *NAMED_OTHERWISE))} == set()


# One of each folder, and each that is named by itself.
CHANGED = ["policies/fix_size_l2", "policies/__init__", "engine/bounded_layer", "engine/backends/cpu"]
CHANGED += [name for name in dict.fromkeys(code_version.QUALITY + code_version.LATENCY) if "/" in name]


def read_anew():
    """As another process would."""
    code_version._source_digests.cache_clear()
    code_version._digest.cache_clear()


@pytest.mark.parametrize("module", CHANGED)
def test_a_changed_line_makes_every_cell_that_it_computes_another(quality, latency, monkeypatch, module):
    cells, real = {"QUALITY": quality, "LATENCY": latency}, Path.read_bytes
    before = {kind: cell.key for kind, cell in cells.items()}
    changed = PACKAGE / f"{module}.py"
    assert changed.exists()
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + b"#" * (path == changed))
    read_anew()
    for kind, cell in cells.items():
        assert (cell.key != before[kind]) == inside(module, getattr(code_version, kind)), kind
    monkeypatch.undo()
    read_anew()
    assert {kind: cell.key for kind, cell in cells.items()} == before


@dataclass(frozen=True)
class Mine(FixSizeL2):
    """It inherits its name, too."""


def test_a_policy_whose_code_is_in_no_key_is_refused():
    assert str(Mine(64, 0.5, "keep_low")) == str(FixSizeL2(64, 0.5, "keep_low"))
    for axis in ("policies", "latency_policies"):
        policies = {"policies": (Full(),)} | {axis: (Mine(64, 0.5, "keep_low"),)}
        with pytest.raises(ValueError, match=rf"^{axis}: fix_size_l2\(64.* is a Mine, .* put it into kvstream/pol"):
            Grid("g", ("m",), lengths=(100,), **policies)


def test_failures_of_other_code_are_forgotten_and_no_others(quality, latency, tmp_path):
    """What they asked has another key by now, and an outcome of its own."""
    records = Records(tmp_path)
    older = quality.fields | {"code": "of an older version"}
    for key, fields in zip("abcde", (quality.fields, older, older, {}, latency.fields)):
        records.fail(key * 16, fields, "ValueError: no", 1)
    damaged = tmp_path / f"{'c' * 16}.failed.json"
    damaged.write_text("{}")
    records.forget_failures()
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c", "e"], "c is damaged, for verify to name"


def test_weights_that_changed_since_the_cells_key_was_made_are_refused(world, tmp_path, quality, tiny_model):
    shutil.copytree(world / "model", tmp_path, dirs_exist_ok=True)
    cell = replace(quality, model=resolve(str(tmp_path)))
    assert worker.weights_of(cell).arrays
    other = copy.deepcopy(tiny_model("neox", torch.float32))
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^models: .* was changed while the sweep ran .*; repeat the sweep"):
        worker.weights_of(cell)


OLD = {
    "code": {"code": "of an older version"},
    "weights": {"model_identity": "sha256:of older weights"},
    "text": {"document_sha256": "of an older text"},
}


@pytest.mark.parametrize("changed", OLD)
@pytest.mark.parametrize("planned", [True, False])
def test_the_report_sets_cells_of_other_code_weights_or_texts_aside(tmp_path, changed, planned):
    """What an older sweep left for a policy that the newer one lacks must not stand beside the newer full cache."""
    plan = golden.Plan(golden.QUICK.policies[:2], golden.QUICK.models, ("Job",), tokens=300, lengths=(150, 300))
    folder = golden.write(plan, tmp_path)
    [full, streaming] = [json.loads(path.read_text()) for path in sorted(folder.glob("?" * 16 + ".json"))]
    if full["fields"]["policy"] != "full":
        full, streaming = streaming, full
    token, nll, correct = golden.scored(plan, plan.models[0][0], "Job", plan.policies[1])
    tokens = token + 1 if changed == "text" else token
    for suffix in (".json", ".parquet"):
        (folder / (streaming["cell"] + suffix)).unlink()
    cells = [full["cell"]] if planned else []  # without a plan the newest count
    golden.write_json(folder / "sweep.json", {"name": "n", "question": "q", "cells": cells})
    shorter = streaming["fields"] | {"tokens": 150, "lengths": [150]}
    same = "a" * 16, shorter | {"document_sha256": "of its first 150 tokens"}, token, nll, correct
    older = "b" * 16, streaming["fields"] | OLD[changed], tokens, nll, correct
    for key, fields, *columns in (same, older):
        count = fields["tokens"] - 1
        golden.write_cell(folder, key, fields, *(column[:count] for column in columns), plan.environment)
    path = folder / f"{'b' * 16}.json"
    golden.write_json(path, json.loads(path.read_text()) | {"written_at": "2025-01-01T00:00:00+00:00"})
    records = read_records(folder)
    assert [name for name, _ in records.aside] == ["b" * 16]
    assert {"code": "other code", "weights": "other weights of", "text": "another Job"}[changed] in records.aside[0][1]
    assert not records.excluded
    rows = open_database(records, 5.0).sql("SELECT policy, length, tokens FROM documents ORDER BY ALL").fetchall()
    assert rows == [("full", 150, 300), ("full", 300, 300), (streaming["fields"]["policy"], 150, 150)]


def test_the_report_calls_a_reused_cell_what_the_last_sweep_calls_it(tmp_path):
    """The full cache was computed under one path of a text and a model, a policy under another."""
    folder = golden.write(
        replace(golden.QUICK, policies=golden.QUICK.policies[:2], tokens=300, lengths=(300,)), tmp_path
    )
    commits = [json.loads(path.read_text()) for path in sorted(folder.glob("?" * 16 + ".json"))]
    for commit in commits:
        spelled = (
            {"text": "./t", "model": "./m"} if commit["fields"]["policy"] == "full" else {"text": "t", "model": "m"}
        )
        golden.write_json(folder / f"{commit['cell']}.json", commit | {"fields": commit["fields"] | spelled})
    [identity] = {commit["fields"]["model_identity"] for commit in commits}
    sweep = {"name": "n", "question": "q", "text": "t", "models": {identity: "m"}}
    golden.write_json(folder / "sweep.json", sweep | {"cells": [commit["cell"] for commit in commits]})
    database = open_database(read_records(folder), 5.0)
    assert database.sql("SELECT DISTINCT model, text FROM commits").fetchall() == [("m", "t")]
    assert len(database.sql("SELECT DISTINCT setting FROM settings").fetchall()) == 1


def test_another_schema_makes_every_cell_another_and_is_refused_by_readers(quality, monkeypatch, tmp_path):
    from analysis.read.records import RecordsError, read_records
    from kvstream.records.verify import verify
    from kvstream.sweep.rerun import rerun

    before = quality.key
    records = Records(tmp_path)
    monkeypatch.setattr("kvstream.grid.cells.SCHEMA", 1000)
    monkeypatch.setattr("kvstream.records.store.SCHEMA", 1000)
    assert quality.key != before
    records.plan(Grid("g", ("m",), (Full(),), lengths=(100,)), "Which?", [])
    records.fail(quality.key, {}, "ValueError: no", 1)
    with pytest.raises(ValueError, match="has schema 1000, this kvstream reads"):
        verify(records)
    monkeypatch.setattr("kvstream.records.verify.SCHEMA", 1000)  # of the plan; the cell is older
    records.write_json(f"{quality.key}.json", {"schema": 1})
    assert f"{quality.key}: it has schema 1, this kvstream reads 1000; run the sweep again" in verify(records).problems
    with pytest.raises(ValueError, match="it has schema 1, this kvstream reads 1000"):
        rerun(records, quality.key)
    records.write_json(f"{quality.key}.json", {"schema": 1000})
    with pytest.raises(RecordsError, match="schema: 1000, this report reads"):
        read_records(tmp_path)
