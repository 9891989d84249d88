"""A policy is one file, whatever it is scored by: toy policies defined here, against the oracle, which asks them alone.

Scorers that kvstream does not ship: the smallest value leaves; attention that a policy adds up in its own way; heads
that share what is known ahead. And budgets that differ from layer to layer. What beams, copies and states do to a
cache, all registered policies meet, too.
"""

import copy
import pickle
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from exactness_cases import FLOAT32, FLOAT64, MODES, TOLERANCE, assert_close, every_pair, go_on
from oracle import Asked, oracle_trace

from kvstream import FixSizeL2, Full, KVStreamCache, decode, replay
from kvstream.engine.backends.scan import scan_plainly
from kvstream.policies import POLICIES
from kvstream.policies.base import BoundedPolicy, Regions
from kvstream.policies.draws import uniform_ranks
from kvstream.policies.fields import axes_of, spanned

T = 37
FAMILIES = ["neox", "llama"]  # four kv-heads, and two of two query heads each


@dataclass(frozen=True)
class Toy(BoundedPolicy):
    """Sinks, recents, and a scorer for the rest. `narrower`: by how much each layer's budget is below the last's."""

    name = "toy"
    start_size: int
    recent_size: int
    budget: int
    narrower: int = 0

    @property
    def regions(self):
        return Regions(self.start_size, self.budget - self.start_size - self.recent_size, self.recent_size)

    def regions_of(self, layer):
        if layer in self.skip_layers:
            return None
        sinks = max(0, self.start_size - self.narrower * layer // 2)
        contested = max(0, self.regions.contested - self.narrower * layer)
        return Regions(sinks, contested, self.recent_size)


@dataclass(frozen=True)
class Sliding(Toy):
    """Nothing contested: sinks and recents."""

    @property
    def regions(self):
        return Regions(self.start_size, 0, self.budget - self.start_size)

    def regions_of(self, layer):
        if layer in self.skip_layers:
            return None
        return Regions(
            max(0, self.start_size - self.narrower * layer // 2), 0, self.regions.recent - self.narrower * layer
        )


@dataclass(frozen=True)
class SmallValues(Toy):
    scored_by = "token"

    def token_scores(self, keys_BHSD, values_BHSD):
        return values_BHSD.norm(dim=-1)


@dataclass(frozen=True)
class SharedValues(SmallValues):
    shared_by_heads = True


@dataclass(frozen=True)
class Drawn(Toy):
    def draws(self, layer, heads, steps):
        return uniform_ranks(5, layer, heads, steps, self.regions_of(layer).contested + 1)


@dataclass(frozen=True)
class H2O(Toy):
    scored_by = "attention"
    attention_memory = 1.0


@dataclass(frozen=True)
class Tova(Toy):
    """Not compiled: its own scores."""

    scored_by = "attention"
    shared_by_heads = True

    def update_scores(self, scores_BHS, probs_BHGS):
        return probs_BHGS.mean(2)


TOYS = [
    SmallValues(2, 3, 11),
    SharedValues(1, 3, 10),
    Tova(2, 3, 11),
    *(kind(4, 3, 14, narrower=2) for kind in (Sliding, Drawn, H2O)),
    *(kind(4, 3, 13, narrower=1) for kind in (SmallValues, H2O)),  # two layers have as many sinks
]


def of_class(kind):
    """Policies of a registered class: every word of its own fields, two sinks, and in turn a mode for positions."""
    words = {name: field.choices for name, field in axes_of(kind).items() if field.choices}
    sizes = {"start_sizes": (2,), "windows": (3,), "every": (5,)}
    found = spanned(kind, 12, words | sizes | {"positions": ("cache",), "layer_budgets": ("uniform",)})
    modes = MODES if len(found) > 1 else MODES[:1]
    return [replace(policy, position=modes[at % len(modes)]) for at, policy in enumerate(found)]


REGISTERED = [policy for name, kind in POLICIES.items() if name != "full" for policy in of_class(kind)]
CASES = [
    (replace(policy, position=mode, skip_layers=skip), family)
    for policy, mode, skip, family in every_pair(TOYS, MODES, [(), (1,)], FAMILIES)
]
CORNERS = [*(kind(0, 0, 1) for kind in (SmallValues, H2O, Tova)), H2O(0, 1, 1), H2O(1, 0, 2), Tova(30, 3, 34)]
CASES += [(policy, FAMILIES[place % 2]) for place, policy in enumerate(CORNERS)]


def named(value):
    return value if isinstance(value, str) else f"{type(value).__name__} {value}"


@pytest.mark.parametrize(("policy", "family"), CASES, ids=named)
def test_replay_and_decode_equal_the_oracle(policy, family, tiny_model, tokens):
    ids, model = tokens(T, 3), tiny_model(family, FLOAT64)
    truth = oracle_trace(model, ids, Asked(policy)).nll_nats
    assert_close(decode(model, ids, policy).nll_nats, truth, TOLERANCE[FLOAT64], "decode")
    for size in (7, T + 3):
        assert_close(replay(model, ids, policy, chunk_size=size), truth, TOLERANCE[FLOAT64], f"replay by {size}")
    if type(policy) in (SmallValues, Sliding, Drawn):
        nll = replay(tiny_model(family, FLOAT32), ids, policy, chunk_size=13)
        assert_close(nll, truth, TOLERANCE[FLOAT32], "float32")


def held_after(policy, layer, seen=T):
    full, left = policy.shed(policy.regions_of(layer))
    held = 0
    for _ in range(seen):
        held = left if held + 1 == full else held + 1
    return held


@pytest.mark.parametrize("policy", TOYS, ids=named)
def test_the_oracle_evicts_and_evicts_by_the_score(policy, tiny_model, tokens):
    """Else the comparison above would prove nothing."""
    trace = oracle_trace(tiny_model("llama", FLOAT64), tokens(T, 3), Asked(policy))
    full = replay(tiny_model("llama", FLOAT64), tokens(T, 3), Full())
    assert np.abs(trace.nll_nats - full.numpy()).max() > 0.01
    kept = trace.kept[-1]
    lengths = [len(members) for layer in kept for members in layer]
    assert lengths == [held_after(policy, layer) for layer in range(3) for _ in range(2)]
    together = policy.shared_by_heads or isinstance(policy, Sliding)
    assert all(layer[0] == layer[1] for layer in kept) == together


@pytest.mark.parametrize("policy", [*TOYS, *REGISTERED], ids=named)
def test_rows_reordered_copied_and_stored_go_on_as_they_would(policy, tiny_llama, tokens):
    """What beams, deepcopy, pickle and long texts do, between single tokens and between chunks."""
    model = tiny_llama(FLOAT64)
    rows = torch.stack([tokens(T, 1), tokens(T, 2)])
    alone = [replay(model, row, policy, chunk_size=9) for row in rows]
    cache = KVStreamCache(model, policy)
    for part in rows[:, :20].split([12, *[1] * 8], dim=1):
        cache.hidden_states(model, part)
    restored = KVStreamCache(model, policy)
    restored.restore(cache.state())
    copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), restored, cache]
    for other in copies:
        other.reorder_cache(torch.tensor([1, 0, 1]))
        for sizes in ([1, 1, 1, 14], [17]):
            again = copy.deepcopy(other)
            parts = rows[[1, 0, 1], 20:].split(sizes, dim=1)
            with torch.inference_mode():
                logits = torch.cat(
                    [model.get_output_embeddings()(again.hidden_states(model, part)) for part in parts], 1
                )
            nll = -logits[:, :-1].log_softmax(-1).gather(2, rows[[1, 0, 1], 21:, None])[..., 0]
            for found, row in zip(nll, (1, 0, 1)):
                assert_close(found, alone[row][20:], 1e-8, f"row {row} by {sizes}")


