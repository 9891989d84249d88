"""What a caller says is obeyed or refused; a cache is a value; what people wrap around models is respected."""

import copy
import gc
import io
import pickle
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from exactness_cases import TOLERANCE, every_pair, spec_of
from oracle import oracle_trace
from situations import Architecture
from torch.nn.functional import log_softmax
from transformers import BatchEncoding, DynamicCache, LlamaForCausalLM

from kvstream import FixSizeL2, Full, KVStreamCache, RecentOnly, StreamingLLM, decode, generate, replay
from kvstream.engine.model_watch import SAYS_WHAT_IT_CUTS

POLICIES = [
    Full(),
    StreamingLLM(4, 28),
    StreamingLLM(4, 28, position="absolute"),
    StreamingLLM(2, 10, skip_layers=(1,)),
    FixSizeL2(16, 0.5, "keep_low"),
    FixSizeL2(16, 0.5, "random"),
]
IDS = torch.randint(3, 128, (1, 200), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(24, 24).tril().bool()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def tiny(name="Llama", dtype=torch.float32, **more):
    return Architecture(name, more).build(dtype)


@pytest.fixture(scope="module")
def llama():
    """One that no test changes."""
    return tiny()


def nll(logits, ids):
    return -log_softmax(logits[0, :-1].double(), -1).gather(1, ids[0, 1:, None])[:, 0]


def saved(cache):
    buffer = io.BytesIO()
    torch.save(cache, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


# A cache is a value.


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "torch.save": saved}
COPIES["pickle"] = lambda cache: pickle.loads(pickle.dumps(cache))


@pytest.mark.parametrize(("policy", "prompt", "copied"), every_pair(POLICIES, [0, 1, 12, 60], list(COPIES)), ids=str)
def test_a_cache_is_a_value(llama, policy, prompt, copied):
    """The prompt is cached once and copied for each question, at every stage of a cache."""
    cache, copied = KVStreamCache(llama, policy), COPIES[copied]
    if prompt:
        llama(IDS[:, :prompt], past_key_values=cache)
        llama(IDS[:, prompt : prompt + 1], past_key_values=cache)  # single tokens turn sinks and settle contests
    # The copy goes first, on another text; then both go on with the same, each in its own way.
    other = copied(cache)
    llama(IDS[:, 100:110], past_key_values=copied(cache))
    steps = [llama(token, past_key_values=cache).logits for token in IDS[:, 61:80].split(1, dim=1)]
    same = [llama(token, past_key_values=other).logits for token in IDS[:, 61:80].split(1, dim=1)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(steps, same))
    chunk = [llama(IDS[:, 80:120], past_key_values=each).logits for each in (cache, other)]
    assert torch.equal(*chunk)


def test_a_copy_outlives_what_it_was_copied_of(llama):
    cache = KVStreamCache(llama, StreamingLLM(4, 28))
    llama(IDS[:, :60], past_key_values=cache)
    other, expected = copy.deepcopy(cache), llama(IDS[:, 60:61], past_key_values=copy.deepcopy(cache)).logits
    del cache
    gc.collect()
    assert torch.equal(llama(IDS[:, 60:61], past_key_values=other).logits, expected)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_tokens_are_taken_back(llama, policy):
    for takes_back in (lambda cache: cache.crop(-4), lambda cache: cache.crop(6)):
        cache, fresh = KVStreamCache(llama, policy), KVStreamCache(llama, policy)
        held = 10 if policy.regions is None or policy.regions.recent > 8 else 8  # before any token is contested
        llama(IDS[:, :held], past_key_values=cache)
        cache.crop(0)
        assert cache.get_seq_length() == held
        takes_back(cache)
        left = cache.get_seq_length()
        assert left in (held - 4, 6)
        llama(IDS[:, :left], past_key_values=fresh)
        for token in IDS[:, 100:140].split(1, dim=1):
            assert torch.allclose(*(llama(token, past_key_values=each).logits for each in (cache, fresh)), atol=1e-5)


@pytest.mark.parametrize("policy", [each for each in POLICIES if each.regions], ids=str)
def test_what_was_evicted_cannot_be_taken_back(llama, policy):
    cache = KVStreamCache(llama, policy)
    llama(IDS[:, :60], past_key_values=cache)
    after = llama(IDS[:, 60:61], past_key_values=copy.deepcopy(cache)).logits
    with pytest.raises(ValueError, match=r"crop\(-1\): of the 60 tokens seen, .* has evicted some"):
        cache.crop(-1)
    assert torch.equal(llama(IDS[:, 60:61], past_key_values=cache).logits, after)


def test_prompt_lookup_decoding_takes_tokens_back_of_a_full_cache(llama):
    ids = torch.cat([IDS[:, :10]] * 3, dim=1)
    said = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "do_sample": False}
    plain = llama.generate(ids, past_key_values=DynamicCache(), **said)
    made = llama.generate(ids, past_key_values=KVStreamCache(llama, Full()), prompt_lookup_num_tokens=3, **said)
    assert torch.equal(made, plain)
    with pytest.raises(ValueError, match="crop"):
        llama.generate(ids, past_key_values=KVStreamCache(llama, RecentOnly(8)), prompt_lookup_num_tokens=3, **said)


