"""Cells share work, and long ones go on from their parts: nothing of it shows in the rows."""

import hashlib
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.engine.chunks import CHUNK_SIZE, PART_TOKENS
from kvstream.grid.cells import QualityCell
from kvstream.grid.memory_needed import side_by_side, too_large
from kvstream.inputs.documents import Document
from kvstream.inputs.models import resolve
from kvstream.measure.quality import Begun, begin, evaluate
from kvstream.records.long_cells import Parts, tidy
from kvstream.records.store import Records
from kvstream.sweep.cluster import Node, Slots
from kvstream.sweep.jobs import Job, by_texts, jobs_of, seeded, shareable
from kvstream.sweep.pacing import splits, together

INFO = resolve("shape:pythia-70m")
STREAMING, RANDOM = StreamingLLM(4, 1020), FixSizeL2(256, 0.7, "random")


def cell(policy, name="a", tokens=2000):
    ids = np.random.default_rng(len(name)).integers(0, 97, tokens, dtype=np.int32)
    document = Document(name, ids, hashlib.sha256(ids.tobytes()).hexdigest())
    return QualityCell(INFO, "cpu", "float32", policy, "t", document, (tokens,))


def names(jobs):
    return [(str(job.cells[0].policy), [cell.document.name for cell in job.cells]) for job in jobs]


def test_texts_stand_side_by_side_but_for_long_ones_and_random_draws():
    cells = [cell(policy, name) for name in "abc" for policy in (Full(), RANDOM)]
    assert [len(job.cells) for job in jobs_of(cells, 1)] == [1] * 6
    assert names(jobs_of(cells, 2)) == [
        (str(RANDOM), ["a"]), ("full", ["a", "b"]), (str(RANDOM), ["b"]), ("full", ["c"]), (str(RANDOM), ["c"]),
    ]  # fmt: skip
    assert [len(job.cells) for job in jobs_of([cell(FixSizeL2(64, 0.5, "keep_low"), name) for name in "ab"], 2)] == [2]
    again = jobs_of(cells, 2)[1].once_more()
    assert [([cell.document.name for cell in job.cells], job.attempt) for job in again] == [(["a"], 2), (["b"], 2)]
    long = [cell(Full(), name, PART_TOKENS + 2) for name in "ab"]
    assert [len(job.cells) for job in jobs_of(long, 8)] == [1, 1]
    assert jobs_of([], 4) == []


def test_first_tokens_are_shared_as_far_as_two_policies_can_use_them():
    policies = (Full(), StreamingLLM(4, 252), STREAMING, StreamingLLM(0, 600), replace(STREAMING, skip_layers=(0,)))
    assert [shareable(Job((cell(policy),))) for policy in policies] == [1536, 0, 1024, 512, 1024]
    assert shareable(Job((cell(FixSizeL2(4096, 0.5, "keep_low")),))) == 1536
    assert [shareable(Job((cell(Full(), tokens=tokens),))) for tokens in (512, 513, 514)] == [0, 0, 512]
    assert shareable(Job((cell(Full()),), start=512)) == 0

    def most(*policies):
        return [tokens for _, tokens in by_texts([Job((cell(policy),)) for policy in policies])]

    assert most(*policies) == [1024]
    assert most(Full(), StreamingLLM(0, 600), StreamingLLM(4, 252)) == [512]
    assert most(Full()) == most(Full(), RecentOnly(256)) == [0]
    assert [tokens for _, tokens in by_texts([Job((cell(Full(), name),)) for name in "ab"])] == [0, 0]


def test_parts_end_at_fixed_places():
    job = Job((cell(Full(), tokens=2 * PART_TOKENS + 2),))
    assert (job.stop, job.ends) == (PART_TOKENS, False)
    job = replace(job, start=2 * PART_TOKENS)
    assert (job.stop, job.ends) == (2 * PART_TOKENS + 1, True)
    exact = Job((cell(Full(), tokens=PART_TOKENS + 1),))
    assert (exact.stop, exact.ends) == (PART_TOKENS, True)


IDS = np.random.default_rng(0).integers(0, 97, (3, 1400), dtype=np.int32)


def evaluated(model, ids, policy, start=0, stop=None, begun=None):
    """Evaluate tokens `start` … `stop` of each of `ids`; all but the last part leave a state."""
    names = {"cells": ["c"] * len(ids), "documents": ["d"] * len(ids), "device": "cpu"}
    part = ids[:, start : None if stop is None else stop + 1]
    return evaluate(model, part, policy, start=start, begun=begun, goes_on=stop is not None, **names)


