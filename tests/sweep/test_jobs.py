"""Cells share work, and long ones go on from their parts: nothing of it shows in the rows."""

import hashlib
import re
import sys
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.engine import notes
from kvstream.engine.chunk_choice import LESS
from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.axes import Repeats
from kvstream.grid.cells import LatencyCell, QualityCell
from kvstream.grid.memory_needed import side_by_side, too_large
from kvstream.inputs.documents import Document
from kvstream.inputs.models import resolve
from kvstream.inputs.weights import to_arrays
from kvstream.measure.quality import evaluate
from kvstream.measure.scores import Begun, begin, run_full
from kvstream.records.long_cells import Parts, tidy
from kvstream.records.store import Records
from kvstream.sweep.jobs import Job, jobs_of, shareable
from kvstream.sweep.worker import Weights, Worker, weights_of

INFO = resolve("shape:pythia-70m")
STREAMING, RANDOM = StreamingLLM(4, 1020), FixSizeL2(256, 0.7, "random")
FROZEN = RecentOnly(600, position="frozen")


def cell(policy, name="a", tokens=2000):
    ids = np.random.default_rng(len(name)).integers(0, 97, tokens, dtype=np.int32)
    document = Document(name, ids, hashlib.sha256(ids.tobytes()).hexdigest())
    return QualityCell(INFO, "cpu", "float32", "t", document, (tokens,), policy)


def names(jobs):
    return [(str(job.cells[0].policy), [cell.document.name for cell in job.cells]) for job in jobs]


def test_texts_stand_side_by_side_but_for_long_ones_and_random_draws():
    cells = [cell(policy, name) for name in "abc" for policy in (Full(), RANDOM)]
    assert [len(job.cells) for job in jobs_of(cells, 1)] == [1] * 6
    assert names(jobs_of(cells, 2)) == [
        ("full", ["a", "b"]), (str(RANDOM), ["a"]), (str(RANDOM), ["b"]), ("full", ["c"]), (str(RANDOM), ["c"]),
    ]  # fmt: skip
    assert [len(job.cells) for job in jobs_of([cell(FixSizeL2(64, 0.5, "keep_low"), name) for name in "ab"], 2)] == [2]
    [five] = jobs_of([cell(Full(), name) for name in "abcde"], 8)
    assert names(five.halves()) == [("full", ["a", "b", "c"]), ("full", ["d", "e"])]
    again = jobs_of(cells, 2)[0].once_more()
    assert [([cell.document.name for cell in job.cells], job.attempt) for job in again] == [(["a"], 2), (["b"], 2)]
    long = [cell(Full(), name, PART_TOKENS + 2) for name in "ab"]
    assert [len(job.cells) for job in jobs_of(long, 8)] == [1, 1]
    assert jobs_of([], 4) == []


def test_first_tokens_are_shared_as_far_as_two_policies_can_use_them():
    policies = (Full(), StreamingLLM(4, 252), STREAMING, StreamingLLM(0, 600), replace(STREAMING, skip_layers=(0,)))
    assert [shareable(Job(cells=(cell(policy),))) for policy in policies] == [1536, 0, 1024, 512, 1024]
    assert shareable(Job(cells=(cell(FixSizeL2(4096, 0.5, "keep_low")),))) == 1536
    for policy in (Full(), STREAMING, FROZEN):
        assert [shareable(Job(cells=(cell(policy, tokens=tokens),))) for tokens in (512, 513, 514)] == [0, 0, 512]
    assert shareable(Job(cells=(cell(Full()),), start=512)) == 0

    def common(*policies, names="a"):
        return {job.common for job in jobs_of([cell(policy, name) for name in names for policy in policies], 1)}

    assert common(*policies) == {1024}
    assert common(Full(), StreamingLLM(0, 600), StreamingLLM(4, 252)) == {512}
    assert common(Full()) == common(Full(), RecentOnly(256)) == {0}
    assert common(Full(), names="ab") == {0}


