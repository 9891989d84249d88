"""Is the oracle itself right? Against transformers where that knows the answer, against closed forms elsewhere."""

import random
from collections import Counter
from datetime import date
from functools import lru_cache

import numpy as np
import oracle_store
import pytest
import torch
from oracle import Spec, _mix, draw, evict, oracle_kept, oracle_nll, oracle_trace, protected_of
from tiny import VOCAB, build_model
from transformers import LlamaConfig, LlamaForCausalLM

FAMILIES = ["neox", "neox_serial", "neox_tied", "llama", "qwen2"]
MODES = ["cache", "absolute", "frozen"]
T = 29
IDS = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))[:T]

SPECS = [
    Spec("streaming_llm", sinks=3, recent=6),
    Spec("streaming_llm", sinks=0, recent=5),
    Spec("streaming_llm", sinks=2, recent=0),
    Spec("recent_only", recent=7),
    Spec("fix_size_l2", budget=9, keep_ratio=0.5, strategy="keep_low"),
    Spec("fix_size_l2", budget=8, keep_ratio=0.0, strategy="keep_high"),
    Spec("fix_size_l2", budget=10, keep_ratio=0.3, strategy="random", seed=5),
    Spec("fix_size_l2", budget=6, keep_ratio=1.0, strategy="random"),
    Spec("fix_size_l2", budget=1, keep_ratio=0.0, strategy="keep_low"),
]


def budget_of(spec: Spec) -> int:
    return {"streaming_llm": spec.sinks + spec.recent, "recent_only": spec.recent, "fix_size_l2": spec.budget}[
        spec.kind
    ]


def with_(spec: Spec, **changes) -> Spec:
    return Spec(**(vars(spec) | changes))


@lru_cache
def full_nll(family: str) -> np.ndarray:
    """Of the tokens that most tests here take."""
    return oracle_nll(build_model(family, torch.float64), IDS, Spec())


def transformers_nll(model, ids: torch.Tensor, **kwargs) -> np.ndarray:
    with torch.inference_mode():
        log_p = torch.log_softmax(model(ids[None], use_cache=False, **kwargs).logits[0], dim=-1)
    return -log_p[:-1].gather(1, ids[1:, None])[:, 0].numpy()


@pytest.fixture
def float64_throughout(monkeypatch):
    """transformers computes RMSNorm and RoPE's angles in float32 whatever the weights are; lift both."""

    def lift(model):
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                norm = torch.nn.RMSNorm(len(module.weight), eps=module.variance_epsilon)
                norm.weight = module.weight
                monkeypatch.setattr(module, "forward", norm.forward)
            if hasattr(module, "inv_freq"):
                rope = module.config.rope_parameters
                rotary = 2 * len(module.inv_freq)
                inv_freq = rope["rope_theta"] ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)

                def forward(x, position_ids, inv_freq=inv_freq):
                    angles = position_ids[..., None].double() * inv_freq.repeat(2)
                    return angles.cos(), angles.sin()

                monkeypatch.setattr(module, "forward", forward)
        return model

    return lift


@pytest.mark.parametrize("family", FAMILIES)
def test_full_is_transformers_own_forward(family, tiny_model, tokens, float64_throughout):
    model, ids = tiny_model(family, torch.float64), tokens(37, 1)
    ours = oracle_nll(model, ids, Spec())
    # Llama and Qwen2 normalise in float32 even with float64 weights, which alone is worth some 4e-6.
    as_shipped = 1e-5 if family in ("llama", "qwen2") else 1e-6
    np.testing.assert_allclose(ours, transformers_nll(model, ids), rtol=0, atol=as_shipped)
    np.testing.assert_allclose(ours, transformers_nll(float64_throughout(model), ids), rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("sinks", "recent"), [(3, 6), (0, 9), (1, 1)])