@pytest.mark.parametrize("length", [513, 514, 1025, 1026, 1400])
@pytest.mark.parametrize("policy", [Full(), STREAMING, RecentOnly(600, position="frozen")], ids=str)
def test_shared_first_tokens_change_not_one_bit(tiny_llama, policy, length):
    model, ids = tiny_llama(), IDS[:1, :length]
    shared = shareable(Job((cell(policy, tokens=length),)))
    assert shared == (
        0 if length == 513 else 512 if length < 1026 or policy.regions == RecentOnly(600).regions else 1024
    )
    [alone] = evaluated(model, ids, policy)
    if shared:
        begun = begin(model, ids[:, :-1], "cpu").first(shared)
        [result] = evaluated(model, ids, policy, begun=begun)
        assert result.rows.equals(alone.rows)
        assert result.seconds > begun.seconds > 0


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(4, 60), FixSizeL2(64, 0.5, "keep_low")], ids=str)
def test_parts_change_not_one_bit(tiny_llama, policy):
    model = tiny_llama()
    [whole] = evaluated(model, IDS[:1], policy)
    assert whole.state is None
    tables, begun, start = [], None, 0
    for stop in (512, 1024, None):
        [part] = evaluated(model, IDS[:1], policy, start, stop, begun)
        tables.append(part.rows)
        begun, start = Begun(stop, part.state), stop
    assert pa.concat_tables(tables).combine_chunks().equals(whole.rows)


def test_a_first_part_may_share_and_go_on(tiny_llama):
    model = tiny_llama()
    begun = begin(model, IDS[:1, :1025], "cpu").first(512)
    [first] = evaluated(model, IDS[:1], STREAMING, 0, 1024, begun)
    [rest] = evaluated(model, IDS[:1], STREAMING, 1024, None, Begun(1024, first.state))
    [whole] = evaluated(model, IDS[:1], STREAMING)
    assert pa.concat_tables([first.rows, rest.rows]).combine_chunks().equals(whole.rows)


@pytest.mark.parametrize("policy", [Full(), STREAMING, FixSizeL2(64, 0.5, "keep_low")], ids=str)
def test_side_by_side_is_as_one_after_the_other(tiny_llama, policy):
    model = tiny_llama(torch.float64)
    for row, result in enumerate(evaluated(model, IDS, policy, stop=700)):
        ids = IDS[row : row + 1]
        [alone], [rest] = (
            evaluated(model, ids, policy),
            evaluated(model, ids, policy, 700, None, Begun(700, result.state)),
        )
        found = np.concatenate((result.rows["nll_nats"], rest.rows["nll_nats"]))
        assert np.abs(found - alone.rows["nll_nats"].to_numpy()).max() < 1e-6
        assert result.rows["token"].equals(alone.rows["token"][:700])


def test_draws_are_each_documents_own():
    assert seeded(Full(), "a") == Full()
    assert len({seeded(RANDOM, name) for name in "ab"} | {RANDOM}) == 3
    drawless = FixSizeL2(256, 0.7, "keep_low")
    assert seeded(drawless, "a") == drawless


@pytest.fixture
def begun_cell(tiny_neox, tmp_path):
    """A cell with two of three parts committed, its model's rows in one run, and the last part."""
    model, parts = tiny_neox(), Parts(Records(tmp_path / "out"), "k" * 16)
    begun, start = None, 0
    for stop in (512, 1024):
        [result] = evaluated(model, IDS[:1], STREAMING, start, stop, begun)
        parts.add(result, stop, {"cpu": "here" if stop == 512 else "there"})
        begun, start = Begun(stop, result.state), stop
    return parts, model


def test_a_cell_goes_on_from_its_last_part(begun_cell):
    parts, model = begun_cell
    again = Parts(parts.records, parts.key)
    begun = again.load()
    assert begun.tokens == 1024
    [last] = evaluated(model, IDS[:1], STREAMING, 1024, None, begun)
    tables, seconds = again.joined(last)
    [whole] = evaluated(model, IDS[:1], STREAMING)
    assert np.concatenate([table["nll_nats"] for table in tables]).tolist() == whole.rows["nll_nats"].to_pylist()
    assert seconds > last.seconds > 0
    assert [place["cpu"] for place in again.places({"cpu": "there"})] == ["here", "there"]
    again.records.commit(again.key, {}, tables, seconds, {})
    again.clear()
    record = again.records.read_json(f"{again.key}.json")
    assert sorted(again.records.storage.names()) == sorted([f"{again.key}.json", record["file"]])
    assert Parts(again.records, again.key).load() is None


