"""replay, decode and the cache under plain transformers calls equal the token-by-token oracle, and one another.

A float32 comparison of norm-based policies is fair only while no two norms that compete are closer than float32 can
tell apart. The matrix below is pinned to sequences where that holds (and checks it); elsewhere such policies are
compared in float64.
"""

import copy
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
import torch
from exactness_cases import BOUNDED, FLOAT32, FLOAT64, MODES, TOLERANCE, assert_close, every_pair, spec_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import Asked, Trace, oracle_trace, protected_of
from tiny import build_model

from kvstream import (
    H2O,
    TOVA,
    FixSizeL2,
    Full,
    KeyDiff,
    KVStreamCache,
    L2Compress,
    RecentOnly,
    SnapKV,
    StreamingLLM,
    decode,
    replay,
)
from kvstream.engine.scoring import score
from kvstream.policies import POLICIES
from kvstream.policies.fields import axes_of, spanned

FAMILIES = ["neox", "neox_serial", "llama"]
T, SEED = 37, 3
SKIPS = [(), (0, 1)]
# Each two of (policy, mode, skipped layers, family) meet.
MATRIX = [(Full(), family) for family in FAMILIES]
MATRIX += [
    (replace(policy, position=mode, skip_layers=skip), family)
    for policy, mode, skip, family in every_pair(BOUNDED, MODES, SKIPS, FAMILIES)
]
# Corners of the parameters, each in the mode where every kept key's rank counts.
CORNERS = [
    StreamingLLM(start_size=1, recent_size=1),
    StreamingLLM(start_size=30, recent_size=1),
    RecentOnly(window_size=1),
    RecentOnly(window_size=T - 2),
    *(FixSizeL2(budget=6, keep_ratio=ratio, strategy=s) for ratio in (0.0, 1.0) for s in ("keep_low", "random")),
    *(FixSizeL2(budget=1, keep_ratio=ratio, strategy=s) for ratio in (0.0, 1.0) for s in ("keep_high", "random")),
]


def nll_by_calls(model, ids: torch.Tensor, policy, sizes: list[int]) -> torch.Tensor:
    """Feed (T,) or (B, T) ids to `model(...)` in calls of the given sizes, the last one repeated: (B, T-1)."""
    rows = ids.reshape(-1, ids.shape[-1])
    cache, logits, start = KVStreamCache(model, policy), [], 0
    calls = iter(sizes)
    with torch.inference_mode():
        while start < rows.shape[1]:
            size = next(calls, sizes[-1])
            logits.append(model(rows[:, start : start + size], past_key_values=cache).logits)
            start += size
    log_p = torch.log_softmax(torch.cat(logits, dim=1)[:, :-1], dim=-1)
    nll = -log_p.gather(2, rows[:, 1:, None])[..., 0]
    return nll if ids.ndim == 2 else nll[0]


# ------------------------------------------------------------------------------------------------ the fixed matrix


@pytest.mark.parametrize(("policy", "family"), MATRIX, ids=str)
def test_replay_and_decode_equal_the_oracle(policy, family, tiny_model, tokens, trace_of):
    ids = tokens(T, SEED)
    truth = trace_of(family, ids, policy).nll_nats
    model = tiny_model(family, FLOAT64)
    replayed = [replay(model, ids, policy, chunk_size=size) for size in (7, T + 3)]
    decoded = decode(model, ids, policy).nll_nats
    for nll, what in zip([*replayed, decoded], ["replay by 7", "replay at once", "decode"]):
        assert_close(nll, truth, TOLERANCE[FLOAT64], what)
        assert_close(nll, decoded, TOLERANCE[FLOAT64], f"{what} against decode")
    model = tiny_model(family, FLOAT32)
    assert_close(replay(model, ids, policy, chunk_size=13), truth, TOLERANCE[FLOAT32], "float32 replay")
    assert_close(decode(model, ids, policy).nll_nats, truth, TOLERANCE[FLOAT32], "float32 decode")


