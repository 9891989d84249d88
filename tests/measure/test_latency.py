"""Latency cells: what is sampled, in which order, by which definition; a prefill leaves the cache decoding would."""

import json
import re
import runpy
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from driving import sweep_here

from kvstream import H2O, FixSizeL2, Full, L2Compress, RecentOnly, SinkL2, StreamingLLM
from kvstream.engine.steady.recorded import WARM_UP, Recorded
from kvstream.grid.axes import Grid, Repeats
from kvstream.grid.cells import LatencyCell
from kvstream.grid.memory_needed import too_large
from kvstream.inputs.models import resolve
from kvstream.measure import machine_noise, peak_memory
from kvstream.measure.contenders import (
    DYNAMIC,
    FULL_AGAIN,
    Contender,
    DynamicEngine,
    PolicyContender,
    Protocol,
    contenders,
)
from kvstream.measure.latency import Measured, Progress, evaluate, measure, warm_up
from kvstream.measure.peak_memory import peak_bytes, peak_tensor_bytes

ROOT = Path(__file__).parent.parent.parent
POLICIES = (StreamingLLM(2, 6), RecentOnly(8, skip_layers=(1,)), FixSizeL2(8, 0.5, "keep_low"))
PROTOCOL = Protocol(context=20, batch=2, prefills=3, rounds=6, steps=2)


@pytest.fixture(scope="module")
def measured(tiny_neox):
    """One measured cell of a tiny model."""
    told = list(evaluate(tiny_neox(), POLICIES, PROTOCOL, cell="c", device="cpu"))
    assert all(isinstance(item, Progress) and 0 <= item.share <= 1.001 for item in told[:-1])
    assert isinstance(told[-1], Measured)
    return told[-1]


def test_every_contender_is_sampled_at_every_step_in_random_order(measured):
    rows = measured.rows.to_pylist()
    labels = {entry["label"] for entry in measured.contenders}
    # One that holds 8 keys in each layer, and one that holds all in the layer that never evicts.
    twins = {f"{policy} without eviction" for policy in POLICIES[:2]}
    assert labels == {"full", FULL_AGAIN, DYNAMIC, *map(str, POLICIES)} | twins
    steps = Counter((row["policy"], row["round"], row["step"]) for row in rows if row["phase"] == "step")
    assert steps == Counter({(label, r, s): 1 for label in labels for r in range(6) for s in range(2)})
    prefills = Counter((row["policy"], row["round"]) for row in rows if row["phase"] == "ttft")
    assert prefills == Counter({(label, r): 1 for label in labels - twins for r in range(3)})
    orders = set()
    for number, step in product(range(6), range(2)):
        at = {"phase": "step", "round": number, "step": step}
        turns = {row["turn"]: row["policy"] for row in rows if row.items() >= at.items()}
        assert sorted(turns) == list(range(len(labels)))
        orders.add(tuple(turns[turn] for turn in sorted(turns)))
    assert len(orders) == 12
    taken = [(row["round"], row["step"], row["turn"]) for row in rows if row["phase"] == "step"]
    assert taken == sorted(taken), "a step of each before the next step of any"
    assert all(row["seconds"] > 0 and row["cell"] == "c" for row in rows)


def test_memory_is_computed_over_all_layers_and_measured(measured):
    by_label = {entry["label"]: entry for entry in measured.contenders}
    key = 2 * 64 * 2 * 4  # two texts; keys and values of 64 numbers of 4 bytes
    assert by_label["full"]["kv_bytes"] == 3 * 20 * key
    assert by_label[str(POLICIES[0])]["kv_bytes"] == 3 * 8 * key
    assert by_label[str(POLICIES[1])]["kv_bytes"] == (8 + 20 + 8) * key
    assert by_label[str(POLICIES[0])]["kv_bytes_allocated"] == 3 * (9 * key + key)  # two sinks' keys twice
    assert by_label["full"]["kv_bytes_allocated"] == 3 * (20 + 4) * key
    assert {label for label, entry in by_label.items() if entry["peak_bytes"] is None} == {
        label for label, entry in by_label.items() if entry["role"] in ("again", "without eviction")
    }


