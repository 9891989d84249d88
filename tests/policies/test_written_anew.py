"""Policies that score, against their definitions in code that shares nothing with theirs: `literal.py`.

One token at a time in float64, with the sets that are kept, on GPT-NeoX and on Llama with grouped queries. A policy
that is not here yet is none the worse tested against the oracle: its own decisions are asked there.
"""

from unittest.mock import patch

import pytest
import torch
from exactness_cases import TOLERANCE, assert_close, go_on
from literal import Literal
from oracle import Asked, oracle_trace

from kvstream import KVStreamCache, decode, replay
from kvstream.engine.bounded_layer import BoundedLayer
from kvstream.engine.layer import Layer
from kvstream.engine.scanned_layer import ScannedLayer
from kvstream.policies import POLICIES

T = 41
PLACES = [("neox", "cache"), ("llama", "cache"), ("neox", "absolute"), ("llama", "absolute")]
ENDS = [{"recent_size": 5, "start_size": 2}, {"recent_size": 0, "start_size": 0}, {"recent_size": 3, "start_size": 4}]
FIELDS = {
    "sink_l2": [{"budget": budget} | ends for budget, ends in zip((11, 6, 13), ENDS)],
    "sink_random": [{"budget": budget, "seed": budget} | ends for budget, ends in zip((11, 6, 13), ENDS)],
    "keydiff": [{"budget": budget} | ends for budget, ends in zip((11, 6, 13), ENDS)],
    "h2o": [{"budget": b, "normalise": n} | ends for b, n, ends in zip((11, 6, 13), ("none", "age", "age"), ENDS)],
    "tova": [{"budget": budget} for budget in (11, 6, 13)],
    "snapkv": [
        {"budget": budget, "window": window, "kernel": kernel, "every": every}
        for budget, window, kernel, every in ((11, 3, 3, 4), (6, 1, 5, 1), (13, 4, 1, 7))
    ],
    "l2_compress": [{"keep_ratio": ratio, "prune_after": most} for ratio, most in ((0.5, 11), (1.0, 6), (0.3, 13))],
}
ONE = {"budget": 1, "recent_size": 0, "start_size": 0}  # the smallest that a policy takes
LEAST = dict.fromkeys(("sink_l2", "sink_random", "keydiff", "h2o"), ONE) | {"tova": {"budget": 1}}
LEAST |= {"snapkv": {"budget": 2, "window": 1, "every": 1}, "l2_compress": {"keep_ratio": 0.0, "prune_after": 2}}
# The first and the third, which may have sinks and recents, meet all four places between them; the long tests the rest.
AT_ONCE = {(0, 0), (0, 3), (1, 1), (2, 2), (2, 1), (3, 3)}
CASES = [
    pytest.param(name, fields, place, marks=[] if (number, place) in AT_ONCE else pytest.mark.long)
    for name, several in FIELDS.items()
    for number, fields in enumerate([*several, LEAST[name]])
    for place in range(len(PLACES))
]
CHUNKS = (1, 13, T)


def test_every_policy_that_scores_is_here():
    of_the_oracle = {"full", "streaming_llm", "recent_only", "fix_size_l2"}
    assert of_the_oracle | set(FIELDS) <= set(POLICIES)
    assert all(callable(getattr(Literal, name)) for name in FIELDS)


@pytest.mark.parametrize(("name", "fields", "place"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_replay_and_decode_keep_what_the_definition_says(tiny_model, tokens, name, fields, place):
    family, position = PLACES[place]
    fields = fields | {"skip_layers": (1,) if place == 3 else (), "position": position}
    model, ids, policy = tiny_model(family, torch.float64), tokens(T, len(name)), POLICIES[name](**fields)
    literal = oracle_trace(model, ids, Literal(name, **fields))
    assert literal.kept == oracle_trace(model, ids, Asked(policy)).kept
    assert min(len(head) for head in literal.kept[-1][0]) < T, "nothing was evicted"
    for chunk in CHUNKS:
        found, held = replayed(model, ids, policy, chunk)
        assert_close(found, literal.nll_nats, TOLERANCE[torch.float64], f"{policy} in chunks of {chunk}")
        assert held == literal.kept[-1], f"{policy} in chunks of {chunk}"
    assert_close(decode(model, ids, policy).nll_nats, literal.nll_nats, TOLERANCE[torch.float64], f"{policy} decoded")


def replayed(model, ids, policy, chunk):
    """Losses, and whose values the layers hold after the last token: [layer][head] → tokens, as `Trace.kept`."""
    came, update = {}, Layer.update

    def noted(layer, keys, values, *rest):
        came.setdefault(layer, []).append(values)
        return update(layer, keys, values, *rest)

    cache = KVStreamCache(model, policy)
    with patch.object(Layer, "update", noted):
        nll = go_on(cache, model, ids, chunk)
        cache.hidden_states(model, ids[None, -1:])  # whose own prediction nothing tells
    return nll, [held_by(layer, torch.cat(came[layer], 2)[0]) for layer in cache.own_layers()]


def held_by(layer, values_HTD):
    """Which tokens one layer holds, by head: those whose values are in the slots that it has in use."""
    heads, held = len(values_HTD), []
    slots = slots_of(layer).expand(heads, -1)
    for slot_N, slots_SD, values_TD in zip(slots, layer.values[0], values_HTD):
        alike_NT = (slots_SD[slot_N][:, None] == values_TD).all(-1)
        assert (alike_NT.sum(1) == 1).all(), "each slot holds one token's value"
        held.append(sorted(alike_NT.int().argmax(1).tolist()))
    if isinstance(layer, ScannedLayer):
        assert layer.token_BUS[0].gather(1, slots_of(layer)).expand(heads, -1).tolist() == held, "by age, and named"
    return held


def slots_of(layer):
    """The slots in use, (sets of kept tokens or 1, N)."""
    if isinstance(layer, ScannedLayer):
        return layer.order_BUS[0, :, : layer.held(layer.seen)]
    if not isinstance(layer, BoundedLayer):
        return torch.arange(layer.seen)[None]
    layout, seen = layer.layout, layer.seen
    protected = {*range(min(seen, layout.sinks)), *range(max(0, seen - layout.recent), seen)}
    contested = range(layout.contested_at, layout.contested_at + layer.members)
    return torch.tensor([*map(layout.slot_of, sorted(protected)), *contested])[None]


@pytest.mark.parametrize("name", ["sink_l2", "l2_compress"])
@pytest.mark.parametrize("family", ["neox", "llama"])
def test_of_equals_the_youngest_leaves(tiny_model, family, name):
    """In the first layer equal tokens have equal keys, so equal norms; other scores hardly ever tie."""
    model, ids = tiny_model(family, torch.float64), torch.randint(6, (T,), generator=torch.Generator().manual_seed(1))
    fields, policy = FIELDS[name][0], POLICIES[name](**FIELDS[name][0])
    literal = oracle_trace(model, ids, Literal(name, **fields))
    assert literal.kept == oracle_trace(model, ids, Asked(policy)).kept
    for chunk in CHUNKS:
        assert_close(replay(model, ids, policy, chunk_size=chunk), literal.nll_nats, TOLERANCE[torch.float64], policy)
    assert_close(decode(model, ids, policy).nll_nats, literal.nll_nats, TOLERANCE[torch.float64], policy)