def test_the_matrix_holds_no_near_ties(tiny_model, tokens):
    """Otherwise float32 may keep another token than the oracle, and the matrix would fail for no fault of the code."""
    for policy, family in MATRIX:
        if isinstance(policy, FixSizeL2) and policy.strategy != "random":
            trace = oracle_trace(tiny_model(family, FLOAT64), tokens(T, SEED), spec_of(policy))
            assert narrowest_decision(trace, policy) > 3e-5, policy


def narrowest_decision(trace: Trace, policy: FixSizeL2) -> float:
    """The smallest relative gap, over all evictions, between the norm that left and the nearest that stayed."""
    protected = protected_of(policy.budget, policy.keep_ratio)
    gaps = []
    for t in range(1, len(trace.kept)):
        for layer, (before, after) in enumerate(zip(trace.kept[t - 1], trace.kept[t])):
            for head in range(len(before)):
                for gone in {*before[head], t} - {*after[head]}:
                    norms = trace.norms[:, layer, head]
                    rivals = [norms[j] for j in after[head] if t - j >= protected]
                    gaps += [abs(norms[gone] - rival) / norms[gone] for rival in rivals]
    return min(gaps)


@pytest.mark.parametrize(("place", "policy"), enumerate(CORNERS), ids=str)
def test_corners(place, policy, tiny_model, tokens, trace_of):
    ids = tokens(T, SEED)
    other = [("llama", "frozen"), ("qwen2", "absolute")][place % 2]
    for family, mode in [(("neox", "llama")[place % 2], "cache"), other]:
        policy = replace(policy, position=mode)
        truth, model = trace_of(family, ids, policy).nll_nats, tiny_model(family, FLOAT64)
        assert_close(replay(model, ids, policy, chunk_size=5), truth, TOLERANCE[FLOAT64], f"replay {family} {mode}")
        assert_close(decode(model, ids, policy).nll_nats, truth, TOLERANCE[FLOAT64], f"decode {family} {mode}")


@pytest.mark.parametrize(
    "policy",
    [
        StreamingLLM(start_size=5, recent_size=30),
        StreamingLLM(start_size=140, recent_size=3, position="frozen"),
        RecentOnly(window_size=150, position="absolute", skip_layers=(1,)),
        FixSizeL2(budget=40, keep_ratio=0.3, strategy="keep_low"),
        FixSizeL2(budget=150, keep_ratio=0.0, strategy="keep_high", skip_layers=(0,)),
        FixSizeL2(budget=20, keep_ratio=0.9, strategy="random", seed=1),
    ],
    ids=str,
)
def test_texts_longer_than_any_block(policy, tiny_model, tokens, trace_of):
    """Masked products are cut into blocks of queries; a text must be longer than those to meet their seams."""
    length, vocab = 199, 401
    ids = tokens(length, SEED, vocab=vocab)
    model = tiny_model("neox", FLOAT64, vocab)
    truth = trace_of("neox", ids, policy, vocab).nll_nats
    for size in (67, length):
        assert_close(replay(model, ids, policy, chunk_size=size), truth, TOLERANCE[FLOAT64], f"replay by {size}")
    assert_close(nll_by_calls(model, ids, policy, [131, 1, 1, 40, 1]), truth, TOLERANCE[FLOAT64], "plain calls")
    replayed = replay(tiny_model("neox", FLOAT32, vocab), ids, policy, chunk_size=150)
    assert_close(replayed, truth, TOLERANCE[FLOAT32], "float32 replay")


# ---------------------------------------------------------------------------------------------------- properties


