"""Endless text: pieces of any size, states that go on elsewhere, positions beyond a million; and all of it exact."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from exactness_cases import BOUNDED, FLOAT64, MODES, TOLERANCE, assert_close, every_pair, go_on
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstream import FixSizeL2, Full, KeyDiff, KVStreamCache, RecentOnly, StreamingLLM, decode, replay
from kvstream.engine.replay import replay_chunks
from kvstream.engine.scoring import score

POLICIES = [Full(), *(replace(policy, position=mode, skip_layers=skip)
                      for policy in BOUNDED for mode in MODES for skip in [(), (1,)])]  # fmt: skip
PAIRS = [(Full(), "neox"), (Full(), "llama")]
PAIRS += [
    (replace(policy, position=mode, skip_layers=skip), family)
    for policy, mode, skip, family in every_pair(BOUNDED, MODES, [(), (1,)], ["neox", "llama"])
]


@settings(deadline=None, max_examples=30)
@given(length=st.integers(2, 60), chunk=st.integers(1, 20), cuts=st.lists(st.integers(0, 60), max_size=12))
def test_pieces_of_any_size_give_what_the_whole_gives(tiny_llama, tokens, length, chunk, cuts):
    ids, model = tokens(length), tiny_llama(FLOAT64)
    bounds = [0, *sorted(min(cut, length) for cut in cuts), length]
    pieces = (ids[low:high] for low, high in pairwise(bounds))
    policy = StreamingLLM(2, 6)
    assert torch.equal(replay(model, pieces, policy, chunk_size=chunk), replay(model, ids, policy, chunk_size=chunk))


def test_an_iterator_is_read_no_further_than_needed(tiny_neox, tokens):
    read = []

    def pieces():
        for piece in tokens(96).split(8):
            read.append(piece)
            yield piece

    scored = replay_chunks(tiny_neox(), pieces(), RecentOnly(8), chunk_size=16)
    assert len(next(scored).nll_nats) == 16
    assert len(read) == 3, "16 tokens and the one that follows them"


@pytest.mark.parametrize("pieces", [[], [torch.tensor([1])], [torch.tensor([], dtype=torch.int64)] * 3])
def test_too_little_text_is_refused(tiny_neox, pieces):
    with pytest.raises(ValueError, match=r"input_ids holds [01] tokens; at least 2 are needed"):
        replay(tiny_neox(), iter(pieces), RecentOnly(8))


@pytest.mark.parametrize("pieces", ["text", [3, 4], [[1, 2, 3]]])
def test_what_is_no_tensor_is_refused(tiny_neox, pieces):
    with pytest.raises(ValueError, match=r"input_ids: (str|int|list) is not a tensor"):
        replay(tiny_neox(), pieces, RecentOnly(8))


@pytest.mark.parametrize(("policy", "family"), PAIRS, ids=str)
def test_a_state_goes_on_in_another_cache(tiny_model, tokens, trace_of, policy, family):
    """Wherever it is cut, by chunks and by a window of single tokens, the rest is exactly what it would have been."""
    model, ids = tiny_model(family, FLOAT64), tokens(41, 3)
    truth = trace_of(family, ids, policy).nll_nats
    whole = replay(model, ids, policy, chunk_size=5)
    for cut in (1, 11, 30):
        before, after = KVStreamCache(model, policy), KVStreamCache(model, policy)
        first = go_on(before, model, ids[: cut + 1], 5)
        state = before.state()
        assert all(tensor.device.type == "cpu" for tensor in state.values())
        after.restore(state)
        found = torch.cat((first, go_on(after, model, ids[cut:], 5)))
        assert_close(found, truth, TOLERANCE[FLOAT64], f"cut at {cut}")
        if cut % 5 == 0:
            assert torch.equal(found, whole), f"cut at {cut}, between two chunks: not one bit differs"
        stepped = KVStreamCache(model, policy)
        stepped.restore(state)
        for token in range(cut, min(cut + 12, 40)):
            hidden = stepped.hidden_states(model, ids[None, token : token + 1])
            one = score(model, hidden[0], ids[token + 1 : token + 2]).nll_nats
            assert_close(one, truth[token : token + 1], TOLERANCE[FLOAT64], f"cut at {cut}, token {token}")


def test_a_state_goes_to_the_models_device(tiny_neox, tokens):
    cache = KVStreamCache(tiny_neox(), FixSizeL2(8, 0.5, "keep_low"))
    cache.hidden_states(tiny_neox(), tokens(20)[None])
    other = KVStreamCache(tiny_neox(), FixSizeL2(8, 0.5, "keep_low"))
    other.device = torch.device("meta")
    other.restore(cache.state())
    assert {getattr(layer, name).device.type for layer in other.layers for name in layer.row_tensors} == {"meta"}


def test_a_state_of_another_policy_or_model_is_refused(tiny_model, tokens):
    model, ids = tiny_model("neox", torch.float32), tokens(20)[None]
    absolute, full = KVStreamCache(model, StreamingLLM(2, 6, position="absolute")), KVStreamCache(model, Full())
    for cache in (absolute, full):
        cache.hidden_states(model, ids)
    for state, words in ((absolute.state(), "20 tokens under streaming_llm"), (full.state(), "20 tokens under full")):
        with pytest.raises(
            ValueError, match=words + r".* this cache is under streaming_llm\(2,6\); .* at most 8 tokens"
        ):
            KVStreamCache(model, StreamingLLM(2, 6)).restore(state)
    fewer = {name: tensor for name, tensor in full.state().items() if not name.startswith("2.")}
    with pytest.raises(ValueError, match="state: of 2 layers, the model has 3"):
        KVStreamCache(model, Full()).restore(fewer)
    scored = KVStreamCache(model, KeyDiff(8, 4))
    scored.hidden_states(model, ids)
    older = {name.replace("sum_BHC", "sum_BHE"): tensor for name, tensor in scored.state().items()}
    before = scored.state()
    with pytest.raises(ValueError, match=r"state: of another version of kvstream, with sum_BHE in a layer under key"):
        scored.restore(older)
    assert all(torch.equal(tensor, before[name]) for name, tensor in scored.state().items())


def test_a_state_of_nothing_starts_a_text(tiny_neox, tokens):
    model, ids = tiny_neox(), tokens(20)
    cache = KVStreamCache(model, RecentOnly(4))
    cache.hidden_states(model, ids[None])
    cache.restore(KVStreamCache(model, RecentOnly(4)).state())
    assert torch.equal(go_on(cache, model, ids), replay(model, ids, RecentOnly(4)))


def test_a_state_does_not_change_when_its_cache_goes_on(tiny_neox, tokens):
    model, ids = tiny_neox(), tokens(40)
    cache = KVStreamCache(model, StreamingLLM(2, 6))
    cache.hidden_states(model, ids[None, :20])
    for layer in cache.layers:  # the next token's slot, which may hold anything
        layer.keys[:, :, layer.layout.slot_of(20)] = layer.values[:, :, layer.layout.slot_of(20)] = torch.nan
    state = cache.state()
    assert all(tensor.isfinite().all() for tensor in state.values())
    held = {name: tensor.clone() for name, tensor in state.items()}
    cache.hidden_states(model, ids[None, 20:])
    assert all(torch.equal(state[name], held[name]) for name in held)


@pytest.mark.parametrize("policy", POLICIES[1:], ids=str)
def test_a_full_caches_first_tokens_serve_every_policy(tiny_neox, tokens, policy):
    model, ids = tiny_neox(FLOAT64), tokens(41, 3)
    most = policy.regions.sinks + policy.regions.recent
    full = KVStreamCache(model, Full())
    full.hidden_states(model, ids[None, : min(most, 40)])
    for first in {1, most // 2, most}:
        if 0 < first < 40:
            cache = KVStreamCache(model, policy)
            cache.restore(first_tokens(full.state(), first))
            rest = go_on(cache, model, ids[first:])
            assert_close(rest, replay(model, ids, policy)[first:], TOLERANCE[FLOAT64], f"{first} tokens shared")


def first_tokens(state, count):
    kept = {name: tensor[:, :, :count] if tensor.ndim == 4 else tensor for name, tensor in state.items()}
    return kept | {"seen": torch.tensor(count)}


@pytest.mark.parametrize("mode", ["cache", "absolute"])  # a frozen position never grows beyond the budget
@pytest.mark.parametrize("policy", [StreamingLLM(3, 8), RecentOnly(9), StreamingLLM(0, 7)], ids=str)
def test_a_million_tokens_on_nothing_has_changed(tiny_neox, tokens, policy, mode):
    """The same cache, the same text, but numbered from a million on: only the numbers' rounding may show."""
    policy = replace(policy, position=mode)
    model, ids = tiny_neox(), tokens(90)
    near = KVStreamCache(model, policy)
    near.hidden_states(model, ids[None, :30])
    state = near.state()
    ring = policy.regions.recent + 1
    later = 1_000_000 // ring * ring
    moved = near.tables.rope.at(torch.tensor([later]), state["0.keys"])
    at_rank = policy.regions.sinks if mode == "cache" else 0  # sinks whose positions do not grow with the text
    for name, tensor in state.items():
        if name.endswith(".keys"):
            tensor[:, :, at_rank:] = moved(tensor[:, :, at_rank:])
        elif name.endswith("anchors_BHSD") and mode == "absolute":
            tensor.copy_(moved(tensor))
    far = KVStreamCache(model, policy)
    far.restore(state | {"seen": torch.tensor(30 + later)})
    for size in (60, 1):
        there, here = (
            torch.cat([cache.hidden_states(model, part[None])[0] for part in ids[30:].split(size)])
            for cache in (far, near)
        )
        assert torch.allclose(there, here, atol=2e-4), (there - here).abs().max()
        near = KVStreamCache(model, policy)
        near.hidden_states(model, ids[None, :30])
        far = KVStreamCache(model, policy)
        far.restore(state | {"seen": torch.tensor(30 + later)})


def test_decoding_and_replay_agree_far_into_a_text(tiny_llama, tokens):
    """Hundreds of evictions later they still say the same, in cache mode and with contests."""
    ids = tokens(400, distinct=False)
    for policy in (StreamingLLM(2, 14), FixSizeL2(16, 0.5, "random")):
        replayed = replay(tiny_llama(FLOAT64), ids, policy, chunk_size=150)
        assert_close(replayed, decode(tiny_llama(FLOAT64), ids, policy).nll_nats, 1e-5)
