"""Replay equals decoding on a trained model and real text, not only on tiny random ones."""

import pytest
import torch

from kvstream import FixSizeL2, StreamingLLM, decode, load_model, replay
from kvstream.inputs import demo_model
from kvstream.inputs.documents import load_documents

TOKENS = 320


@pytest.fixture(scope="module")
def genesis():
    """The tokens of Genesis, and how to get the demo model in a dtype."""
    _, tokenizer = load_model("smollm2-135m")
    [document] = load_documents("kjv", name="Genesis", tokens=TOKENS, tokenizer=tokenizer)
    return torch.from_numpy(document.token_ids).long(), lambda dtype: load_model("smollm2-135m", dtype=dtype)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "dtype", "tokens", "tolerance"),
    [
        (StreamingLLM(4, 252), "float32", TOKENS, 1e-4),
        # In float32, among thousands of contests between norms, one or two are decided by rounding. In float64 none is,
        # though transformers' RMSNorm computes in float32 all the same, which leaves some 1e-6.
        (FixSizeL2(128, 0.7, "keep_low"), "float64", 180, 1e-5),
    ],
    ids=str,
)
def test_replay_equals_decoding_on_the_demo_model(genesis, policy, dtype, tokens, tolerance):
    ids, load = genesis
    ids = ids[:tokens]
    model = load(dtype)
    difference = (replay(model, ids, policy) - decode(model, ids, policy).nll_nats).abs()
    assert difference.max() < tolerance


@pytest.mark.slow
def test_prefixes_are_runs_of_their_own(genesis):
    ids, load = genesis
    model, policy = load("float32"), StreamingLLM(4, 252)
    assert (replay(model, ids, policy)[:289] - replay(model, ids[:290], policy)).abs().max() < 1e-4


def test_each_version_of_transformers_converts_for_itself(monkeypatch):
    """One wrote a tokenizer that another read as a different class: its ids were no text."""
    mine = demo_model.converted("digest")
    assert demo_model.converted("digest") == mine
    monkeypatch.setattr(demo_model, "version", lambda package: f"another {package}")
    assert demo_model.converted("digest") != mine
