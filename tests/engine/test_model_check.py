"""The check of a model is sound in both directions: what is right is accepted, what is not is refused, unchanged."""

from pathlib import Path

import pytest
import situations
import torch
from situations import REFUSED, SERVED, TINY, Architecture

from kvstream import Full, KVStreamCache
from kvstream.engine import model_check
from kvstream.engine.cache import KVStreamCache as Cache
from kvstream.engine.widest import float32_products

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IDS = torch.randint(3, 128, (1, 60), generator=torch.Generator().manual_seed(1))


def named(values):
    return [str(value).removeprefix("torch.") for value in values]


@pytest.mark.parametrize("more", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("architecture", SERVED, ids=str)
def test_what_is_right_is_accepted(architecture, more):
    """Two of eight seeds in each dtype: together they meet all of them."""
    for place, dtype in enumerate([*DTYPES, *([] if architecture.no_float64 else [torch.float64])]):
        model_check.check(architecture.build(dtype, 2 * place + more))


@pytest.mark.parametrize("dtype", DTYPES, ids=named(DTYPES))
@pytest.mark.parametrize("architecture", REFUSED, ids=str)
def test_what_is_not_computed_is_refused_and_left_as_it_was(architecture, dtype):
    model = architecture.build(dtype)
    if architecture.name == "GraniteSWA":
        model.set_attn_implementation("eager")
        for layer in model.model.layers:
            layer.self_attn.sinks.normal_()
    attention, ids = model.config._attn_implementation, IDS
    own = model(ids).logits
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match=architecture.refused) as refusal:
        KVStreamCache(model, Full())
    assert "\n" not in str(refusal.value)
    assert model.config._attn_implementation == attention
    assert torch.equal(model(ids).logits, own)
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def tampered(how):
    """A Llama that computes something else than its class says, in a way that no name tells."""
    model = Architecture("Llama").build(torch.float32)
    how(model)
    return model


def scaled_logits(model):
    model.register_forward_hook(
        lambda module, args, output: output.__setitem__("logits", output.logits * 0.9) or output
    )


def hidden_window(model):
    """Attention that no longer sees what is 32 tokens away."""
    forward = model.model.forward

    def windowed(input_ids=None, past_key_values=None, **said):
        if past_key_values is None:
            age = torch.arange(input_ids.shape[1])[:, None] - torch.arange(input_ids.shape[1])
            hidden = (age < 0) | (age >= 32)
            said["attention_mask"] = torch.zeros(hidden.shape).masked_fill(hidden, -1e30)[None, None]
        return forward(input_ids=input_ids, past_key_values=past_key_values, **said)

    model.model.forward = windowed


def shifted_key(model):
    """A hook that adds to the keys before they are rotated, where kvstream would see it, and only from token 40 on."""
    model.model.layers[1].self_attn.register_forward_hook(
        lambda module, args, output: (
            (output[0] * (1 + 0.2 * (torch.arange(output[0].shape[1])[:, None] > 39)), output[1])
            if output[0].shape[0] > 1  # only where the model itself is asked
            else output
        )
    )


@pytest.mark.parametrize("how", [scaled_logits, hidden_window, shifted_key], ids=lambda how: how.__name__)
def test_a_model_that_computes_something_else_is_refused(how):
    with pytest.raises(ValueError, match="computes something that kvstream does not"):
        KVStreamCache(tampered(how), Full())


def test_the_check_measures_against_the_models_own_noise(monkeypatch):
    """A difference that hides in bfloat16's noise is refused in float32, and no constant in nats says so."""
    ours = model_check._ours
    monkeypatch.setattr(model_check, "_ours", lambda *given: ours(*given) * (1 + 2e-3))
    with pytest.raises(ValueError, match="KL divergence"):
        model_check.check(Architecture("Llama").build(torch.float32))
    model_check.check(Architecture("Llama").build(torch.bfloat16))