@st.composite
def cases(draw):
    """(family, T, ids' seed, policy, chunk size), shrinking towards short texts and plain policies."""
    length = 2 * draw(st.integers(1, 22)) + 1
    budget = draw(st.integers(1, length + 1))
    axes = {
        "position": draw(st.sampled_from(MODES)),
        "skip_layers": tuple(sorted(draw(st.sets(st.integers(0, 2), max_size=3)))),
    }
    start = draw(st.integers(0, budget - 1))
    ratio = draw(st.sampled_from([0.0, 0.1, 0.25, 0.29, 0.5, 0.7, 0.9, 1.0]))
    strategy = draw(st.sampled_from(["keep_low", "keep_high", "random"]))
    seed = draw(st.integers(0, 2**63 - 1))
    policy = draw(
        st.sampled_from(
            [
                StreamingLLM(start_size=start, recent_size=budget - start, **axes),
                RecentOnly(window_size=budget, **axes),
                FixSizeL2(budget=budget, keep_ratio=ratio, strategy=strategy, seed=seed, **axes),
                Full(),
            ]
        )
    )
    family = draw(st.sampled_from(["neox", "llama", "neox_serial", "neox_tied", "qwen2"]))
    chunk_size = draw(st.sampled_from([1, 2, 3, 5, 7, 11, 13, 17, length - 1, length, length + 1, length + 100]))
    return family, length, draw(st.integers(0, 10**6)), policy, chunk_size


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(case=cases())
@example(case=("neox", 3, 0, FixSizeL2(budget=4, keep_ratio=0.5, strategy="random"), 1))
def test_replay_equals_the_oracle_whatever_the_parameters(case, tiny_model, tokens, trace_of):
    family, length, seed, policy, chunk_size = case
    ids = tokens(length, seed)
    truth = trace_of(family, ids, policy).nll_nats
    nll = replay(tiny_model(family, FLOAT64), ids, policy, chunk_size=chunk_size)
    assert_close(nll, truth, TOLERANCE[FLOAT64])
    if not isinstance(policy, FixSizeL2) or policy.strategy == "random":
        nll = replay(tiny_model(family, FLOAT32), ids, policy, chunk_size=chunk_size)
        assert_close(nll, truth, TOLERANCE[FLOAT32], "float32")


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(case=cases())
def test_decode_equals_the_oracle_and_replay_whatever_the_parameters(case, tiny_model, tokens, trace_of):
    family, length, seed, policy, chunk_size = case
    ids, model = tokens(length, seed), tiny_model(family, FLOAT64)
    nll = decode(model, ids, policy).nll_nats
    assert_close(nll, trace_of(family, ids, policy).nll_nats, TOLERANCE[FLOAT64])
    assert_close(nll, replay(model, ids, policy, chunk_size=chunk_size), TOLERANCE[FLOAT64], "against replay")


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(case=cases(), sizes=st.lists(st.sampled_from([1, 1, 2, 3, 8, 20]), min_size=1, max_size=8))
def test_any_split_into_plain_calls_equals_the_oracle(case, sizes, tiny_model, tokens, trace_of):
    family, length, seed, policy, _ = case
    ids = tokens(length, seed)
    nll = nll_by_calls(tiny_model(family, FLOAT64), ids, policy, sizes)
    assert_close(nll, trace_of(family, ids, policy).nll_nats, TOLERANCE[FLOAT64])


# ---------------------------------------------------------------------------------------- plain transformers calls


@pytest.mark.parametrize(("policy", "family"), MATRIX, ids=str)
def test_a_chunk_single_tokens_a_chunk(policy, family, tiny_model, tokens, trace_of):
    """Prefill, generate, prefill again: the way a chat uses a cache."""
    ids = tokens(T, SEED)
    nll = nll_by_calls(tiny_model(family, FLOAT64), ids, policy, [15, 1, 1, 1, 1, 9, 1, 20])
    assert_close(nll, trace_of(family, ids, policy).nll_nats, TOLERANCE[FLOAT64])


