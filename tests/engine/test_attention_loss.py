"""Attention on evicted tokens against transformers’ own weights and the oracle’s kept tokens, one step at a time."""

from itertools import product

import pytest
import torch
from oracle import Asked, oracle_kept
from tiny import build_model

from kvstream import H2O, TOVA, FixSizeL2, Full, KeyDiff, L2Compress, RecentOnly, SinkL2, SnapKV, StreamingLLM
from kvstream import attention_loss as measure

IDS = torch.randint(0, 97, (70,), generator=torch.Generator().manual_seed(8))
POLICIES = [
    StreamingLLM(4, 12),
    StreamingLLM(2, 6, skip_layers=(1,)),
    StreamingLLM(2, 14, layer_budgets="pyramid"),
    RecentOnly(9),
    FixSizeL2(16, 0.5, "keep_low"),
    FixSizeL2(16, 0.5, "random", seed=3),
    SinkL2(16, 6, start_size=2),
    KeyDiff(16, 6),
    L2Compress(0.5, 24),
    H2O(16, 8, start_size=2),
    TOVA(16),
    SnapKV(40, window=8, every=16),
]


def by_definition(model, policy, every):
    """Of transformers' own attention weights, what falls on tokens that the oracle no longer keeps."""
    eager = build_model.__wrapped__(*model, torch.float32).to(torch.float64)
    eager.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = eager(IDS[None], output_attentions=True).attentions
    kept = oracle_kept(eager, IDS, Asked(policy.in_layers(3)))
    groups = weights[0].shape[1] // len(kept[0][0])
    found = []
    for token in range(every, len(IDS), every):
        lost = torch.zeros(len(weights), weights[0].shape[1], dtype=torch.float64)
        gone = False
        for layer, of_layer in enumerate(weights):
            for head in range(of_layer.shape[1]):
                missing = sorted(set(range(token)) - set(kept[token - 1][layer][head // groups]))
                gone |= bool(missing)
                lost[layer, head] = of_layer[0, head, token, missing].sum()
        found += [lost] if gone else []
    return torch.stack(found).mean(0)


CASES = [*product(["llama"], POLICIES), *product(["neox"], POLICIES[::4])]


@pytest.mark.parametrize(("family", "policy"), CASES, ids=str)
def test_it_is_full_attention_on_what_is_gone(family, policy):
    model = build_model(family, torch.float64)
    truth = by_definition((family,), policy, 7)
    assert truth.max() > 0.05
    assert (measure(model, IDS, policy, every=7) - truth).abs().max() < 1e-6


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(4, 76), H2O(90, 40)], ids=str)
def test_what_evicts_nothing_loses_nothing(policy):
    assert not measure(build_model("llama", torch.float64), IDS, policy, every=16).any()


def test_a_short_text_says_nothing():
    assert not measure(build_model("llama", torch.float64), IDS[:5], RecentOnly(1)).any()


@pytest.mark.parametrize("every", [0, 1, 2.0])
def test_every_is_checked(every):
    with pytest.raises(ValueError, match="every="):
        measure(build_model("llama", torch.float64), IDS, RecentOnly(1), every=every)
