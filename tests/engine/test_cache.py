"""KVStreamCache as a citizen of transformers: generate, beams, resets, padding, other caches on the same model."""

import gc
import weakref

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from kvstream import FixSizeL2, Full, KVStreamCache, RecentOnly, StreamingLLM, decode, replay

POLICIES = [Full(), StreamingLLM(2, 5), FixSizeL2(8, 0.5, "keep_low"), FixSizeL2(8, 0.5, "random")]


def generate(model, ids, cache, **options):
    mask = torch.ones_like(ids)
    return model.generate(
        ids, attention_mask=mask, past_key_values=cache, max_new_tokens=30, do_sample=False, pad_token_id=0, **options
    )


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_generate_continues_as_token_by_token_feeding_would(tiny_neox, tokens, policy):
    model = tiny_neox(torch.float64)
    ids = tokens(20)[None]
    made = generate(model, ids, KVStreamCache(model, policy))
    cache, token, expected = KVStreamCache(model, policy), ids, ids[0].tolist()
    with torch.no_grad():
        for position in range(49):
            token = ids[:, position : position + 1] if position < 20 else torch.tensor([[expected[-1]]])
            likeliest = model(token, past_key_values=cache).logits[0, -1].argmax()
            if position >= 19:
                expected.append(int(likeliest))
    assert made[0].tolist() == expected


def test_a_full_cache_generates_what_transformers_own_cache_does(tiny_llama, tokens):
    model = tiny_llama(torch.float64)
    ids = tokens(20)[None]
    ours = generate(model, ids, KVStreamCache(model, Full()))
    assert torch.equal(ours, generate(model, ids, DynamicCache()))
    assert torch.equal(
        generate(model, ids, KVStreamCache(model, Full()), num_beams=3),
        generate(model, ids, DynamicCache(), num_beams=3),
    )


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_rows_can_be_reordered_repeated_and_selected(tiny_neox, tokens, policy):
    model = tiny_neox(torch.float64)
    first, second = tokens(40, 1), tokens(40, 2)
    batch = torch.stack([first, second])
    with torch.no_grad():
        cache = KVStreamCache(model, policy)
        for part in batch[:, :30].split([20, *[1] * 10], dim=1):  # single tokens settle contests ahead
            model(part, past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0, 1]))
        swapped = model(batch[[1, 0, 1], 30:31], past_key_values=cache).logits
        cache.batch_select_indices(torch.tensor([2, 1]))
        cache.batch_repeat_interleave(2)
        repeated = model(batch[[1, 1, 0, 0], 31:33], past_key_values=cache).logits
        for text, one, more in ((second, swapped[0], repeated[0]), (first, swapped[1], repeated[3])):
            alone = KVStreamCache(model, policy)
            model(text[None, :30], past_key_values=alone)
            assert torch.allclose(one, model(text[None, 30:31], past_key_values=alone).logits[0], atol=1e-9)
            assert torch.allclose(more, model(text[None, 31:33], past_key_values=alone).logits[0], atol=1e-9)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_reset_cache_is_a_new_one(tiny_llama, tokens, policy):
    model = tiny_llama(torch.float64)
    cache = KVStreamCache(model, policy)
    ids = tokens(30)[None]
    with torch.no_grad():
        before = model(ids, past_key_values=cache).logits
        cache.reset()
        assert torch.equal(model(ids, past_key_values=cache).logits, before)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_grad_modes_may_be_mixed(tiny_neox, tokens, policy):
    model = tiny_neox(torch.float64)
    ids = tokens(30)[None]
    cache = KVStreamCache(model, policy)
    cache.hidden_states(model, ids[:, :20])
    with torch.no_grad():
        model(ids[:, 20:21], past_key_values=cache)
    mixed = model(ids[:, 21:], past_key_values=cache).logits[0, :-1].log_softmax(-1)
    expected = replay(model, ids, policy)[21:]
    assert torch.allclose(-mixed.gather(1, ids[0, 22:, None])[:, 0], expected, atol=1e-5)