@pytest.mark.parametrize(("policy", "family"), MATRIX, ids=str)
def test_rows_of_a_batch_do_not_mix(policy, family, tiny_model, tokens):
    """Each row evicts by its own norms; a draw does not depend on the row."""
    model, rows = tiny_model(family, FLOAT64), torch.stack([tokens(23, 1), tokens(23, 2)])
    together = nll_by_calls(model, rows, policy, [14, 1, 1, 1, 20])
    for row, nll in zip(rows, together):
        assert_close(nll, nll_by_calls(model, row, policy, [14, 1, 1, 1, 20]), 1e-9)


def test_caches_of_different_policies_take_turns(tiny_neox, tokens, trace_of):
    """Nothing that belongs to one cache may live in the model or the module."""
    model, ids = tiny_neox(FLOAT64), tokens(T, SEED)
    policies = [Full(), *BOUNDED]
    caches = [KVStreamCache(model, policy) for policy in policies]
    logits = [[] for _ in policies]
    with torch.inference_mode():
        for part in ids.split([12, 1, 1, 6, 1, 16]):
            for cache, out in zip(caches, logits):
                out.append(model(part[None], past_key_values=cache).logits[0])
    for policy, out in zip(policies, logits):
        log_p = torch.log_softmax(torch.cat(out)[:-1], dim=-1)
        nll = -log_p.gather(1, ids[1:, None])[:, 0]
        assert_close(nll, trace_of("neox", ids, policy).nll_nats, TOLERANCE[FLOAT64], str(policy))


@pytest.mark.parametrize("policy", [Full(), BOUNDED[0], BOUNDED[3]], ids=str)
def test_generate_takes_the_likeliest_token_of_the_oracle(policy, tiny_llama, tokens, trace_of):
    """`model.generate` is the use that the README shows."""
    model, prompt = tiny_llama(FLOAT64), tokens(16, SEED)
    cache = KVStreamCache(model, policy)
    # An explicit mask, or `generate` takes every token equal to pad_token_id for padding.
    inputs = {
        "input_ids": prompt[None],
        "attention_mask": torch.ones(1, 16, dtype=torch.long),
        "past_key_values": cache,
    }
    text = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=None)[0]
    assert text[:16].equal(prompt)
    assert trace_of("llama", text, policy).likeliest[15:-1].tolist() == text[16:].tolist()


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_the_model_is_left_as_it_was(family, tiny_model, tokens):
    model, ids = tiny_model(family, FLOAT32), tokens(T, SEED)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        logits = model(ids[None]).logits
        for policy in BOUNDED:
            replay(model, ids, policy, chunk_size=16)
            decode(model, ids[:15], policy)
            nll_by_calls(model, ids, policy, [16, 1])
            assert torch.equal(model(ids[None]).logits, logits), policy
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not model.training


# ------------------------------------------------------------------------------------------------- exact identities


@pytest.mark.parametrize("policy", [Full(), *BOUNDED], ids=str)
def test_the_same_call_twice_is_bit_identical(policy, tiny_model, tokens):
    for family, dtype in [("neox", FLOAT32), ("llama", FLOAT64)]:
        model, ids = tiny_model(family, dtype), tokens(23, SEED)
        assert torch.equal(replay(model, ids, policy, chunk_size=8), replay(model, ids, policy, chunk_size=8))
        assert torch.equal(decode(model, ids, policy).nll_nats, decode(model, ids, policy).nll_nats)


def in_words(name, budget, mode):
    """Policies of a registered class: every word of its own fields."""
    words = {axis: field.choices for axis, field in axes_of(POLICIES[name]).items() if field.choices}
    return spanned(POLICIES[name], budget, words | {"positions": (mode,), "layer_budgets": ("uniform",)})