# Several turns.


def generated(model, ids, cache, **said):
    return model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=False, **said)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_turns_of_generate_go_on(llama, policy):
    """The whole history each time, and what the cache holds is not computed again."""
    cache, ids = KVStreamCache(llama, policy), IDS[:, :20]
    for turn in range(3):
        ids = generated(llama, ids, cache, max_new_tokens=6)
        assert cache.get_seq_length() == ids.shape[1] - 1
        ids = torch.cat((ids, IDS[:, 100 + 10 * turn : 107 + 10 * turn]), dim=1)
    again = KVStreamCache(llama, policy)
    for token in ids[:, : cache.get_seq_length()].split(1, dim=1):
        llama(token, past_key_values=again)
    last = ids[:, cache.get_seq_length() : cache.get_seq_length() + 1]
    assert torch.allclose(*(llama(last, past_key_values=each).logits for each in (cache, again)), atol=1e-4)


def test_another_prompt_is_refused(llama):
    cache = KVStreamCache(llama, StreamingLLM(4, 28))
    ids = generated(llama, IDS[:, :20], cache, max_new_tokens=5)
    other = IDS[:, 50:120]
    for prompt in (other, ids[:, :10], ids[:, : cache.get_seq_length()], IDS[:, 100:103]):
        says = r"do not begin with the 24 tokens that the cache holds.*reset\(\)"
        # Before transformers says what it cuts, it counts positions first, and of no token there is none.
        short = prompt.shape[1] <= cache.get_seq_length() and not SAYS_WHAT_IT_CUTS
        with pytest.raises((ValueError, IndexError) if short else ValueError, match=None if short else says):
            generated(llama, prompt, cache, max_new_tokens=5)
    copied = copy.deepcopy(cache)
    with pytest.raises(ValueError, match="do not begin with the 24 tokens"):
        generated(llama, other, copied, max_new_tokens=5)
    cache.reset()
    fresh = generated(llama, other, KVStreamCache(llama, StreamingLLM(4, 28)), max_new_tokens=5)
    assert torch.equal(generated(llama, other, cache, max_new_tokens=5), fresh)
    in_pieces = generated(
        llama, other, KVStreamCache(llama, StreamingLLM(4, 28)), max_new_tokens=5, prefill_chunk_size=9
    )
    assert torch.equal(in_pieces, fresh)
    if SAYS_WHAT_IT_CUTS:  # new tokens alone are passed with a mask over all of them; transformers 5.0 cannot
        mask = torch.ones(1, cache.get_seq_length() + 3, dtype=torch.long)
        llama.generate(IDS[:, :3], attention_mask=mask, past_key_values=cache, max_new_tokens=2, do_sample=False)
    with pytest.raises(ValueError, match="input_ids: none beyond"):
        llama(IDS[:, :0], past_key_values=cache)


