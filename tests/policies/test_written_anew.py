"""Policies that score, against their definitions in code that shares nothing with theirs: `literal.py`.

One token at a time in float64, with the sets that are kept, on GPT-NeoX and on Llama with grouped queries.
"""

import pytest
import torch
from exactness_cases import TOLERANCE, assert_close
from literal import Literal
from oracle import Asked, oracle_trace

from kvstream import decode, replay
from kvstream.policies import POLICIES

T = 41
PLACES = [("neox", "cache"), ("llama", "cache"), ("neox", "absolute"), ("llama", "absolute")]
ENDS = [{"recent_size": 5, "start_size": 2}, {"recent_size": 0, "start_size": 0}, {"recent_size": 3, "start_size": 4}]
FIELDS = {
    "sink_l2": [{"budget": budget} | ends for budget, ends in zip((11, 6, 13), ENDS)],
    "sink_random": [{"budget": budget, "seed": budget} | ends for budget, ends in zip((11, 6, 13), ENDS)],
    "keydiff": [{"budget": budget} | ends for budget, ends in zip((11, 6, 13), ENDS)],
    "h2o": [{"budget": b, "normalise": n} | ends for b, n, ends in zip((11, 6, 13), ("none", "age", "none"), ENDS)],
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
CASES = [
    (name, {**fields, "skip_layers": (1,) if place == 3 else (), "position": PLACES[place][1]}, PLACES[place][0])
    for name, several in FIELDS.items()
    for place, fields in enumerate([*several, LEAST[name]])
]


def test_every_policy_that_scores_is_here():
    of_the_oracle = {"full", "streaming_llm", "recent_only", "fix_size_l2"}
    assert set(FIELDS) == set(POLICIES) - of_the_oracle


@pytest.mark.parametrize(("name", "fields", "family"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_replay_and_decode_keep_what_the_definition_says(tiny_model, tokens, name, fields, family):
    model, ids, policy = tiny_model(family, torch.float64), tokens(T, len(name)), POLICIES[name](**fields)
    literal = oracle_trace(model, ids, Literal(name, **fields))
    assert literal.kept == oracle_trace(model, ids, Asked(policy)).kept
    assert min(len(head) for head in literal.kept[-1][0]) < T, "nothing was evicted"
    for chunk in (1, 13, T):
        found = replay(model, ids, policy, chunk_size=chunk)
        assert_close(found, literal.nll_nats, TOLERANCE[torch.float64], f"{policy} in chunks of {chunk}")
    assert_close(decode(model, ids, policy).nll_nats, literal.nll_nats, TOLERANCE[torch.float64], f"{policy} decoded")


@pytest.mark.parametrize("name", ["sink_l2", "l2_compress"])
def test_of_equals_the_youngest_leaves(tiny_model, name):
    """In the first layer equal tokens have equal keys, so equal norms; other scores hardly ever tie."""
    model, ids = tiny_model("llama", torch.float64), torch.randint(6, (T,), generator=torch.Generator().manual_seed(1))
    fields, policy = FIELDS[name][0], POLICIES[name](**FIELDS[name][0])
    literal = oracle_trace(model, ids, Literal(name, **fields))
    assert literal.kept == oracle_trace(model, ids, Asked(policy)).kept
    for found in (replay(model, ids, policy, chunk_size=7), decode(model, ids, policy).nll_nats):
        assert_close(found, literal.nll_nats, TOLERANCE[torch.float64], str(policy))