@pytest.mark.parametrize(("place", "name"), enumerate(name for name in POLICIES if name != "full"))
def test_up_to_the_budget_every_policy_is_full(place, name, tiny_llama, tokens):
    """Each in every mode with every slack, of which each two meet."""
    length = 23
    ids, model = tokens(length, SEED), tiny_llama(FLOAT64)
    full = {size: replay(model, ids, Full(), chunk_size=size) for size in (8, 100)}
    full_decoded = decode(model, ids, Full()).nll_nats
    kinds = len(in_words(name, length, "cache"))
    for at, (turn, mode) in product(range(kinds), enumerate(MODES)):
        policy = in_words(name, length + (0, 1, 50)[(place + at + turn) % 3], mode)[at]
        for size, truth in full.items():
            assert_close(replay(model, ids, policy, chunk_size=size), truth, 1e-6, f"{policy} by {size}")
        assert_close(decode(model, ids, policy).nll_nats, full_decoded, 1e-6, f"{policy} decoded")


@pytest.mark.parametrize("policy", [policy for policy, family in MATRIX if family == "neox"], ids=str)
def test_shorter_lengths_are_prefixes_of_longer_ones(policy, tiny_neox, tokens):
    """Whole chunks take the same path and agree in every bit; a cut chunk is another matrix shape."""
    ids, size, short = tokens(T, SEED), 8, 21
    whole = size * (short // size)
    for dtype in (FLOAT64, FLOAT32):
        model = tiny_neox(dtype)
        longer, shorter = (replay(model, part, policy, chunk_size=size) for part in (ids, ids[:short]))
        assert torch.equal(shorter[: whole - 1], longer[: whole - 1])
        assert_close(shorter, longer[: short - 1], 1e-6 if dtype == FLOAT64 else TOLERANCE[dtype], f"{dtype}")
    decoded = decode(model, ids, policy).nll_nats
    assert torch.equal(decode(model, ids[:short], policy).nll_nats, decoded[: short - 1])


@pytest.mark.parametrize("mode", MODES)
def test_names_for_the_same_thing(mode, tiny_llama, tokens):
    model, ids = tiny_llama(FLOAT64), tokens(T, SEED)
    window = replay(model, ids, RecentOnly(window_size=9, position=mode), chunk_size=10)
    for policy in [
        StreamingLLM(start_size=0, recent_size=9, position=mode),
        *(FixSizeL2(budget=9, keep_ratio=1.0, strategy=s, position=mode) for s in ("keep_low", "keep_high", "random")),
    ]:
        assert_close(replay(model, ids, policy, chunk_size=10), window, 1e-6, str(policy))


def test_random_follows_its_seed_and_nothing_else(tiny_neox, tokens):
    model, ids = tiny_neox(FLOAT64), tokens(T, SEED)
    policy = FixSizeL2(budget=9, keep_ratio=0.4, strategy="random", seed=1)
    torch.manual_seed(0)
    one = replay(model, ids, policy, chunk_size=6)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(replay(model, ids, policy, chunk_size=6), one)
    assert (replay(model, ids, replace(policy, seed=2), chunk_size=6) - one).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32], ids=str)
@pytest.mark.parametrize("strategy", ["keep_low", "keep_high"])
def test_equal_norms_let_the_older_token_stay(strategy, dtype, tiny_neox, tokens, trace_of):
    """In layer 0 a key depends on its token alone, so a text with repetitions ties there at every step.

    Equal keys come out of differently shaped products with differently rounded norms; that must not decide who leaves.
    """
    model = tiny_neox(dtype)
    for seed in range(2):
        ids = tokens(45, seed, distinct=False) % 12
        policy = FixSizeL2(budget=9, keep_ratio=0.3, strategy=strategy, position=("cache", "absolute")[seed % 2])
        truth = trace_of("neox", ids, policy).nll_nats
        for size in (7, 16, 64):
            assert_close(replay(model, ids, policy, chunk_size=size), truth, TOLERANCE[dtype], f"replay by {size}")
        assert_close(decode(model, ids, policy).nll_nats, truth, TOLERANCE[dtype], "decode")
        assert_close(nll_by_calls(model, ids, policy, [13, 1, 1, 5]), truth, TOLERANCE[dtype], "plain calls")