def test_masked_transformers_agrees_where_a_mask_can_say_it(
    family, sinks, recent, tiny_model, tokens, float64_throughout
):
    """Without skipped layers `absolute` and `frozen` are one mask and one row of position_ids."""
    model, ids = float64_throughout(tiny_model(family, torch.float64)), tokens(T, 2)
    t, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    # Eviction comes after attention: the query of t still sees what t−1 kept, and itself.
    visible = (j <= t) & ((j < sinks) | (t - j <= recent))
    for mode, positions in {"absolute": torch.arange(T), "frozen": torch.arange(T).clamp(max=sinks + recent)}.items():
        theirs = transformers_nll(model, ids, attention_mask=visible[None, None], position_ids=positions[None])
        ours = oracle_nll(model, ids, Spec("streaming_llm", sinks=sinks, recent=recent, position=mode))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_one_layer_reads_the_kept_tokens_as_if_nothing_else_had_been(spec, mode, tokens, float64_throughout):
    """With one layer and one kv head a step is transformers' forward over the kept tokens alone, suitably placed."""
    torch.manual_seed(8)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=1, initializer_range=0.2,
    )  # fmt: skip
    model, ids = float64_throughout(LlamaForCausalLM(config).double().eval()), tokens(T, 6)
    trace = oracle_trace(model, ids, with_(spec, position=mode))
    before, written_at = [], []
    for t in range(T - 1):
        seen = [*before, t]
        written_at.append(len(before))
        places = {"cache": range(len(seen)), "absolute": seen, "frozen": [written_at[j] for j in seen]}[mode]
        # An explicit mask, or transformers takes a gap in position_ids for the seam between two packed sequences.
        causal = torch.ones(1, 1, len(seen), len(seen), dtype=torch.bool).tril()
        with torch.inference_mode():
            out = model(
                ids[None, seen], attention_mask=causal, position_ids=torch.tensor([list(places)]), use_cache=False
            )
        logits = out.logits[0, -1]
        assert abs(trace.nll_nats[t] + torch.log_softmax(logits, -1)[ids[t + 1]]) < 1e-11
        before = trace.kept[t][0][0]


def test_without_sinks_ranks_are_true_distances(tiny_model, tokens):
    """RoPE depends on differences alone, so a moving window reads the same in `cache` and in `absolute` mode."""
    model, ids = tiny_model("neox", torch.float64), tokens(T, 3)
    a, b, frozen = (oracle_nll(model, ids, Spec("recent_only", recent=6, position=mode)) for mode in MODES)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)
    assert np.abs(a - frozen).max() > 0.01


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_head_keeps_what_the_budget_allows(spec, tiny_llama, tokens):
    for t, layers in enumerate(oracle_kept(tiny_llama(torch.float64), tokens(T), with_(spec, skip_layers=(1,)))):
        assert [len(layer) for layer in layers] == [2, 2, 2]
        for i, layer in enumerate(layers):
            for members in layer:
                assert members == sorted(set(members))
                assert len(members) == (t + 1 if i == 1 else min(t + 1, budget_of(spec)))


@pytest.mark.parametrize(("spec", "mode"), zip(SPECS, MODES * 3), ids=str)
def test_up_to_the_budget_it_is_full(spec, mode, tiny_neox):
    """The first B + 1 predictions see every token: B cached ones and the query's own."""
    full, ours = full_nll("neox"), oracle_nll(tiny_neox(torch.float64), IDS, with_(spec, position=mode))
    untouched = budget_of(spec) + 1
    assert np.array_equal(ours[:untouched], full[:untouched])
    assert np.abs(ours - full)[untouched:].max() > 0.01, "a test that cannot see an eviction proves nothing"


@pytest.mark.parametrize(("spec", "mode"), zip(SPECS, MODES * 3), ids=str)
def test_all_layers_skipped_is_full(spec, mode, tiny_llama):
    ours = oracle_nll(tiny_llama(torch.float64), IDS, with_(spec, position=mode, skip_layers=(0, 1, 2)))
    assert np.array_equal(ours, full_nll("llama"))


@pytest.mark.parametrize("mode", MODES)
def test_names_for_the_same_thing(mode, tiny_neox, tokens):
    model, ids = tiny_neox(torch.float64), tokens(T)
    same = [
        Spec("recent_only", recent=6, position=mode),
        Spec("streaming_llm", sinks=0, recent=6, position=mode),
        *(Spec("fix_size_l2", budget=6, keep_ratio=1.0, strategy=s, position=mode) for s in ("keep_low", "random")),
    ]
    traces = [oracle_trace(model, ids, spec) for spec in same]
    for trace in traces[1:]:
        assert trace.kept == traces[0].kept
        assert np.array_equal(trace.nll_nats, traces[0].nll_nats)