@pytest.mark.parametrize("policy", [POLICIES[1], POLICIES[4]], ids=str)
def test_a_beams_score_is_what_the_oracle_gives_its_tokens(llama, policy):
    """Which it is only if the cache took the rows of the beams that went on, whenever some ended or met."""
    cache, orders = KVStreamCache(llama, policy), []
    reorder = cache.reorder_cache
    cache.reorder_cache = lambda rows: (orders.append(rows.tolist()), reorder(rows))
    said = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0, "max_new_tokens": 8}
    said |= {"return_dict_in_generate": True, "output_scores": True}
    made = generated(llama, IDS[:, :40], cache, **said)
    assert made.sequences.shape == (3, 48)
    assert len({tuple(row) for row in made.sequences.tolist()}) == 3
    assert any(order != [0, 1, 2] for order in orders[1:]), "each beam kept its row, so nothing is told"
    for row, score in zip(made.sequences, made.sequences_scores.tolist()):
        nll = oracle_trace(llama, row, spec_of(policy)).nll_nats
        assert -nll[39:].sum() == pytest.approx(score, abs=8 * TOLERANCE[torch.float32])


def test_samples_are_followed(llama):
    torch.manual_seed(0)
    cache = KVStreamCache(llama, FixSizeL2(16, 0.5, "keep_low"))
    ids = llama.generate(IDS[:, :40], past_key_values=cache, do_sample=True, max_new_tokens=8)
    assert torch.equal(cache.told.ids_BN[:, : cache.told.count], ids[:, :-1])


# What is said beside the tokens.


def refused(model, match, policy=None, before=0, ids=IDS[:, :24], **said):
    cache = KVStreamCache(model, policy or StreamingLLM(2, 10))
    if before:
        model(IDS[:, :before], past_key_values=cache)
    with pytest.raises(ValueError, match=match) as refusal:
        model(ids, past_key_values=cache, **said)
    assert "\n" not in str(refusal.value)
    # Nothing was computed, and nothing hinders the next call.
    assert cache.get_seq_length() == before
    assert model(IDS[:, before : before + 3], past_key_values=cache).logits.isfinite().all()


def test_masks_are_refused(llama):
    packed = torch.arange(24) // 12
    prefix = MASK | (torch.arange(24) < 8)
    for hidden in (~(MASK & (packed[:, None] == packed)), ~prefix):
        added = torch.zeros(1, 1, 24, 24).masked_fill(hidden, torch.finfo(torch.float32).min)
        refused(llama, "attention_mask: 4 dimensions.*one by one", attention_mask=added)
        refused(llama, "attention_mask: 4 dimensions", attention_mask={"full_attention": added})
    for hidden in (slice(0, 3), slice(23, 24)):
        padded = torch.ones(1, 24, dtype=torch.long)
        padded[:, hidden] = 0
        refused(llama, "padding is not supported.*group texts by length", attention_mask=padded)
    for nothing_hidden in (None, torch.ones(1, 24)):
        cache = KVStreamCache(llama, Full())
        assert torch.allclose(
            llama(IDS[:, :24], past_key_values=cache, attention_mask=nothing_hidden).logits,
            llama(IDS[:, :24]).logits,
            atol=1e-4,
        )


def test_positions_are_refused(llama):
    order = torch.arange(24)
    for positions in (order % 12, 2 * order, order + 5, order.flip(0), order / 2):
        refused(llama, r"position_ids: KVStreamCache places these tokens at 0 … 23", position_ids=positions[None])
    refused(llama, r"at 7 … 30", before=7, position_ids=order[None])
    cache = KVStreamCache(llama, Full())
    llama(IDS[:, :7], past_key_values=cache, position_ids=torch.arange(7)[None])
    llama(IDS[:, 7:31], past_key_values=cache, position_ids=(order + 7)[None])