def test_parts_end_at_fixed_places():
    job = Job(cells=(cell(Full(), tokens=2 * PART_TOKENS + 2),))
    assert (job.stop, job.ends) == (PART_TOKENS, False)
    job = replace(job, start=2 * PART_TOKENS)
    assert (job.stop, job.ends) == (2 * PART_TOKENS + 1, True)
    exact = Job(cells=(cell(Full(), tokens=PART_TOKENS + 1),))
    assert (exact.stop, exact.ends) == (PART_TOKENS, True)


IDS = np.random.default_rng(0).integers(0, 97, (3, 1400), dtype=np.int32)


def evaluated(model, ids, policy, start=0, stop=None, begun=None):
    """Evaluate tokens `start` … `stop` of each of `ids`; all but the last part leave a state."""
    names = {"cells": ["c"] * len(ids), "documents": ["d"] * len(ids), "device": "cpu"}
    part = ids[:, start : None if stop is None else stop + 1]
    return evaluate(model, part, policy, start=start, begun=begun, goes_on=stop is not None, **names)


@pytest.mark.parametrize("length", [514, 1025, 1026, 1400])
@pytest.mark.parametrize("policy", [Full(), STREAMING, FROZEN], ids=str)
def test_shared_first_tokens_change_not_one_bit(tiny_llama, policy, length):
    model, ids = tiny_llama(), IDS[:1, :length]
    shared = shareable(Job(cells=(cell(policy, tokens=length),)))
    assert shared == (512 if length < 1026 or policy == FROZEN else 1024)
    [alone] = evaluated(model, ids, policy)
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


@pytest.fixture
def begun_cell(tiny_neox, tmp_path):
    """A cell with two of three parts committed, its model's rows in one run, and the last part."""
    model, parts = tiny_neox(), Parts(Records(tmp_path / "out"), "k" * 16)
    begun, start = None, 0
    for stop in (512, 1024):
        [result] = evaluated(model, IDS[:1], STREAMING, start, stop, begun)
        parts.add(result, stop)
        begun, start = Begun(stop, result.state), stop
    return parts, model


def test_a_cell_goes_on_from_its_last_part(begun_cell):
    parts, model = begun_cell
    again = Parts(parts.records, parts.key)
    begun = again.load()
    assert begun.tokens == 1024
    assert len(list(parts.records.storage.folder.glob("*.state"))) == 1
    [last] = evaluated(model, IDS[:1], STREAMING, 1024, None, begun)
    tables, seconds = again.all_with(last)
    [whole] = evaluated(model, IDS[:1], STREAMING)
    assert np.concatenate([table["nll_nats"] for table in tables]).tolist() == whole.rows["nll_nats"].to_pylist()
    assert seconds > last.seconds > 0
    assert [part["tokens"] for part in again.costs(last, 1299)] == [512, 1024, 1299]
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
    assert "lengths: 1000000 tokens of 'shape:pythia-70m' under full need about 147.8 GB" in too_large(long, 16e9)
    assert too_large(cell(STREAMING, tokens=1_000_000), 1e9) is None
    assert too_large(cell(Full(), tokens=8192), 1e9) is None
    cells = [replace(cell(policy, tokens=8192), device="cuda") for policy in (Full(), STREAMING)]
    assert side_by_side(cells, 1e8) == 1
    assert 1 < side_by_side(cells, 8e9) < side_by_side(cells, 80e9)
    long = replace(cell(Full(), tokens=PART_TOKENS + 2), device="cuda")
    assert side_by_side([*cells, long], 80e9) == side_by_side(cells, 80e9)
    assert side_by_side([], 1e9) == 1


@pytest.fixture
def worker_of(tiny_llama):
    """A worker with a model, as one of a sweep has it: on arrays that others share."""

    def make(**how):
        worker = Worker("cpu")
        worker.load(Weights(*to_arrays(tiny_llama())), **how)
        return worker

    return make