# ------------------------------------------------------------------------------------------------------ the interface


@pytest.mark.parametrize("policy", [Full(), *BOUNDED], ids=str)
def test_shapes_and_defaults(policy, tiny_llama, tokens):
    model, ids = tiny_llama(FLOAT32), tokens(T, SEED)
    nll = replay(model, ids, policy)
    assert isinstance(nll, torch.Tensor)
    assert nll.shape == (T - 1,)
    assert torch.isfinite(nll).all()
    assert torch.equal(replay(model, ids[None], policy), nll)
    decoded = decode(model, ids, policy)
    assert torch.equal(decode(model, ids[None], policy).nll_nats, decoded.nll_nats)
    assert len(decoded.step_s) == T - 1
    assert all(step > 0 for step in decoded.step_s)


@pytest.mark.parametrize("run", [replay, decode])
@pytest.mark.parametrize("policy", [Full(), BOUNDED[0], BOUNDED[3]], ids=str)
def test_two_tokens_are_the_least_that_can_be_scored(run, policy, tiny_neox, tokens):
    model = tiny_neox(FLOAT64)
    for nothing_to_score in [tokens(1), tokens(1)[None], torch.tensor([], dtype=torch.long), torch.empty(1, 0).long()]:
        held = nothing_to_score.numel()
        with pytest.raises(ValueError, match=f"^input_ids holds {held} tokens; at least 2 are needed"):
            run(model, nothing_to_score, policy)
    result = run(model, tokens(2), policy)
    assert getattr(result, "nll_nats", result).shape == (1,)


@pytest.mark.parametrize("size", [0, -1])
def test_a_chunk_holds_at_least_one_token(size, tiny_neox, tokens):
    with pytest.raises(ValueError, match="chunk_size"):
        replay(tiny_neox(FLOAT64), tokens(5), Full(), chunk_size=size)


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 40.0, -3e3, 3e3])
@pytest.mark.parametrize("spread", [0.0, 1.0, 60.0])
def test_scores_are_those_of_a_softmax_over_the_whole_vocabulary(monkeypatch, dtype, level, spread):
    """In blocks, whatever the size of logits, where they are highest, and how many of them are equal."""
    monkeypatch.setattr("kvstream.engine.backends.cpu.Cpu.logits_bytes", 0)
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(8, 1000, bias=True)
    with torch.no_grad():
        head.weight.copy_(spread * torch.randn(1000, 8, generator=generator) / 3)
        head.bias.copy_(level + torch.linspace(-1, 1, 1000) * spread)
    head.to(dtype).requires_grad_(False)
    hidden = torch.randn(40, 8, generator=generator).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    # As the products are rounded, so are the logits: the truth starts from the same.
    blocks = (head.weight[low : low + 256] @ hidden.t() for low in range(0, 1000, 256))
    logits = torch.cat([block.to(wide) + head.bias[256 * n : 256 * n + 256, None] for n, block in enumerate(blocks)])
    likeliest = logits.argmax(0)
    targets = torch.where(torch.arange(40) % 2 == 0, likeliest, torch.randint(1000, (40,), generator=generator))
    found = score(HeadOnly(head), hidden, targets)
    truth = -torch.log_softmax(logits.double(), 0).gather(0, targets[None])[0]
    assert ((found.nll_nats - truth).abs() <= 1e-6 * (1 + truth)).all()
    assert torch.equal(found.correct, targets == likeliest)
    assert found.nll_nats.dtype == wide


class HeadOnly:
    """What scoring needs of a model."""

    def __init__(self, head):
        self.get_output_embeddings = lambda: head


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_give_no_numbers(bad):
    head = torch.nn.Linear(1, 1000, bias=False).requires_grad_(False)
    head.weight[700] = bad
    assert not score(HeadOnly(head), torch.ones(20, 1), torch.zeros(20, dtype=torch.int64)).nll_nats.isfinite().any()