def test_ids_beyond_the_vocabulary_are_refused(llama):
    for place in (0, 11, 23):
        for wrong in (128, -1, 10**6):
            ids = IDS[:, :24].clone()
            ids[0, place] = wrong
            says = rf"input_ids: {wrong} at position {place} is no token"
            for ask in (replay, decode):
                with pytest.raises(ValueError, match=says):
                    ask(llama, ids, Full())
            refused(llama, says, ids=ids)
    with pytest.raises(ValueError, match="is not a dtype of token ids"):
        replay(llama, IDS[:, :5].float(), Full())


def test_other_rows_are_refused(llama):
    cache = KVStreamCache(llama, StreamingLLM(2, 10))
    four = IDS.view(4, 50)
    llama(four[:, :20], past_key_values=cache)
    for rows in (four[:1, 20:21], four[:3, 20:30], torch.cat((four, four))[:, 20:21]):
        with pytest.raises(ValueError, match=rf"input_ids: {len(rows)} texts for a cache that holds 4"):
            llama(rows, past_key_values=cache)
        with pytest.raises(ValueError, match="texts for a cache that holds 4"):
            cache.hidden_states(llama, rows)
    cache.batch_select_indices(torch.tensor([2]))
    llama(four[2:3, 20:21], past_key_values=cache)


def test_another_model_is_refused(llama):
    cache = KVStreamCache(llama, StreamingLLM(2, 10))
    others = [tiny(), tiny("Qwen2"), copy.deepcopy(llama)]
    for other in others:
        with pytest.raises(ValueError, match=r"this cache (was made for another|meets a) model"):  # not looked at yet
            other(IDS[:, :5], past_key_values=cache)
        with pytest.raises(ValueError, match="this cache was made for another model"):
            replay_with(other, cache)
        KVStreamCache(other, Full())
        with pytest.raises(ValueError, match="this cache was made for another model"):
            other(IDS[:, :5], past_key_values=cache)
        with pytest.raises(ValueError, match="this cache was made for another model"):
            replay_with(other, cache)
    taken = pickle.loads(pickle.dumps(cache))  # as in another process, which has a model like it
    with pytest.raises(ValueError, match="this cache was made for another model"):
        others[1](IDS[:, :5], past_key_values=taken)
    changed = tiny()
    KVStreamCache(changed, Full())
    for parameter in changed.parameters():
        parameter.mul_(1.5)
    with pytest.raises(ValueError, match="this cache was made for another model"):
        changed(IDS[:, :5], past_key_values=taken)
    others[0](IDS[:, :5], past_key_values=taken)
    with pytest.raises(ValueError, match="this cache was made for another model"):
        llama(IDS[:, 5:6], past_key_values=taken)


def replay_with(model, cache):
    return cache.hidden_states(model, IDS[:, :5])


def test_another_attention_is_refused():
    model = tiny()
    cache = KVStreamCache(model, StreamingLLM(2, 10))
    model(IDS[:, :20], past_key_values=cache)
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        with pytest.raises(ValueError, match=f"its attention was set to '{name}' after this cache was made"):
            model(IDS[:, 20:21], past_key_values=cache)
    model.set_attn_implementation("kvstream")
    model(IDS[:, 20:21], past_key_values=cache)


def test_autocast_is_refused(llama):
    cache = KVStreamCache(llama, Full())
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"autocast: .*dtype=torch.bfloat16"),
    ):
        llama(IDS[:, :5], past_key_values=cache)
    llama(IDS[:, :5], past_key_values=cache)


def test_attention_weights_are_refused(llama):
    refused(llama, "output_attentions: KVStreamCache keeps no attention weights", output_attentions=True)


def test_dropout_is_refused():
    model = tiny(attention_dropout=0.1)
    cache = KVStreamCache(model, Full())
    with pytest.raises(ValueError, match=r"drops out 0.1 of its numbers; call model.eval\(\)"):
        model.train()(IDS[:, :5], past_key_values=cache)