class Sleeper:
    """A contender with known costs."""

    def __init__(self, label: str, prefill_s: float, step_s: float) -> None:
        self.label, self.prefill_s, self.step_s = label, prefill_s, step_s

    def renew(self) -> None:
        time.sleep(0.02)  # must not be timed

    def start(self, prompt_BT: torch.Tensor) -> None:
        time.sleep(self.prefill_s)

    def resume(self) -> None:
        """Nothing was compiled."""

    def step(self) -> None:
        time.sleep(self.step_s)

    def settle(self) -> None:
        time.sleep(0.02)  # must not be timed


@pytest.mark.timed
def test_samples_mean_what_the_definitions_say():
    runners = [Sleeper("slow", 0.06, 0.012), Sleeper("fast", 0.03, 0.004)]
    *_, rows = measure("c", runners, torch.zeros(1, 4), Protocol(4, 1, prefills=4, rounds=5, steps=3))
    frame = rows.to_pandas()
    for runner in runners:
        own = frame[frame.policy == runner.label]
        ttft, itl = own[own.phase == "ttft"].seconds, own[own.phase == "step"].seconds
        assert (len(ttft), len(itl)) == (4, 15)
        assert runner.prefill_s <= ttft.median() < runner.prefill_s + 0.015
        assert runner.step_s <= itl.median() < runner.step_s + 0.015


@pytest.mark.timed
@pytest.mark.parametrize("resets", [True, False])
def test_peak_memory_sees_what_was_held_for_a_moment(monkeypatch, tmp_path, resets):
    """By the kernel's mark, or where that cannot be reset, by samples."""
    if not resets:
        monkeypatch.setattr(peak_memory, "CLEAR_REFS", tmp_path / "no" / "such")
    floats = 40_000_000

    def work() -> None:
        held = torch.ones(floats)
        time.sleep(0.2)
        held.sum()

    for _ in range(2):  # the second time, too, though the first freed as much
        assert 0.95 * 4 * floats < peak_bytes("cpu", work) < 1.2 * 4 * floats


def test_sampling_ends_with_what_fails(monkeypatch, tmp_path):
    """Else it would go on beside all that is timed later."""
    monkeypatch.setattr(peak_memory, "CLEAR_REFS", tmp_path / "no" / "such")
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        peak_bytes("cpu", Mock(side_effect=RuntimeError("broken")))
    assert threading.active_count() == before


def test_a_context_beyond_memory_is_refused_with_the_estimate():
    info = resolve("shape:pythia-70m")
    cell = LatencyCell(info, "cpu", "float32", (Full(), RecentOnly(256)), 100_000, 4, Repeats(), None)
    refusal = r"contexts: 100000 × batch 4 .* needs about [\d.,]+ GB .* 8.0 GB are available; give shorter contexts"
    assert re.match(refusal, too_large(cell, 8e9))
    assert too_large(cell, 1e12) is None
    assert cell.kv_bytes_held > 4 * 3 * 100_000 * 6 * 512 * 2 * 4
    compiled = replace(cell, repeats=Repeats(compiled=True))  # holds a cache that takes a prompt meanwhile
    assert compiled.kv_bytes_held - cell.kv_bytes_held == pytest.approx(4 * 100_005 * 6 * 512 * 2 * 4)


@pytest.mark.parametrize("context", [20, 62, 100], ids="context {}".format)
def test_steps_are_alike_from_the_first_round_to_the_last(tiny_neox, context, monkeypatch):
    """Full's, too, whose room ends with them: what a GPU records it records once, of every contender."""
    monkeypatch.setattr("kvstream.engine.decode_engine.ROOM", 64)
    protocol = Protocol(context=context, batch=2, prefills=1, rounds=3, steps=4)
    prompt = torch.randint(97, (2, context), generator=torch.Generator().manual_seed(0))
    for runner in contenders(tiny_neox(), POLICIES, protocol):
        if runner.label == DYNAMIC:
            continue
        runner.renew()
        engine = runner.engine
        engine.steady = True  # as on a GPU
        runner._choose(engine.prefill(prompt))
        runner.settle()
        recorded = engine.recorded
        assert recorded, runner.label
        for _ in range(protocol.rounds):
            for _ in range(protocol.steps):
                runner.step()
                assert engine.recorded is recorded, runner.label
            runner.settle()