def test_parts_of_finished_cells_go_and_others_are_counted(begun_cell):
    parts, _ = begun_cell
    assert tidy(parts.records, set(), {parts.key}) == 0
    assert tidy(parts.records, set(), set()) == 1
    assert list(parts.records.storage.folder.iterdir())
    assert tidy(parts.records, {parts.key}, {parts.key}) == 0
    assert not list(parts.records.storage.folder.iterdir())


def test_one_state_is_kept(begun_cell):
    parts, _ = begun_cell
    assert len(list(parts.records.storage.folder.glob(f"{parts.key}.1024.*.state"))) == 1
    assert len(list(parts.records.storage.folder.glob("*.state"))) == 1


@pytest.mark.parametrize("name", ["512.*.part.parquet", "1024.*.part.parquet", "1024.*.state", "parts.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "remove"])
def test_a_part_that_is_not_what_was_committed_is_not_used(begun_cell, name, harm):
    parts, _ = begun_cell
    [path] = parts.records.storage.folder.glob(f"{parts.key}.{name}")
    data = bytearray(path.read_bytes())
    if name.endswith("json") and harm == "flip":
        data[0] ^= 1
    elif harm == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncate": data[:-1], "empty": b""}.get(harm, bytes(data)))
    if harm == "remove":
        path.unlink()
    again = Parts(parts.records, parts.key)
    if (name, harm) == ("parts.json", "remove"):
        assert again.load() is None
    else:
        words = "cannot be read" if harm == "remove" else "is not the file that was committed"
        with pytest.raises(ValueError, match=f"{re.escape(path.name)} {words}"):
            again.load()
    assert again.parts == []


def test_memory_decides_what_runs_and_how_many_side_by_side():
    long = cell(Full(), tokens=1_000_000)
    assert "lengths: 1000000 tokens of 'shape:pythia-70m' under full need about 147.7 GB" in too_large(long, 16e9)
    assert too_large(cell(STREAMING, tokens=1_000_000), 1e9) is None
    assert too_large(cell(Full(), tokens=8192), 1e9) is None
    cells = [replace(cell(policy, tokens=8192), device="cuda") for policy in (Full(), STREAMING)]
    assert side_by_side(cells, 1e8) == 1
    assert 1 < side_by_side(cells, 8e9) < side_by_side(cells, 80e9)
    long = replace(cell(Full(), tokens=PART_TOKENS + 2), device="cuda")
    assert side_by_side([*cells, long], 80e9) == side_by_side(cells, 80e9)
    assert side_by_side([], 1e9) == 1


NODES = [Node("n", 4, 0, 1e9), Node("m", 8, 0, 1e9)]


def test_threads_are_measured_only_where_there_is_a_choice_worth_it():
    slots = Slots("cpu", 2, 6)
    many = [SimpleNamespace(tokens=8192, model=SimpleNamespace(flops_per_token=1e9))] * 500
    assert [(way.threads, way.count) for way in splits(slots, NODES, many)] == [(1, 12), (2, 6), (4, 3), (8, 1)]
    assert [way.threads for way in splits(slots, NODES, many[:5])] == [2], "seconds of work"
    costly = [SimpleNamespace(tokens=8192, model=SimpleNamespace(flops_per_token=1e11))] * 5
    assert [way.threads for way in splits(slots, NODES, costly)] == [4, 8], "no core may be idle"
    assert splits(replace(slots, asked_threads=2), NODES, many) == [replace(slots, asked_threads=2)]
    assert splits(replace(slots, device="cuda"), NODES, many) == [replace(slots, device="cuda")]


def test_a_rate_counts_the_time_in_which_all_ran():
    assert together([[0.0, 1.0, 2.0, 3.0]]) == CHUNK_SIZE
    # One starts a second late, the other ends a second early: between them two seconds, two chunks each.
    assert together([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]) == 4 * CHUNK_SIZE / 2
    # Two slow ones, half a chunk apart: each does 512 tokens in eight seconds.
    assert together([[0.0, 8.0], [4.0, 12.0]]) == CHUNK_SIZE / 4
    assert together([[0.0, 1.0], [2.0, 3.0]]) == 0