def test_arguments_without_names_are_heard(llama):
    for model in (llama, llama.model):
        cache = KVStreamCache(llama, Full())
        model(IDS[:, :5], torch.ones(1, 5), None, cache)
        with pytest.raises(ValueError, match="padding"):
            model(IDS[:, 5:7], torch.zeros(1, 7), None, cache)


def test_backward_says_that_there_is_no_gradient():
    with torch.enable_grad():
        model = tiny()
        loss = nll(model(IDS, past_key_values=KVStreamCache(model, Full())).logits, IDS).mean()
        with pytest.raises(RuntimeError, match=r"KVStreamCache computes no gradients; .*torch.no_grad"):
            loss.backward()
        model(IDS, labels=IDS, use_cache=False).loss.backward()  # without it, as ever
        assert model.model.layers[1].self_attn.q_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("learning", ["k_proj", "v_proj"])
def test_backward_says_so_where_keys_or_values_alone_learn(learning):
    """Else the head's gradient would end without an error, and theirs be none."""
    with torch.enable_grad():
        model = tiny()
        for name, weight in model.named_parameters():
            weight.requires_grad_(learning in name or "lm_head" in name)
        loss = nll(model(IDS, past_key_values=KVStreamCache(model, StreamingLLM(2, 10))).logits, IDS).mean()
        with pytest.raises(RuntimeError, match="KVStreamCache computes no gradients"):
            loss.backward()


def test_what_a_call_that_failed_has_told_of_other_rows_is_forgotten(llama):
    cache = KVStreamCache(llama, StreamingLLM(2, 10))
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        llama(IDS[:, :9].repeat(2, 1), inputs_embeds=torch.zeros(2, 9, 8), past_key_values=cache)
    llama(IDS[:, :9], past_key_values=cache)
    assert torch.equal(cache.told.ids, IDS[:, :9])
    with pytest.raises(ValueError, match="do not begin with the 9 tokens"):
        generated(llama, IDS[:, 50:80], cache, max_new_tokens=2)


def test_a_restored_empty_state_still_asks_what_follows(llama):
    cache = KVStreamCache(llama, StreamingLLM(2, 10))
    cache.restore(KVStreamCache(llama, StreamingLLM(2, 10)).state())
    generated(llama, IDS[:, :9], cache, max_new_tokens=2)
    with pytest.raises(ValueError, match="do not begin with the 10 tokens"):
        generated(llama, IDS[:, 50:80], cache, max_new_tokens=2)


def test_a_prompt_in_pieces_is_refused_where_a_cache_holds_tokens(llama):
    cache = KVStreamCache(llama, StreamingLLM(4, 28))
    ids = generated(llama, IDS[:, :20], cache, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"prefill_chunk_size=9: .* the 24 tokens that the cache holds; leave it out"):
        generated(llama, IDS[:, 50:120], cache, max_new_tokens=5, prefill_chunk_size=9)
    assert cache.get_seq_length() == 24
    generated(llama, torch.cat((ids, IDS[:, 30:40]), 1), cache, max_new_tokens=2)


def test_an_unpickled_cache_takes_a_state(llama):
    cache = KVStreamCache(llama, StreamingLLM(2, 10))
    llama(IDS[:, :9], past_key_values=cache)
    other = pickle.loads(pickle.dumps(KVStreamCache(llama, StreamingLLM(2, 10))))
    other.restore(cache.state())
    ours, theirs = (llama(IDS[:, 9:12], past_key_values=each).logits for each in (other, cache))
    assert torch.equal(ours, theirs)


# What is wrapped around a model.


class Mine(LlamaForCausalLM):
    """A user's own class, in a module without rotary code."""


def exact(model, expected=None, **said):
    """replay, decode and forward give what the model itself gives."""
    ids = IDS[:, :60]
    own = nll(model(ids).logits, ids) if expected is None else expected
    for found in (replay(model, ids, Full(), chunk_size=17), decode(model, ids, Full()).nll_nats):
        assert (found - own).abs().max() < 1e-4
    assert (nll(model(ids, past_key_values=KVStreamCache(model, Full())).logits, ids) - own).abs().max() < 1e-4
    return own