def test_what_the_engine_noted_comes_with_the_work(worker_of, monkeypatch, capsys):
    monkeypatch.setattr(notes, "_told", set())
    monkeypatch.setattr(notes, "_new", [])
    worker = worker_of()
    monkeypatch.setattr(worker, "check", lambda **_: [notes.note(line) for line in ("no kernel", "no kernel")])
    found = [[*worker.do(("check", {"token_ids_T": None}), 1)][-1].notes for _ in range(2)]
    assert found == [("no kernel",), ()]
    assert capsys.readouterr().out == "no kernel\n"


def test_tf32_is_on_where_it_is_asked_for_alone(world):
    at = LatencyCell(resolve(str(world / "model")), "cuda", "tf32", (Full(), RecentOnly(8)), 20, 1, Repeats(), None)
    given = weights_of(at)
    assert {array.dtype for array in given.arrays.values()} <= {np.dtype("float32"), np.dtype("int64")}
    worker = Worker("cpu")
    worker.load(given)
    assert torch.backends.cuda.matmul.allow_tf32
    worker.load(weights_of(replace(at, dtype="float32")))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert at.key != replace(at, dtype="float32").key


def rows(worker, job):
    """The rows of a job of one cell, computed by a worker."""
    *_, done = worker.do(job.call, 1)
    assert done.began_s < done.ended_s
    [result], where = done.result
    assert where["torch"] == torch.__version__
    return result.rows


def test_a_worker_replays_first_tokens_once_for_all_policies_on_a_text(worker_of, monkeypatch):
    cells = [cell(policy, name, 1400) for name in ("a", "bb") for policy in (Full(), STREAMING, StreamingLLM(0, 600))]
    begun, alone = [], worker_of()
    monkeypatch.setattr("kvstream.sweep.worker.begin", lambda *given: begun.append(given) or begin(*given))
    worker = worker_of()
    for job in jobs_of(cells, 1):
        assert job.shared in (512, 1024)
        assert rows(worker, job).equals(rows(alone, replace(job, common=0)))
    assert [given[1].shape for given in begun] == [(1, 1025), (1, 1025)], "once for each text"


def test_a_worker_runs_full_once_for_all_that_are_compared_with_it(worker_of, monkeypatch):
    """Texts side by side too, and those that a policy takes one by one as it draws at random."""
    policies = (STREAMING, Full(), StreamingLLM(0, 600), RANDOM)
    cells = [replace(cell(policy, name, 1400), metrics="kl") for name in ("a", "bb") for policy in policies]
    runs, alone = [], worker_of()
    monkeypatch.setattr("kvstream.sweep.worker.run_full", lambda *given: runs.append(given) or run_full(*given))
    for at_once, expected in ((1, [1, 1]), (2, [2])):
        worker = worker_of()
        runs.clear()
        found = [(job, worker.quality(**job.call[1])[0]) for job in jobs_of(cells, at_once)]
        assert [len(given[1]) for given in runs] == expected
        for job, results in found:
            for one, result in zip(job.cells, results):
                [own] = alone.quality(**Job(cells=(one,)).call[1])[0]
                apart = np.abs(own.rows["kl_nats"].to_numpy() - result.rows["kl_nats"].to_numpy()).max()
                assert apart < 1e-5
                assert (one.policy == Full()) == (not result.rows["kl_nats"].to_numpy().any())


def test_a_worker_goes_on_from_a_part_and_forgets_what_another_model_computed(worker_of, tiny_llama):
    worker, job = worker_of(), Job(cells=(cell(STREAMING, tokens=1400),))
    first = worker.quality(job.stretch | {"token_ids_BN": job.stretch["token_ids_BN"][:, :513], "goes_on": True})
    next_part = job.followed(first[0][0].state)
    assert next_part.begun.tokens == job.stop
    [rest], _ = worker.quality(replace(job, start=512).stretch, replace(next_part.begun, tokens=512))
    assert pa.concat_tables([first[0][0].rows, rest.rows]).combine_chunks().equals(rows(worker, job))
    shared = replace(job, common=1024)
    before = rows(worker, shared)
    other = to_arrays(tiny_llama())
    worker.load(Weights(other[0], {name: array * np.float32(1.1) for name, array in other[1].items()}))
    assert not rows(worker, shared).equals(before)


