"""Budgets that differ by layer: the schedule, whom it leaves alone, and bytes that follow it."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstream import H2O, TOVA, KVStreamCache, L2Compress, RecentOnly, SinkL2, SnapKV, StreamingLLM, replay
from kvstream.engine.decode_engine import DecodeEngine, HeldDecodeEngine
from kvstream.engine.scanned_layer import ScannedLayer
from kvstream.policies import POLICIES, Regions
from kvstream.policies.fields import axes_of, spanned
from kvstream.policies.layer_budgets import pyramid
from kvstream.policies.sizes import kept_by_layer

PYRAMID = {"layer_budgets": "pyramid"}
BOUNDED = [name for name in POLICIES if name != "full"]
SMALL = (1, 2, 5)
# Of these, the ones below the sizes that are a sweep's defaults (four sinks, a window of an eighth), or below two.
TOO_LITTLE = {"streaming_llm": (1, 2), "sink_l2": SMALL, "sink_random": SMALL, "snapkv": SMALL, "l2_compress": (1,)}
TOO_LITTLE |= dict.fromkeys(("recent_only", "fix_size_l2", "h2o", "tova", "keydiff"), ())


def test_the_schedule_is_the_papers():
    """Linear, a 20th of the mean in the last layer: by hand, 436.8 down to 11.2 in steps of 85.12."""
    assert pyramid(224, 6) == (437, 352, 267, 181, 96, 11)
    assert pyramid(100, 2) == (195, 5)
    assert pyramid(7, 1) == (7,)
    assert pyramid(0, 4) == (0, 0, 0, 0)


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 80))
def test_the_total_stays_and_no_layer_has_more_than_the_one_below(mean, layers):
    sizes = pyramid(mean, layers)
    assert sum(sizes) == mean * layers
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sizes[-1] - (mean / 20 if layers > 1 else mean) < 1


def test_protected_tokens_stay_and_the_others_follow_the_schedule():
    policy = SinkL2(260, 32, 4, **PYRAMID).in_layers(6)
    assert [policy.regions_of(layer) for layer in range(6)] == [
        Regions(4, contested, 32) for contested in (437, 352, 267, 181, 96, 11)
    ]
    assert policy == SinkL2(260, 32, 4, **PYRAMID), "how many layers there are is no field"
    window = StreamingLLM(4, 224, **PYRAMID).in_layers(6)
    assert [window.regions_of(layer).recent for layer in range(6)] == [437, 352, 267, 181, 96, 11]
    assert {window.regions_of(layer).sinks for layer in range(6)} == {4}


def test_layers_that_never_evict_have_no_part_in_it():
    policy = RecentOnly(225, skip_layers=(0, 3), **PYRAMID).in_layers(8)
    sizes = [regions and regions.budget for regions in map(policy.regions_of, range(8))]
    assert sizes == [None, 438, 353, None, 268, 182, 97, 12]


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("budget", [*SMALL, 256])
def test_every_policy_can_be_a_pyramid_of_its_budget(name, budget):
    """One that is not of those above may refuse what is small, if it says which size is wrong."""
    found, refusal = [], None
    try:
        found = spanned(POLICIES[name], budget, {"layer_budgets": ("pyramid",)})
    except ValueError as refused:
        refusal = str(refused)
    if refusal:
        sizes = r"start_sizes: 4|window=0|prune_after=1|4 sinks, -\d contested" if name in TOO_LITTLE else r"-\d|=\d"
        assert budget in TOO_LITTLE.get(name, SMALL), refusal
        assert re.search(sizes, refusal), refusal
        return
    policy = found[0]
    assert budget not in TOO_LITTLE.get(name, ())
    assert "layer_budgets" in axes_of(type(policy))
    assert "layer_budgets='pyramid'" in str(policy)
    for layers in (1, 2, 7):
        sizes = [policy.in_layers(layers).regions_of(layer) for layer in range(layers)]
        assert sum(size.budget for size in sizes) == budget * layers
        for size, kept in zip(sizes, kept_by_layer(policy, layers, 10**6)):
            full, left = policy.shed(size) if size.contested else (size.budget + 1, size.budget)
            assert full > left
            assert 1 <= kept == full - 1 <= size.budget, "no more than are ever held after a step"


@pytest.mark.parametrize(
    "policy", [StreamingLLM(2, 9), H2O(11, 3, 1), TOVA(11), SnapKV(12, 2, 3, 4), L2Compress(0.5, 11)], ids=str
)
def test_bytes_that_are_allocated_are_those_of_the_schedule(policy, tiny_llama, tokens):
    policy, model = type(policy)(**vars(policy) | PYRAMID), tiny_llama(torch.float32)
    cache = KVStreamCache(model, policy)
    cache.hidden_states(model, tokens(60)[None])
    kept = kept_by_layer(policy, 3, 60)
    assert len(set(kept)) == 3
    each = [layer.keys.shape[2] for layer in cache.own_layers()]
    for layer, size in zip(cache.own_layers(), kept):
        assert not isinstance(layer, ScannedLayer) or max(map(layer.held, range(61))) == size, "what is said is held"
    assert all(0 <= slots - size <= 2 for slots, size in zip(each, kept)), "one for the next token, one spare"
    twin = HeldDecodeEngine(model, policy, prompt_tokens=60)
    twin.prefill(tokens(60)[None])
    twin.step(tokens(1)[None])
    assert tuple(layer.seen - 1 for layer in twin.cache.own_layers()) == kept


def test_its_state_goes_on_and_its_layers_must_be_known(tiny_neox, tokens):
    model, ids, policy = tiny_neox(torch.float64), tokens(50), SinkL2(12, 4, 1, **PYRAMID)
    engine = DecodeEngine(model, policy)
    engine.prefill(ids[None, :20])
    after = KVStreamCache(model, policy)
    after.restore(engine.cache.state())
    again = after.hidden_states(model, ids[None, 20:])
    assert torch.allclose(again, engine.cache.hidden_states(model, ids[None, 20:]), atol=1e-9)
    assert replay(model, ids, policy).isfinite().all()
    with pytest.raises(ValueError, match=r"layer_budgets='pyramid' is not valid; say of how many layers"):
        policy.regions_of(0)