def test_the_heads_own_forward_is_used():
    plain, hooked, patched, wrapped, early = (tiny() for _ in range(5))
    hooked.lm_head.register_forward_hook(lambda module, args, output: output / 3)
    forward = patched.lm_head.forward
    patched.lm_head.forward = lambda hidden: forward(hidden) / 3
    wrapped.lm_head = torch.nn.Sequential(wrapped.lm_head, SimpleScale())
    early.lm_head.register_forward_pre_hook(lambda module, args: (args[0] / 3,))
    owns = [exact(model) for model in (plain, hooked, patched, wrapped, early)]
    assert all((own - owns[0]).abs().max() > 0.1 and torch.allclose(own, owns[1]) for own in owns[1:])
    KVStreamCache(plain, Full())
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: output / 3 if module is plain.lm_head else None
    )
    try:
        assert torch.allclose(exact(plain), owns[1])
    finally:
        handle.remove()


class SimpleScale(torch.nn.Module):
    def forward(self, x):
        return x / 3


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_models_are_served(where, tmp_path):
    from accelerate import cpu_offload, disk_offload

    own = exact(tiny())
    model = tiny()
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert model.lm_head.weight.is_meta
    exact(model, own)
    state = KVStreamCache(model, StreamingLLM(2, 10))
    replayed = replay(model, IDS[:, :60], StreamingLLM(2, 10))
    assert torch.allclose(replayed, replay(tiny(), IDS[:, :60], StreamingLLM(2, 10)), atol=1e-5)
    state.restore(state.state())


def test_wrapped_models_are_served():
    own = exact(tiny())
    subclass = tiny()
    subclass.__class__ = Mine
    exact(subclass, own)
    exact(torch.nn.DataParallel(tiny()), own)


@pytest.mark.long
def test_compiled_models_are_served():
    """torch takes seconds to import what compiles."""
    own = exact(tiny())
    compiled = torch.compile(tiny(), backend="eager")
    for found in (replay(compiled, IDS[:, :60], Full()), decode(compiled, IDS[:, :60], Full()).nll_nats):
        assert (found - own).abs().max() < 1e-4
    cache = KVStreamCache(compiled, StreamingLLM(2, 10))
    logits = [compiled(part, past_key_values=cache).logits for part in IDS[:, :44].split([40, *[1] * 4], dim=1)]
    expected = replay(tiny(), IDS[:, :44], StreamingLLM(2, 10))
    assert (nll(torch.cat(logits, dim=1), IDS[:, :44]) - expected).abs().max() < 1e-4


def with_adapter(**targets):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    return get_peft_model(tiny(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **targets)).eval()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj", "lm_head"]], ids=["attention", "head"])
def test_adapters_are_evaluated(targets):
    base, model = exact(tiny()), with_adapter(target_modules=targets)
    adapted = exact(model)
    assert (adapted - base).abs().max() > 0.1
    with model.disable_adapter():
        exact(model, base)
    cache = KVStreamCache(model, StreamingLLM(4, 28))
    length = {"min_new_tokens": 5, "max_new_tokens": 5}
    made = model.generate(input_ids=IDS[:, :40], past_key_values=cache, do_sample=False, **length)
    assert made.shape[1] == 45
    exact(model.merge_and_unload(), adapted)


def test_learned_prompts_are_refused():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    for ask in (lambda: KVStreamCache(model, Full()), lambda: replay(model, IDS, Full())):
        with pytest.raises(ValueError, match="'default' puts learned tokens before the text"):
            ask()


def test_a_copied_model_asks_its_own_cache(llama):
    KVStreamCache(llama, Full())
    copied = copy.deepcopy(llama)
    for parameter in copied.parameters():
        parameter.mul_(1.1)
    made = generated(copied, IDS[:, :20], KVStreamCache(copied, Full()), max_new_tokens=5)
    assert torch.equal(made, generated(copied, IDS[:, :20], DynamicCache(), max_new_tokens=5))
    assert copied.prepare_inputs_for_generation.__self__ is copied