def test_workers_leave_shared_weights_as_they_are(worker_of, tiny_llama):
    config, arrays = to_arrays(tiny_llama())
    before = {name: hashlib.sha256(array.tobytes()).digest() for name, array in arrays.items()}
    for own in (False, True):
        worker = Worker("cpu")
        for array in arrays.values():
            array.flags.writeable = False
        worker.load(Weights(config, arrays), own=own)
        rows(worker, Job(cells=(cell(FixSizeL2(64, 0.5, "keep_low"), tokens=600),)))
        held = dict(worker._model.named_parameters())
        assert any(np.shares_memory(held[name].numpy(), arrays[name]) for name in held) != own
    assert {name: hashlib.sha256(array.tobytes()).digest() for name, array in arrays.items()} == before


@pytest.mark.parametrize(("broken", "ends"), [(True, SystemExit), (False, AttributeError)])
def test_a_worker_whose_gpu_is_unusable_after_an_error_ends(monkeypatch, broken, ends):
    """Else all that it is sent afterwards would fail, too."""

    def synchronize(device):
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr("os._exit", lambda code: sys.exit(code))
    with pytest.raises(ends):
        list(Worker("cuda:0").do(("nothing", {}), 1))


def hidden(first, then, *, handled=False):
    """An error that was raised while another was being handled."""
    try:
        try:
            raise first
        except type(first):
            if handled:
                raise then from None
            raise then  # noqa: B904 - as it happens where nobody meant it
    except type(then) as error:
        return error


@pytest.mark.parametrize(
    ("error", "of_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError("the machine's own"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUDA error: invalid argument"), False),
        (ValueError("out of memory"), False),
        (hidden(torch.OutOfMemoryError("no room"), RuntimeError("the recording ended")), True),
        (hidden(torch.OutOfMemoryError("no room"), RuntimeError("the model is refused"), handled=True), False),
    ],
    ids=str,
)
def test_a_worker_says_where_memory_was_lacking_and_lets_go_what_it_kept(worker_of, monkeypatch, error, of_memory):
    def evaluate(*given, **named):
        raise error

    worker = worker_of()
    monkeypatch.setattr("kvstream.sweep.worker.evaluate_quality", evaluate)
    shared = Job(cells=(replace(cell(STREAMING, tokens=1400), metrics="kl"),), common=512)
    with pytest.raises(MemoryError if of_memory else type(error), match=re.escape(str(error))) as raised:
        list(worker.do(shared.call, 1))
    assert str(raised.value).startswith("its device ran out of memory; give shorter texts ") == of_memory
    assert (worker._full is None) == of_memory
    assert vars(worker._model).pop(LESS, 0) == of_memory, "work that follows takes less at a time"
    room = Mock()
    monkeypatch.setattr("kvstream.sweep.worker.make_room", room)
    monkeypatch.setattr("kvstream.sweep.worker.evaluate_quality", lambda *given, **named: [])
    for _ in range(2):
        list(worker.do(shared.call, 1))
    assert room.call_count == of_memory, "once"


def test_a_latency_cell_that_lacks_memory_says_so_and_leaves_the_next_its_chunks(worker_of, monkeypatch):
    def evaluate(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    worker = worker_of()
    monkeypatch.setattr("kvstream.sweep.worker.evaluate_latency", evaluate)
    timed = LatencyCell(INFO, "cpu", "float32", (Full(),), 32, 1, Repeats(), None)
    with pytest.raises(MemoryError, match=r"its device ran out of memory; give shorter texts or contexts, "):
        list(worker.do(("latency", {"cell": timed}), 1))
    assert LESS not in vars(worker._model), "contenders are to be as they were"
