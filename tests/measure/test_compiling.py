"""Compiled steps in latency cells: of all or of none, as full's tell, and what cannot be compiled is told."""

import copy

import pytest
import torch

from kvstream import H2O, FixSizeL2, RecentOnly, SnapKV, StreamingLLM
from kvstream.engine import notes
from kvstream.engine.steady import recorded
from kvstream.measure import compiling
from kvstream.measure.contenders import DYNAMIC, Protocol
from kvstream.measure.latency import Measured, Progress, evaluate

POLICIES = (StreamingLLM(2, 6), RecentOnly(8, skip_layers=(1,)), FixSizeL2(8, 0.5, "keep_low"), H2O(8, 4, 1))
PROTOCOL = Protocol(context=20, batch=2, prefills=2, rounds=3, steps=2, compiled=True)


@pytest.fixture
def model(tiny_neox):
    """Asked by nobody yet."""
    vars(tiny_neox()).pop(compiling.SHARES, None)
    return tiny_neox()


@pytest.fixture
def compiler(monkeypatch):
    """One that only follows a step, and that takes no step of policies whose names are in `refused`."""
    refused, taken = set(), []

    def follow(step):
        if step.cache.policy.name in refused:
            raise RuntimeError("no such operation\nand a long story")
        taken.append(step)
        return torch.compile(step.compute, fullgraph=True, dynamic=False, backend="eager")

    monkeypatch.setattr(recorded, "compiled_step", follow)
    monkeypatch.setattr(notes, "_told", set())
    monkeypatch.setattr(notes, "_new", [])
    torch.compiler.reset()
    return refused, taken


def measured(model, seconds, monkeypatch, policies=POLICIES):
    """A cell: its result, and which it said it compiled; full's steps take these seconds in turns, compiled first."""
    clock = iter(seconds * compiling.TURNS)
    monkeypatch.setattr(compiling, "seconds_of", lambda step, _: (step(), next(clock))[1])
    *told, result = evaluate(model, policies, PROTOCOL, cell="c", device="cpu")
    assert isinstance(result, Measured)
    assert all(isinstance(item, Progress) for item in told)
    return result, [item.what.removeprefix("compiling, ") for item in told if "compiling" in item.what]


def test_all_steps_are_compiled_once_where_fulls_gain_by_it(model, compiler, monkeypatch, capsys):
    result, compiled = measured(model, [1.0, 2.0], monkeypatch)
    launched = {each["label"]: each["launched"] for each in result.contenders}
    assert launched.pop(DYNAMIC) == "eager"
    assert set(launched.values()) == {"compiled"}
    assert compiled == ["full", *launched]  # full's first, to ask whether it is worth it
    assert len(compiler[1]) == 1 + len(launched), "a prompt has a cache of its own, and its steps were compiled anew"
    assert result.rows.num_rows == len(result.contenders) * 6 + 2 * (3 + len(POLICIES))
    said = "torch.compile, batch 2: full's step takes 0.50 times as long, so steps are compiled\n"
    assert capsys.readouterr().out == said


def test_a_model_is_asked_once_for_as_many_texts(model, compiler, monkeypatch):
    assert measured(model, [3.0, 2.0], monkeypatch, POLICIES[:1])[1] == ["full"]
    assert measured(model, [], monkeypatch, POLICIES[1:2])[1] == []


def test_no_step_is_compiled_where_fulls_are_slower(model, compiler, monkeypatch, capsys):
    result, compiled = measured(model, [2.0, 2.0], monkeypatch)
    assert {each["launched"] for each in result.contenders} == {"eager"}
    assert compiled == ["full"]
    assert len(compiler[1]) == 1
    assert "full's step takes 1.00 times as long, so no step is compiled" in capsys.readouterr().out


def test_where_one_contenders_cannot_be_compiled_none_is(model, compiler, monkeypatch, capsys):
    compiler[0].add("snapkv")
    result, compiled = measured(model, [1.0, 2.0], monkeypatch, (StreamingLLM(2, 6), SnapKV(12, 2, 1, 4)))
    assert {each["launched"] for each in result.contenders} == {"eager"}
    assert compiled == ["full", "full", "streaming_llm(2,6)", str(SnapKV(12, 2, 1, 4))]
    said = capsys.readouterr().out
    assert f"torch.compile: no step is compiled, as {SnapKV(12, 2, 1, 4)}'s cannot be (no such operation)\n" in said
    assert "long story" not in said


def test_where_fulls_cannot_be_compiled_none_is_tried(model, compiler, monkeypatch, capsys):
    compiler[0].add("full")
    result, compiled = measured(model, [], monkeypatch)
    assert {each["launched"] for each in result.contenders} == {"eager"}
    assert compiled == ["full"]
    assert capsys.readouterr().out == "torch.compile: no step is compiled, as full's cannot be (no such operation)\n"


def test_memory_that_is_out_is_no_refusal(model, monkeypatch):
    def out_of_memory(step):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(recorded, "compiled_step", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        list(evaluate(model, POLICIES, PROTOCOL, cell="c", device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_steps_on_a_gpu_are_compiled_and_recorded(model, monkeypatch, capsys):
    """By torch's own compiler; whether that makes them quicker is the card's to say, so both are asked for."""
    for share in (0.5, 1.5):
        vars(model).pop(compiling.SHARES, None)
        monkeypatch.setattr(compiling, "median", lambda shares, share=share: share)
        on_gpu = copy.deepcopy(model).cuda()
        *_, result = evaluate(on_gpu, POLICIES, PROTOCOL, cell="c", device="cuda")
        launched = {each["label"]: each["launched"] for each in result.contenders}
        assert launched.pop(DYNAMIC) == "eager"
        assert set(launched.values()) == {"compiled, CUDA graph" if share < 1 else "CUDA graph"}, (
            capsys.readouterr().out
        )