def test_no_text_makes_the_check_empty():
    """Of tokens that repeat, of logits that are ruled out, of dropout that would pass for rounding."""
    wrong = Architecture("SmolLM3", {"no_rope_layers": [1, 0, 1]})
    with pytest.raises(ValueError, match="KL divergence"):
        model_check.check(wrong.build(), torch.full((200,), 5))
    ruled_out = wrong.build()
    ruled_out.lm_head.register_forward_hook(
        lambda module, args, output: output.index_fill(-1, torch.tensor([0]), -torch.inf)
    )
    with pytest.raises(ValueError, match="KL divergence"):
        model_check.check(ruled_out)
    dropping = wrong.build()
    dropping.model.layers[0].mlp.register_forward_hook(
        lambda module, args, output: torch.nn.functional.dropout(output, 0.1, module.training)
    )
    with pytest.raises(ValueError, match="KL divergence"):
        model_check.check(dropping.train())
    assert all(module.training for module in dropping.modules())


def test_products_of_fewer_digits_are_the_machines_not_the_models():
    try:
        for precision in ("medium", "high"):
            torch.set_float32_matmul_precision(precision)
            model_check.check(Architecture("Llama").build())
    finally:
        torch.set_float32_matmul_precision("highest")


def test_how_products_are_taken_is_read_however_torch_was_told():
    """By its newer names, too, after which its older ones raise an error."""
    matmul, told = torch.backends.cuda.matmul, torch.set_float32_matmul_precision
    try:
        for precision, cpu, cuda in (("high", "tf32", "tf32"), ("medium", "bf16", "tf32"), ("highest", "ieee", "ieee")):
            told(precision)
            assert (float32_products("cpu"), float32_products("cuda"), float32_products("mps")) == (cpu, cuda, "ieee")
        matmul.allow_tf32 = True
        assert (float32_products("cpu"), float32_products("cuda")) == ("ieee", "tf32")
        matmul.allow_tf32 = False
        assert float32_products("cuda") == "ieee"
        if hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = "tf32"
            assert float32_products("cuda") == "tf32"
            model_check.check(Architecture("Llama").build())
    finally:
        if hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = "ieee"
        told("highest")


def test_a_lack_of_memory_is_not_the_models_fault(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(model_check, "_theirs", full)
    with pytest.raises(torch.OutOfMemoryError):
        model_check.check(Architecture("Llama").build())


def test_a_model_is_asked_once_for_each_dtype(monkeypatch):
    asked, difference = [], model_check._difference
    monkeypatch.setattr(model_check, "_difference", lambda *given: asked.append(given) or difference(*given))
    model = Architecture("Llama").build()
    for _ in range(3):
        KVStreamCache(model, Full())
    assert len(asked) == 1
    KVStreamCache(model.to(torch.bfloat16), Full())
    assert len(asked) == 2
    trusted = Architecture("Llama").build()
    model_check.trust(trusted)
    Cache(trusted, Full())
    assert len(asked) == 2


def test_ordinary_tokens_of_a_text_are_asked_about(monkeypatch):
    asked, theirs = [], model_check._theirs
    monkeypatch.setattr(
        model_check, "_theirs", lambda model, ids, offset: asked.append(ids) or theirs(model, ids, offset)
    )
    model_check.check(Architecture("Llama").build(), torch.arange(20, 120))
    assert asked[0].tolist() == list(range(20, 20 + model_check.TOKENS))
    for text in (torch.tensor([5]), torch.arange(3), torch.arange(0)):
        model_check.check(Architecture("Llama").build(), text)


def test_a_models_own_nan_is_no_reason():
    model = Architecture("Llama").build()
    model.model.norm.weight.fill_(float("nan"))
    model_check.check(model)


def test_beyond_the_context_is_that_of_the_first_training():
    for more, expected in (({}, TINY["max_position_embeddings"]), ({"rope_parameters": situations.YARN}, 64)):
        assert model_check._context(Architecture("Llama", more).config()) == expected


def test_the_page_of_what_is_supported_is_current():
    assert situations.DOCUMENT.read_text() == situations.document(), "run python tests/situations.py"
    here = Path(__file__).parent
    tests = "".join((here / name).read_text() for name in ("test_cache.py", "test_calls.py"))
    for _, _, test in situations.SITUATIONS:
        assert f"def {test}(" in tests
