"""Every registered policy, over samples of its own fields, replays and decodes what the oracle makes of its decisions.

The samples come from the fields' declarations, so a new policy, or a new field, is tested without a line here.
"""

from contextlib import contextmanager, suppress
from itertools import product
from math import inf

import pytest
import torch
from exactness_cases import TOLERANCE, assert_close, every_pair
from oracle import Asked, Spec, oracle_trace

from kvstream import decode, replay
from kvstream.engine.decode_engine import DecodeEngine
from kvstream.engine.scoring import score_logits
from kvstream.policies import POLICIES
from kvstream.policies.fields import axes_of, spanned

T = 30
BUDGET = 11
FAMILIES = ["neox", "llama"]


def tried(field):
    """Values of a field worth trying: all its words, its ends and something between, one layer skipped or none."""
    least, most = field.range.least, field.range.most
    if field.choices:
        return list(field.choices)
    if field.kind is tuple:
        return [(), (1,)]
    if field.kind is float:
        return [float(least), 0.5 * (least + most), float(most)] if most < inf else [float(least), least + 1.5]
    return [least, least + 3]


def samples(name):
    """Policies of a class in which each two values of two fields meet, but for those that the class refuses."""
    axes = axes_of(POLICIES[name])
    chosen = every_pair(*map(tried, axes.values())) if len(axes) > 1 else product(*map(tried, axes.values()))
    found = []
    for each in chosen:
        with suppress(ValueError):
            found += spanned(POLICIES[name], BUDGET, {a: (v,) for a, v in zip(axes, each)})
    return found


CASES = [policy for name in POLICIES for policy in samples(name)]


@pytest.mark.parametrize(("place", "policy"), enumerate(CASES), ids=lambda value: str(value))
def test_replay_and_decode_are_the_oracles(tiny_model, tokens, place, policy):
    family = FAMILIES[place % 2]
    model, ids = tiny_model(family, torch.float64), tokens(T, place)
    truth = oracle_trace(model, ids, Asked(policy.in_layers(3))).nll_nats
    assert_close(replay(model, ids, policy, chunk_size=13), truth, TOLERANCE[torch.float64], f"{policy} replayed")
    if place // 2 % 2:  # in turn, of both families
        assert_close(decode(model, ids, policy).nll_nats, truth, TOLERANCE[torch.float64], f"{policy} decoded")
        return
    nll, alike = decoded_steadily(model, ids, policy)
    assert_close(nll, truth, TOLERANCE[torch.float64], f"{policy} decoded by steps that are alike")
    cuts = {policy.shed(regions) for regions in map(policy.in_layers(3).regions_of, range(3)) if regions}
    assert alike == (sum(1 / (full - left) for full, left in cuts if full - left > 1) <= 0.5)


def decoded_steadily(model, ids, policy):
    """What a GPU records and repeats, run as it is; and whether the last step was one of those."""
    engine = DecodeEngine(model, policy, capacity=len(ids), steady=True)
    engine.fewest = 1
    logits = [engine.step(ids[None, token : token + 1]) for token in range(len(ids) - 1)]
    return score_logits(torch.cat(logits), ids[1:]).nll_nats, engine.recorded is not None


@pytest.mark.parametrize("name", POLICIES)
def test_samples_reach_what_they_are_for(tiny_model, tokens, name):
    """Each value of each field occurs; and the oracle sees each policy evict, but for full."""
    for field in axes_of(POLICIES[name]).values():
        assert {getattr(policy, field.name) for policy in samples(name)} == {field.plain(v) for v in tried(field)}
    model, ids = tiny_model("llama", torch.float64), tokens(T)
    nothing = oracle_trace(model, ids, Spec()).nll_nats
    evicted = abs(oracle_trace(model, ids, Asked(samples(name)[0].in_layers(3))).nll_nats - nothing).max()
    assert evicted == 0.0 if name == "full" else evicted > 0.01


@contextmanager
def keys_rounded_apart(model):
    """Every second key of a product of the first layer is an ulp larger: a product of one token is rounded otherwise.

    Whether it really is depends on the processor.
    """

    def nudge(module, inputs, keys_BTC):
        up_BTC = torch.nextafter(keys_BTC, 2 * keys_BTC)
        return torch.where(torch.arange(keys_BTC.shape[1])[:, None] % 2 == 0, keys_BTC, up_BTC)

    hook = model.model.layers[0].self_attn.k_proj.register_forward_hook(nudge)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "full"])
def test_repeated_tokens_tie_alike_in_float32(tiny_model, name):
    """In the first layer equal tokens have equal keys, which products of one token and of many round apart."""
    model, ids = tiny_model("llama", torch.float32), torch.randint(6, (60,), generator=torch.Generator().manual_seed(1))
    [policy, *_] = spanned(POLICIES[name], 12, {})
    truth = oracle_trace(model, ids, Asked(policy)).nll_nats
    with keys_rounded_apart(model):
        assert_close(replay(model, ids, policy), truth, TOLERANCE[torch.float32], f"{policy} replayed")
    assert_close(decode(model, ids, policy).nll_nats, truth, TOLERANCE[torch.float32], f"{policy} decoded")
