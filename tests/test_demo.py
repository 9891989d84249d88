"""Replay equals decoding on a trained model and real text, not only on tiny random ones."""

import pytest
import torch

from kvstream import FixSizeL2, RecentOnly, StreamingLLM, decode, load_model, replay
from kvstream.text import load_documents

TOKENS = 600
POLICIES = [StreamingLLM(4, 252), RecentOnly(256), *(FixSizeL2(256, 0.7, s) for s in ("keep_low", "random"))]


@pytest.fixture(scope="module")
def genesis():
    """The demo model and the first 600 tokens of Genesis."""
    model, tokenizer = load_model("smollm2-135m")
    [document] = load_documents("kjv", names=["Genesis"], tokens=TOKENS, tokenizer=tokenizer)
    return model, torch.from_numpy(document.token_ids).long()


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_replay_equals_decoding_on_the_demo_model(genesis, policy):
    model, ids = genesis
    difference = (replay(model, ids, policy) - decode(model, ids, policy).nll_nats).abs()
    assert difference.max() < 1e-4


@pytest.mark.slow
def test_prefixes_are_runs_of_their_own(genesis):
    model, ids = genesis
    policy = StreamingLLM(4, 252)
    assert (replay(model, ids, policy)[:399] - replay(model, ids[:400], policy)).abs().max() < 1e-4