def test_settling_goes_beyond_a_step_at_which_many_leave(tiny_neox, monkeypatch):
    """Right behind this prompt half of what is held leaves, every time that the contender goes back to it."""
    asked = count()

    def settled(recorded):  # as on a GPU
        assert next(asked) < 100, "it never settles"
        return recorded.calls > WARM_UP

    monkeypatch.setattr(Recorded, "settled", property(settled))
    protocol = Protocol(context=23, batch=1, prefills=1, rounds=3, steps=4)
    prompt = torch.randint(97, (1, 23), generator=torch.Generator().manual_seed(0))
    runner = PolicyContender("cut", tiny_neox(), protocol, L2Compress(0.5, 24, skip_layers=(0,)))
    monkeypatch.setattr(runner, "new_engine", lambda: engine)
    for prepare in (lambda: runner.serve(prompt), lambda: (runner.renew(), runner.start(prompt), runner.settle())):
        engine = PolicyContender.new_engine(runner)
        engine.steady = True
        prepare()
        assert engine.recorded.calls == WARM_UP + 1
        assert not engine.paused
    recorded = engine.recorded
    for _ in range(protocol.rounds):
        for _ in range(protocol.steps):
            runner.step()
            assert engine.recorded is recorded, "there is room"
        runner.settle()


def test_latency_cells_run_one_after_the_other(ray_here, world, tmp_path):
    grid = Grid("g", (str(world / "model"),), POLICIES, contexts=(20, 24), repeats=Repeats(1, 2, 2))
    done = sweep_here(["--out", str(tmp_path), "--device", "cpu"], grid, "How long?")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("????????????????.json")]
    assert sorted(record["fields"]["context"] for record in records) == [20, 24]
    for record in records:
        table = pq.read_table(tmp_path / record["file"])
        assert table.num_rows == record["rows"]
        assert np.isfinite(table["seconds"].to_numpy()).all()
        assert record["fields"]["threads"] >= 1
        assert set(record["fields"]["noise"]) == {"load_before", "load_after", "steal", "others", "governor"}


@pytest.mark.timed
def test_noise_tells_other_processes_from_ones_own():
    before = machine_noise.before()
    spin = "import time; end = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    told = machine_noise.after(before)
    assert told["others"] > 0.5
    assert 0 <= told["steal"] <= 1
    assert told["load_after"] >= 0


def test_twins_are_one_for_each_size_and_none_where_nothing_is_evicted(tiny_neox):
    """Policies that keep as many keys take as long without eviction, and full is a twin of what has not evicted."""

    def twins(context):
        runners = contenders(tiny_neox(), POLICIES, Protocol(context, 1, 1, 1, 1))
        return [runner.label for runner in runners if runner.label.endswith(" without eviction")]

    assert twins(20) == [f"{policy} without eviction" for policy in POLICIES[:2]]
    assert twins(8) == []


def test_going_back_to_where_it_is_empties_no_dynamic_cache(tiny_neox, monkeypatch):
    """transformers 5.0 to 5.10, at least, take `crop(0)` as the length to go back to."""
    asked, engine = [], DynamicEngine(tiny_neox())
    engine.prefill(torch.ones(1, 7, dtype=torch.int64))
    for _ in range(2):
        engine.rewind()
        assert engine.cache.get_seq_length() == 7
        engine.step(torch.ones(1, 1, dtype=torch.int64))
    monkeypatch.setattr(type(engine.cache), "crop", lambda cache, tokens: asked.append(tokens))
    engine.rewind()
    engine.prompt_tokens += 1
    engine.rewind()
    assert asked == [-1]