@pytest.mark.parametrize("strategy", ["keep_low", "keep_high"])
@pytest.mark.parametrize(("budget", "keep_ratio"), [(9, 0.5), (8, 0.0), (1, 0.0), (7, 0.9)])
def test_stepping_equals_the_closed_form(strategy, budget, keep_ratio, tiny_llama, tokens):
    """j is alive at t iff t − j < P, or its norm is among the k smallest (largest) of the indices 0 … t−P."""
    spec = Spec("fix_size_l2", budget=budget, keep_ratio=keep_ratio, strategy=strategy)
    trace = oracle_trace(tiny_llama(torch.float64), tokens(T, 4), spec)
    protected = protected_of(budget, keep_ratio)
    sign = 1 if strategy == "keep_low" else -1
    for t, layers in enumerate(trace.kept):
        for i, layer in enumerate(layers):
            for h, members in enumerate(layer):
                ranked = sorted(range(t - protected + 1), key=lambda j, i=i, h=h: (sign * trace.norms[j, i, h], j))
                newest = range(max(0, t - protected + 1), t + 1)
                assert members == sorted({*ranked[: budget - protected], *newest})


def test_the_protected_share_is_computed_without_float_error():
    """100 · 0.29 is 28.999… in floats, and a third written in decimals times six is 1.999…: they mean 29 and 2."""
    assert [protected_of(b, r) for b, r in [(100, 0.29), (6, 1 / 3), (10, 0.7), (10, 0.69), (7, 0), (7, 1)]] == [
        29, 2, 7, 6, 0, 7,
    ]  # fmt: skip


def test_among_equals_the_older_stays():
    norm_of = dict.fromkeys(range(5), 1.0) | {2: 0.5}
    low, high = (
        evict(
            [0, 1, 2, 3, 4], norm_of, Spec("fix_size_l2", budget=4, keep_ratio=0.25, strategy=s), layer=0, head=0, t=4
        )
        for s in ("keep_low", "keep_high")
    )
    assert low == [0, 1, 2, 4]
    assert high == [0, 1, 3, 4]
    all_equal = dict.fromkeys(range(5), 1.0)
    spec = Spec("fix_size_l2", budget=4, keep_ratio=0.25, strategy="keep_high")
    assert evict([0, 1, 2, 3, 4], all_equal, spec, layer=0, head=0, t=4) == [0, 1, 2, 4]


def test_equal_tokens_tie_in_the_first_layer(tiny_neox):
    ids = torch.tensor([7, 7, 7, 7, 7, 7])
    spec = Spec("fix_size_l2", budget=3, keep_ratio=0.0, strategy="keep_low")
    assert oracle_kept(tiny_neox(torch.float64), ids, spec)[-1][0] == [[0, 1, 2]] * 4


def test_the_generator_is_the_published_one():
    """SplitMix64's first outputs for the states 0 and 1234567 (Vigna, https://prng.di.unimi.it/splitmix64.c)."""
    assert _mix(0) == 0xE220A8397B1DCDAF
    assert _mix(1234567) == 6457827717110365317


def test_draws_are_pinned():
    assert [draw(0, 0, 0, t, 8) for t in range(8, 20)] == [4, 1, 7, 1, 4, 1, 5, 3, 3, 1, 1, 6]
    assert [draw(2**63 - 1, layer, head, 10**6, 1000) for layer in range(3) for head in range(2)] == [
        767,
        185,
        811,
        771,
        439,
        535,
    ]