@pytest.mark.parametrize("policy", [*TOYS, *REGISTERED], ids=named)
def test_a_state_goes_on_from_any_token(policy, tiny_neox, tokens):
    model, ids = tiny_neox(FLOAT64), tokens(T, 3)
    whole = replay(model, ids, policy, chunk_size=5)
    for cut in (1, 10, 15):
        before, after = KVStreamCache(model, policy), KVStreamCache(model, policy)
        first = go_on(before, model, ids[: cut + 1], 5)
        after.restore(before.state())
        assert_close(torch.cat((first, go_on(after, model, ids[cut:], 5))), whole, 1e-9, f"cut at {cut}")


@pytest.mark.parametrize("policy", [*TOYS, *REGISTERED], ids=named)
def test_a_full_caches_first_tokens_serve_all_but_those_taken_in_turn(policy, tiny_llama, tokens):
    model, ids = tiny_llama(FLOAT64), tokens(T, 3)
    most = min(policy.tokens_from_full(layer) for layer in range(3))
    in_turn = policy.in_turn(0)
    singly = policy.shed(policy.regions) == (policy.regions.budget + 1, policy.regions.budget)
    assert in_turn == (policy.scored_by in ("attention", "similarity") or not singly)
    assert (most == 0) == in_turn
    full = KVStreamCache(model, Full())
    full.hidden_states(model, ids[None, : most or 1])
    cache = KVStreamCache(model, policy)
    if in_turn:
        with pytest.raises(ValueError, match="at most 0 tokens"):
            cache.restore(full.state())
        return
    cache.restore(full.state())
    assert_close(go_on(cache, model, ids[most:]), replay(model, ids, policy)[most:], TOLERANCE[FLOAT64])
    full.hidden_states(model, ids[None, most : most + 1])
    with pytest.raises(ValueError, match=f"at most {most} tokens"):
        cache.restore(full.state())