def test_a_model_copied_with_its_cache_goes_on_with_the_copy(llama):
    cache = KVStreamCache(llama, StreamingLLM(2, 10))
    llama(IDS[:, :20], past_key_values=cache)
    both = copy.deepcopy({"model": llama, "cache": cache})
    after = both["model"](IDS[:, 20:21], past_key_values=both["cache"]).logits
    assert torch.equal(after, llama(IDS[:, 20:21], past_key_values=cache).logits)


def test_a_converted_model_wants_a_new_cache():
    model = tiny()
    cache = KVStreamCache(model, StreamingLLM(2, 10))
    model(IDS[:, :20], past_key_values=cache)
    for convert in (lambda: model.to(torch.bfloat16).float(), model.double):
        convert()
        with pytest.raises(ValueError, match="was converted or moved to another device"):
            model(IDS[:, 20:21], past_key_values=cache)
        KVStreamCache(model, Full())


def test_a_model_is_freed_with_its_last_reference():
    model = tiny()
    KVStreamCache(model, Full())
    held = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert held() is None
    finally:
        gc.enable()


def test_generate_takes_embeddings_as_before(llama):
    embeds = llama.get_input_embeddings()(IDS[:, :20])
    said = {"inputs_embeds": embeds, "max_new_tokens": 5, "do_sample": False}
    made = [llama.generate(past_key_values=cache, **said) for cache in (KVStreamCache(llama, Full()), DynamicCache())]
    assert torch.equal(*made)


def test_a_failed_call_leaves_the_cache_as_it_was(llama):
    cache = KVStreamCache(llama, StreamingLLM(4, 28))
    hook = llama.model.embed_tokens.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generated(llama, IDS[:, :20], cache, max_new_tokens=3)
    hook.remove()
    fresh = generated(llama, IDS[:, :20], KVStreamCache(llama, StreamingLLM(4, 28)), max_new_tokens=3)
    assert torch.equal(generated(llama, IDS[:, :20], cache, max_new_tokens=3), fresh)


def test_a_copy_of_an_interrupted_cache_is_interrupted(llama):
    cache = KVStreamCache(llama, Full())
    llama(IDS[:, :24], past_key_values=cache)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = llama.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        llama(IDS[:, 24:25], past_key_values=cache)
    hook.remove()
    for each in (cache, copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        with pytest.raises(ValueError, match="interrupted between two layers"):
            llama(IDS[:, 24:25], past_key_values=each)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_what_inference_mode_made_is_used_outside_it(llama, policy):
    two = IDS[:, :40].repeat(2, 1)
    cache = KVStreamCache(llama, policy)
    with torch.inference_mode():
        for part in two.split([30, 10], dim=1):  # so that more ids have room than there are
            llama(part, past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
    steps = [
        [llama(token, past_key_values=each).logits for token in two[:, :8].split(1, dim=1)] for each in (cache, *copies)
    ]
    assert all(torch.equal(a, b) for other in steps[1:] for a, b in zip(steps[0], other))


def test_a_restored_cache_knows_its_text_and_its_model(llama):
    cache = KVStreamCache(llama, Full())
    llama(IDS[:, :20], past_key_values=cache)
    state, other = cache.state(), KVStreamCache(llama, Full())
    other.restore(state)
    with pytest.raises(ValueError, match="do not begin with the 20 tokens"):
        generated(llama, IDS[:, 50:90], other, max_new_tokens=3)
    double = KVStreamCache(tiny(dtype=torch.float64), Full())
    with pytest.raises(ValueError, match=r"of a model in torch.float32, this is in torch.float64"):
        double.restore(state)
    bounded = KVStreamCache(llama, StreamingLLM(2, 10))
    llama(IDS[:, :33], past_key_values=bounded)
    with pytest.raises(ValueError, match="20 tokens under full"):
        bounded.restore(state)
    assert bounded.get_seq_length() == 33


def test_many_threads_begin_at_once():
    model, expected = tiny(), replay(tiny(), IDS, StreamingLLM(4, 28))
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: replay(model, IDS, StreamingLLM(4, 28)), range(6)))
    assert all(torch.allclose(each, expected, atol=1e-5) for each in found)


