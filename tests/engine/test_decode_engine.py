"""A request served by an engine: the logits of replay, and sizes that go back to the prompt's."""

import pytest
import torch
from exactness_cases import FLOAT64, assert_close

from kvstream import H2O, TOVA, FixSizeL2, Full, StreamingLLM, replay
from kvstream.engine import decode_engine
from kvstream.engine.decode_engine import DecodeEngine, HeldDecodeEngine
from kvstream.engine.scoring import score_logits

POLICIES = [Full(), StreamingLLM(2, 6), StreamingLLM(2, 30, skip_layers=(1,)), FixSizeL2(9, 0.5, "keep_low")]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_prompt_and_steps_predict_what_replay_does(policy, tiny_llama, tokens, monkeypatch):
    monkeypatch.setattr(decode_engine, "chunk_size_for", lambda model, rows: 8)
    model, ids = tiny_llama(FLOAT64), tokens(40, 3)
    truth = replay(model, ids, policy, chunk_size=8)
    engine = DecodeEngine(model, policy, capacity=40)
    for _ in range(2):  # a second request finds nothing of the first
        logits = [engine.prefill(ids[None, :20])]
        logits += [engine.step(ids[None, token : token + 1]) for token in range(20, 39)]
        assert_close(score_logits(torch.cat(logits), ids[20:]).nll_nats, truth[19:], 1e-9)


@pytest.mark.parametrize("policy", [*POLICIES, StreamingLLM(2, 6, skip_layers=(1,))], ids=str)
def test_going_back_takes_back_what_grows_and_leaves_what_is_full(policy, tiny_llama, tokens):
    engine, ids = DecodeEngine(tiny_llama(), policy), tokens(40, 3)[None]
    engine.prefill(ids[:, :20])
    grows = [policy.kept(layer, 21) > 20 for layer in range(3)]
    for turn in range(1, 4):
        for token in range(20, 36):
            engine.step(ids[:, token : token + 1])
        assert [layer.seen for layer in engine.cache.layers] == [36 if each else 20 + 16 * turn for each in grows]
        engine.rewind()
        assert [layer.seen for layer in engine.cache.layers] == [20 if each else 20 + 16 * turn for each in grows]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_after_going_back_what_grows_takes_its_first_steps_again_and_what_is_full_goes_on(policy, tiny_llama, tokens):
    model, ids = tiny_llama(FLOAT64), tokens(40, 3)[None]
    engine, straight = (DecodeEngine(model, policy) for _ in range(2))
    for each in (engine, straight):
        each.prefill(ids[:, :20])
    steps = [straight.step(ids[:, token : token + 1]) for token in range(20, 28)]
    for token in range(20, 24):
        engine.step(ids[:, token : token + 1])
    engine.rewind()
    start = 20 if policy.kept(0, 21) > 20 else 24
    again = [engine.step(ids[:, token : token + 1]) for token in range(start, start + 4)]
    assert_close(torch.cat(again).flatten(), torch.cat(steps[start - 20 : start - 16]).flatten(), 1e-9)


@pytest.mark.parametrize("policy", [H2O(24, 8, 2), TOVA(24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scan_that_goes_back_reads_slots_as_one_that_never_was_full(policy, dtype, tiny_llama, tokens):
    engine, ids = DecodeEngine(tiny_llama(dtype), policy), tokens(60, 3)[None]
    engine.prefill(ids[:, :16])
    for token in range(16, 60):
        engine.step(ids[:, token : token + 1])
    layers = engine.cache.layers
    in_a_row = torch.arange(layers[0].full)
    assert not all((layer.order_BUS == in_a_row).all() for layer in layers), "nothing was reordered"
    engine.rewind()
    assert all(layer.seen == 16 and (layer.order_BUS == in_a_row).all() for layer in layers)
    assert engine.step(ids[:, :1]).isfinite().all()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_twin_holds_as_many_keys_and_evicts_none(policy, tiny_llama, tokens):
    ids = tokens(40, 3)[None]
    twin = HeldDecodeEngine(tiny_llama(), policy, prompt_tokens=20)
    twin.prefill(ids[:, :20])
    for token in range(20, 30):
        twin.step(ids[:, token : token + 1])
        assert [layer.seen - 1 for layer in twin.cache.layers] == [policy.kept(layer, 20) for layer in range(3)]
        twin.rewind()