def test_draws_are_uniform_and_depend_on_every_key():
    cells, per_cell = 9, 2000
    counts = Counter(draw(1, 2, 3, t, cells) for t in range(cells * per_cell))
    chi_square = sum((counts[e] - per_cell) ** 2 / per_cell for e in range(cells))
    assert set(counts) == set(range(cells))
    assert chi_square < 26.1, "the 99.9 % point at 8 degrees of freedom"
    here = [draw(1, 2, 3, t, cells) for t in range(1000)]
    for other in [(9, 2, 3, 0), (1, 9, 3, 0), (1, 2, 9, 0), (1, 2, 3, 5000)]:
        there = [draw(*other[:3], other[3] + t, cells) for t in range(1000)]
        agreement = sum(a == b for a, b in zip(here, there))
        assert 70 < agreement < 155, "1000/9 ± 4.4 standard deviations"


def test_random_evicts_the_drawn_one_and_redraws_at_every_step(tiny_llama, tokens):
    budget, protected, seed = 10, 3, 11
    spec = Spec("fix_size_l2", budget=budget, keep_ratio=0.3, strategy="random", seed=seed)
    kept = oracle_kept(tiny_llama(torch.float64), tokens(T), spec)
    for layer in range(3):
        for head in range(2):
            before = list(range(budget))
            for t in range(budget, T):
                present = [*before, t]
                zone = [j for j in present if j <= t - protected]
                gone = zone[draw(seed, layer, head, t, len(zone))]
                before = kept[t][layer][head]
                assert before == [j for j in present if j != gone]


def test_survival_past_the_window_decays_geometrically():
    """k/(k+1) per step, not the reservoir's k/n: each member of the zone faces the same lottery at every step."""
    budget, steps, seeds = 6, 8, 1500
    spec = Spec("fix_size_l2", budget=budget, keep_ratio=0.4, strategy="random")  # P = 2, k = 4
    alive = 0
    for seed in range(seeds):
        members = list(range(budget))
        for t in range(budget, budget + steps):
            members = evict([*members, t], {}, with_(spec, seed=seed), layer=0, head=0, t=t)
        alive += 0 in members
    expected = (4 / 5) ** steps
    assert abs(alive / seeds - expected) < 4 * (expected * (1 - expected) / seeds) ** 0.5


# What is kept of it


def test_a_sample_of_what_is_kept_is_found_again():
    """Others every day; those of short texts, which take a second in all."""
    store = oracle_store.Store(build_model)
    short = sorted(digest for digest, found in store.kept.items() if len(found.likeliest) < 50)
    sample = random.Random(date.today().isoformat()).sample(short, 8)
    for digest in sample:
        found, kept = store.compute(store.inputs[digest]), store.kept[digest]
        np.testing.assert_allclose(kept.nll_nats, found.nll_nats, rtol=0, atol=1e-10, err_msg=store.inputs[digest])
        assert kept.likeliest.tolist() == found.likeliest.tolist()


def test_what_is_kept_is_of_this_oracle_and_these_weights():
    store = oracle_store.Store(build_model)
    outdated = [digest for digest, inputs in store.inputs.items() if store.digest(inputs) != digest]
    assert not outdated, f"{len(outdated)} of {len(store.inputs)}: python tests/oracle.py --store"


@pytest.mark.parametrize("change", ["oracle", "weights", "tokens", "policy", "nothing"])
def test_what_is_not_kept_is_computed(monkeypatch, tmp_path, change):
    """Poisoned results are read where all is as it was, and only there."""
    spec, ids = Spec("recent_only", recent=3), (5, 6, 7, 8, 9, 10)
    store = oracle_store.Store(build_model, tmp_path / "store.npz")
    truth = store.trace("neox", ids, spec, 97).nll_nats
    store.kept = {digest: oracle_store.Found(0 * truth, np.zeros(6)) for digest in store.kept}
    store.save()
    build = build_model
    if change == "oracle":
        monkeypatch.setattr(oracle_store, "source_digest", lambda: "another")
    elif change == "weights":
        build = lambda family, dtype, vocab: build_model("neox_serial", dtype, vocab)  # noqa: E731
    ids = (*ids[:-1], 11) if change == "tokens" else ids
    spec = with_(spec, recent=4) if change == "policy" else spec
    found = oracle_store.Store(build, tmp_path / "store.npz").trace("neox", ids, spec, 97).nll_nats
    assert len(found) == 5
    assert (found == 0).all() == (change == "nothing")