def test_rows_are_selected_as_tensors_are(llama):
    two = torch.cat((IDS[:, :20], IDS[:, 20:40]))
    for which in (torch.tensor([False, True]), torch.tensor([-1]), [1]):
        cache = KVStreamCache(llama, StreamingLLM(2, 10))
        llama(two, past_key_values=cache)
        cache.batch_select_indices(which)
        alone = KVStreamCache(llama, StreamingLLM(2, 10))
        llama(two[1:], past_key_values=alone)
        logits = [llama(IDS[:, 50:51], past_key_values=each).logits for each in (cache, alone)]
        assert torch.allclose(*logits, atol=1e-5)


def test_what_is_no_model_of_transformers_is_said():
    for wrong in (torch.nn.Linear(2, 2), tiny().model):
        with pytest.raises(ValueError, match=r"…ForCausalLM"):
            KVStreamCache(wrong, Full())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: KVStreamCache(model, "full"), "policy: 'full' is not a policy; give parse_policy"),
        (lambda model: replay(model, torch.tensor([1, 2]), None), "policy: None .* give one such as StreamingLLM"),
        (lambda model: decode(model, torch.tensor([1, 2]), Full), "policy: <class .* give one such as StreamingLLM"),
        (lambda model: KVStreamCache(model, Full(), capacity=0), "capacity=0 is not valid"),
        (lambda model: replay(model, BatchEncoding({"input_ids": [1, 2]}), Full()), "BatchEncoding .* its input_ids"),
        (lambda model: replay(model, None, Full()), "NoneType is not a tensor"),
        (lambda model: replay(model, [1, 2], Full()), "int is not a tensor"),
        (lambda model: generate(model, torch.tensor([1]), Full(), max_new_tokens=2.5), "max_new_tokens=2.5 is not"),
    ],
)
def test_what_is_no_policy_text_or_number_is_said(llama, call, words):
    with pytest.raises(ValueError, match=words):
        call(llama)


def test_a_model_without_a_cache_passes_at_once(llama):
    KVStreamCache(llama, Full())
    order = torch.arange(24)
    said = {"position_ids": (order % 12)[None], "attention_mask": torch.ones(1, 24)}
    assert torch.equal(llama(IDS[:, :24], **said).logits, llama(IDS[:, :24], past_key_values=None, **said).logits)


# The recipes in docs/caches.md.


@pytest.mark.long
def test_the_recipes_work(capsys):
    page = (Path(__file__).parent.parent.parent / "docs" / "caches.md").read_text()
    there = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, there)
    assert len(capsys.readouterr().out.splitlines()) >= 3
    model, tokenizer, cache, ids = (there[name] for name in ("model", "tokenizer", "cache", "ids"))
    # The conversation as it was said is what the cache holds, and reads as the template would write it.
    said = tokenizer.decode(ids[0])
    assert re.findall(r"<\|im_start\|>(\w+)", said) == ["system", *["user", "assistant"] * 3]
    assert "<|im_end|>\n<|im_start|>user\nName another.<|im_end|>\n<|im_start|>assistant\n" in said
    assert torch.equal(cache.told.ids_BN[:, : cache.told.count], ids[:, : cache.told.count])
    # While nothing is evicted, the policy makes no difference.
    plain = model.generate(ids[:, :-3], past_key_values=DynamicCache(), max_new_tokens=3, do_sample=False)
    assert torch.equal(plain[:, : ids.shape[1]], ids)
    # What a template renders anew is another text, and is refused.
    anew = torch.cat((ids[:, :20], ids[:, 21:], ids[:, :9]), dim=1)
    with pytest.raises(ValueError, match="do not begin with"):
        generated(model, anew, cache, max_new_tokens=2)