@pytest.mark.timed
def test_no_ones_peak_holds_what_is_loaded_once(tiny_neox):
    """A code path's first use loads libraries: the order of contenders must not show in their peaks."""
    served = []

    class Told(PolicyContender):
        def start(self, prompt_BT):
            served.append(prompt_BT.shape[1])
            super().start(prompt_BT)

    protocol = Protocol(600, 1, prefills=2, rounds=1, steps=1)
    runner = Told("full", tiny_neox(), protocol, Full())
    prompt = torch.ones(1, 600, dtype=torch.int64)
    list(warm_up([runner], prompt, "cpu"))
    assert served == [512, 600]
    peak = runner.peak_bytes
    list(measure("c", [runner], prompt, protocol))
    assert served == [512, 600, 600, 600]
    list(warm_up([runner], prompt, "cpu"))
    assert runner.peak_bytes == pytest.approx(peak, rel=0.001)
    assert 1e6 < peak < 50e6


def test_code_is_loaded_by_a_request_that_evicts(tiny_neox, monkeypatch):
    """Once for all that run the same: else a peak would hold what is loaded once."""
    policies = (SinkL2(600, 100), StreamingLLM(4, 716), StreamingLLM(4, 596), StreamingLLM(4, 596, position="absolute"))
    runners = contenders(tiny_neox(), policies, Protocol(1500, 1, prefills=1, rounds=1, steps=1))
    served = Mock()
    monkeypatch.setattr(Contender, "serve", lambda runner, prompt_BT: served(runner.label, prompt_BT.shape[1]))
    list(warm_up(runners, torch.ones(1, 1500, dtype=torch.int64), "cpu"))
    prompts = {}
    for label, length in (call.args for call in served.call_args_list):
        prompts.setdefault(label, []).append(length)
    assert prompts.pop("full") == prompts.pop(DYNAMIC) == [512, 1500]
    assert all(prompts.pop(str(policies[at])) == [600 + 512, 1500] for at in (0, 2, 3))
    assert prompts.pop(str(policies[1])) == [1500]
    assert FULL_AGAIN not in prompts
    assert prompts
    assert all(prompt == [1500] and label.endswith("without eviction") for label, prompt in prompts.items())


@dataclass(frozen=True)
class Loudest(H2O):
    """Scores in Python, the most that any query gave."""

    name = "loudest"
    attention_memory = None

    def update_scores(self, scores_BHS, probs_BHGS):
        return torch.maximum(scores_BHS, probs_BHGS.amax(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_takes_python_steps_for_each_token_has_no_peak(dtype, tiny_llama):
    """All that a profiler would note of it might not fit into memory."""
    in_python = Loudest(8, 4), Loudest(8, 4, layer_budgets="pyramid")
    others = (Full(), StreamingLLM(2, 6), H2O(8, 4), Loudest(8, 8))
    runners = contenders(tiny_llama(dtype), (*in_python, *others), Protocol(20, 1, 1, 1, 1))
    list(warm_up(runners, torch.ones(1, 20, dtype=torch.int64), "cpu"))
    peaks = {runner.label: runner.peak_bytes for runner in runners}
    assert [peaks[str(policy)] for policy in in_python] == [None, None]
    assert all(peaks[str(policy)] > 0 for policy in others)


def test_the_peak_of_tensors_is_what_they_take_whatever_was_freed_before():
    """The process's own peak holds blocks that an allocator keeps, too."""
    before, kept = [torch.ones(7_500_000)], []

    def work():
        before.clear()  # was held before: what is freed of it makes no room
        for size in range(1, 25):
            kept.append(torch.ones(10))
            torch.ones(250_000 * size)

    expected = 24e6 + 24 * 40
    for _ in range(2):
        assert peak_tensor_bytes("cpu", work) == pytest.approx(expected, rel=1e-4)
    assert peak_tensor_bytes("cpu", lambda: None) == 0


@pytest.mark.parametrize("sweep", ["quick", "latency", "full"])
def test_each_budget_that_is_timed_is_exceeded_by_a_context(sweep):
    """Where no context is longer than a budget, its policy does what full does: there is nothing to time."""
    grid = runpy.run_path(str(ROOT / "sweeps" / f"{sweep}.py"))["GRID"]
    timed = grid.policies if grid.latency_policies is None else grid.latency_policies
    assert max(grid.contexts) > max(policy.regions.budget for policy in timed if policy.regions)