# ------------------------------------------------------------------------------------------------ every dtype


@lru_cache
def in_dtype(family: str, dtype: torch.dtype):
    """A model as it is loaded in a dtype, whose rotary frequencies stay float32, and the same weights in float64."""
    model, twin = (copy.deepcopy(build_model(family, FLOAT32)) for _ in range(2))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    twin.load_state_dict(model.state_dict())
    return model, twin.double()


@lru_cache
def trace_in(family: str, dtype: torch.dtype, ids: tuple[int, ...], policy) -> Trace:
    """What the oracle finds with the weights of that dtype."""
    return oracle_trace(in_dtype(family, dtype)[1], ids, Asked(policy) if policy.in_turn(0) else spec_of(policy))


def divergence(log_p: np.ndarray, logits: torch.Tensor) -> float:
    """Mean KL(oracle ‖ ours), nats."""
    ours = torch.log_softmax(logits.double(), -1).numpy()
    return float((np.exp(log_p) * (log_p - ours)).sum(-1).mean())


KNOWN_AHEAD = [Full(), StreamingLLM(4, 7), StreamingLLM(4, 7, position="absolute"), BOUNDED[-1], BOUNDED[3]]
IN_TURN = [H2O(11, 5, 2), H2O(11, 5, 0, "age"), TOVA(11), SnapKV(11, 3, 3, 4), KeyDiff(11, 4, 2), L2Compress(0.5, 11)]


@pytest.mark.parametrize(
    ("policy", "family", "dtype"),
    every_pair(
        [*KNOWN_AHEAD, *IN_TURN],
        ["neox", "llama"],
        [torch.float16, torch.bfloat16, FLOAT32],
    ),
    ids=str,
)
def test_every_dtype_is_as_near_the_oracle_as_transformers_own_forward(policy, family, dtype, tokens):
    """Of the same weights in float64. What a dtype allows, the model's own forward in it tells, under a full cache."""
    model, ids = in_dtype(family, dtype)[0], tokens(T, SEED)
    text = tuple(ids.tolist())
    full, truth = (trace_in(family, dtype, text, each) for each in (Full(), policy))
    with torch.inference_mode():
        own = model(ids[None]).logits[0]
        cache, head = KVStreamCache(model, policy), model.get_output_embeddings()
        chunk = head(cache.hidden_states(model, ids[None])[0])
        cache.reset()
        steps = torch.cat([head(cache.hidden_states(model, id_[None])[0]) for id_ in ids.split(1)])
        cache.reset()
        calls = torch.cat([model(part[None], past_key_values=cache).logits[0] for part in ids.split([20, 1, 1, 1, 14])])
    apart, off = 4 * divergence(full.log_p, own), 3 * np.abs(nll_of(own, ids) - full.nll_nats).mean()
    if policy.scored_by != "nothing" and dtype != FLOAT32:
        # Scores that half precision cannot tell apart may keep another token: half as bad as a budget of one fewer.
        budget = "prune_after" if isinstance(policy, L2Compress) else "budget"
        fewer = trace_in(family, dtype, text, replace(policy, **{budget: policy.regions.budget - 1}))
        apart = max(apart, divergence(truth.log_p, torch.from_numpy(fewer.log_p)) / 2)
        off = max(off, np.abs(truth.nll_nats - fewer.nll_nats).mean() / 2)
    for logits in (chunk, steps, calls):
        assert divergence(truth.log_p, logits) <= apart
    for nll in (replay(model, ids, policy, chunk_size=13), decode(model, ids, policy).nll_nats):
        assert nll.dtype == FLOAT32
        assert np.abs(nll.numpy() - truth.nll_nats).mean() <= off


def nll_of(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    return -torch.log_softmax(logits[:-1].double(), -1).gather(1, ids[1:, None])[:, 0].numpy()