def test_tokens_are_taken_back_only_where_no_score_has_counted_them(tiny_llama, tokens):
    model, ids = tiny_llama(FLOAT64), tokens(T, 3)[None]
    scored, unscored = KVStreamCache(model, H2O(2, 6, 12)), KVStreamCache(model, SmallValues(2, 6, 12))
    for cache in (scored, unscored):
        cache.hidden_states(model, ids[:, :8])
    with pytest.raises(ValueError, match=r"crop\(-1\): of the 8 tokens seen"):
        scored.crop(-1)
    unscored.crop(-1)
    other = KVStreamCache(model, unscored.policy)
    other.hidden_states(model, ids[:, :7])
    assert torch.allclose(unscored.hidden_states(model, ids[:, 7:]), other.hidden_states(model, ids[:, 7:]), atol=1e-9)


def test_bounded_layers_hold_what_their_own_budgets_say(tiny_llama, tokens):
    """Memory, too: the largest layer's budget is not everybody's."""
    policy = H2O(4, 3, 14, narrower=2)
    cache = KVStreamCache(tiny_llama(), policy)
    cache.hidden_states(tiny_llama(), tokens(T, 3)[None])
    sizes = [policy.regions_of(layer) for layer in range(3)]
    assert [size.budget for size in sizes] == [14, 11, 8]
    assert [layer.keys.shape[2] for layer in cache.layers] == [size.budget + 1 for size in sizes]


def test_a_contest_that_nothing_decides_is_an_error(tiny_llama, tokens):
    with pytest.raises(TypeError, match="neither scores nor draws"):
        replay(tiny_llama(), tokens(T, 3), Toy(0, 2, 5))


@dataclass(frozen=True)
class Alike(Toy):
    """Keys compared, and three leaving together: shipped policies do one or the other."""

    scored_by = "similarity"

    def shed(self, regions):
        return regions.budget + 1, regions.budget - 2


def test_keys_are_compared_anew_as_several_leave(tiny_llama, tokens):
    model, ids, policy = tiny_llama(FLOAT64), tokens(T, 3), Alike(2, 3, 11)
    truth = oracle_trace(model, ids, Asked(policy)).nll_nats
    assert_close(replay(model, ids, policy, chunk_size=9), truth, TOLERANCE[FLOAT64], "compiled")
    with patch("kvstream.engine.backends.cpu.scan_compiled", scan_plainly):
        assert_close(replay(model, ids, policy, chunk_size=9), truth, TOLERANCE[FLOAT64], "plainly")


@pytest.mark.parametrize(
    ("contradiction", "words"),
    [
        ({"shed": lambda self, regions: (12, 4)}, "12 tokens held and 4 left"),
        ({"queries_heard": 4}, "queries_heard: there are no more than 1"),
        ({"scored_by": "similarity", "shared_by_heads": True}, "compared within a head"),
        ({"scored_by": "nothing", "shed": lambda self, regions: (12, 8)}, "give scored_by"),
        ({"update_scores": Tova.update_scores}, "update_scores is not asked where attention_memory is set"),
    ],
)
def test_what_a_scan_cannot_do_is_refused(contradiction, words, tiny_llama):
    policy = type("Odd", (H2O,), contradiction)(2, 3, 11)
    with pytest.raises(TypeError, match=words):
        KVStreamCache(tiny_llama(), policy)


@dataclass(frozen=True)
class Loudest(H2O):
    """Derived from one that is compiled, with scores of its own: the most that any query gave."""

    attention_memory = None

    def update_scores(self, scores_BHS, probs_BHGS):
        return torch.maximum(scores_BHS, probs_BHGS.amax(2))


def test_a_derived_class_is_asked_for_its_own_scores(tiny_llama, tokens):
    model, ids, policy = tiny_llama(FLOAT64), tokens(T, 3), Loudest(2, 3, 11)
    truth = oracle_trace(model, ids, Asked(policy)).nll_nats
    for found in (replay(model, ids, policy, chunk_size=9), decode(model, ids, policy).nll_nats):
        assert_close(found, truth, TOLERANCE[FLOAT64])
    assert (replay(model, ids, H2O(2, 3, 11)) - torch.from_numpy(truth)).abs().max() > 0.01


def test_the_youngest_of_equals_leaves(tiny_llama, tokens):
    @dataclass(frozen=True)
    class Even(Tova):
        shared_by_heads = False

        def update_scores(self, scores_BHS, probs_BHGS):
            return torch.zeros_like(scores_BHS)

    model, ids = tiny_llama(FLOAT64), tokens(T, 3)
    for mode in MODES:
        # The first of the contested stay: they are sinks, in effect.
        even, sinks = Even(2, 4, 10, position=mode), Sliding(6, 4, 10, position=mode)
        assert_close(replay(model, ids, even, chunk_size=9), replay(model, ids, sinks, chunk_size=9), 1e-9, mode)
        assert_close(decode(model, ids, even).nll_nats, replay(model, ids, sinks, chunk_size=9), 1e-9, mode)


@dataclass(frozen=True)
class Narrowing(FixSizeL2):
    def regions_of(self, layer):
        return replace(self.regions, contested=self.regions.contested - layer)


def test_draws_see_the_layers_own_size():
    policy = Narrowing(12, 0.5, "random")
    assert [policy.draws(layer, 2, range(500)).max() for layer in range(3)] == [6, 5, 4]