def test_the_model_behaves_as_before_with_other_caches(tokens):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    ids = torch.stack([tokens(20, 1), tokens(20, 2)])
    padded = torch.ones_like(ids)
    padded[0, :4] = 0
    with torch.no_grad():
        before = model(ids).logits, model(ids, attention_mask=padded).logits
        decode(model, ids[0], StreamingLLM(2, 5))
        assert model.config._attn_implementation == "kvstream"
        assert torch.allclose(model(ids).logits, before[0], atol=1e-6)
        assert torch.allclose(model(ids, attention_mask=padded).logits[:, 4:], before[1][:, 4:], atol=1e-6)
        cache = DynamicCache()
        model(ids[:, :10], past_key_values=cache)
        assert torch.allclose(model(ids[:, 10:], past_key_values=cache).logits, before[0][:, 10:], atol=1e-6)


def test_models_it_cannot_serve_are_refused(tokens):
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=97))
    with pytest.raises(ValueError, match="no rotary embedding"):
        KVStreamCache(gpt2, RecentOnly(4))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    windowed = MistralForCausalLM(MistralConfig(vocab_size=97, sliding_window=8, num_key_value_heads=2, **shape))
    with pytest.raises(ValueError, match="sliding_window=8"):
        replay(windowed, tokens(20), RecentOnly(4))
    dynamic = LlamaForCausalLM(
        LlamaConfig(vocab_size=97, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, **shape)
    )
    with pytest.raises(ValueError, match="rope_type='dynamic'"):
        KVStreamCache(dynamic, RecentOnly(4))
    with pytest.raises(ValueError, match=r"layer 3 does not exist; LlamaForCausalLM has layers 0 to 1"):
        KVStreamCache(LlamaForCausalLM(LlamaConfig(vocab_size=97, **shape)), RecentOnly(4, skip_layers=(0, 3)))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_memory_is_bounded_and_counted(tiny_neox, tokens, policy):
    model = tiny_neox()
    cache = KVStreamCache(model, policy)
    for chunk in tokens(90).split(30):
        cache.hidden_states(model, chunk[None])
    key = 64 * 4
    if policy.regions is None:
        assert 3 * 90 * 2 * key <= cache.kv_bytes <= 2 * 3 * 90 * 2 * key
    else:  # the budget, the current token and the spare seat; sinks' and contested keys twice
        sinks, contested = policy.regions.sinks, policy.regions.contested + 1 if policy.regions.contested else 0
        slots = policy.regions.budget + 1 + bool(contested)
        assert cache.kv_bytes == 3 * (2 * slots + sinks + (contested if policy.position == "cache" else 0)) * key


def test_a_call_that_was_interrupted_is_not_continued(tiny_neox, tokens):
    model = tiny_neox()
    cache = KVStreamCache(model, StreamingLLM(2, 5))
    cache.hidden_states(model, tokens(10)[None])
    answer = cache.layers[1].attend
    cache.layers[1].attend = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.hidden_states(model, tokens(3)[None])
    cache.layers[1].attend = answer
    with pytest.raises(ValueError, match="interrupted between two layers"):
        cache.hidden_states(model, tokens(3)[None])
    cache.reset()
    assert cache.hidden_states(model, tokens(3)[None]).isfinite().all()


def test_models_that_compute_something_else_are_refused():
    from transformers import GraniteConfig, GraniteForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.3}
    scaled = GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=8.0)).eval()
    unrotated = SmolLM3ForCausalLM(SmolLM3Config(**shape)).eval()
    for model in (scaled, unrotated):
        for _ in range(2):  # the second time, too
            with pytest.raises(ValueError, match="computes something that kvstream does not"):
                KVStreamCache(model, RecentOnly(4))


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(2, 6), FixSizeL2(8, 0.5, "keep_low")], ids=str)
def test_a_cache_is_freed_with_its_last_reference(tiny_neox, tokens, policy):
    """Without waiting for the garbage collector, which latency cells switch off."""
    cache = KVStreamCache(tiny_neox(), policy)
    for part in tokens(30)[None].split([20, *[1] * 10], dim=1):
        cache.hidden_states(tiny_neox(), part)
    layers = [weakref.ref(layer) for layer in cache.layers]
    gc.collect()
    gc.disable()
    try:
        del cache
        assert not any(layer() for layer in layers)
    finally:
        gc.enable()
