"""KL from the full cache, its argmax and the target's rank, against all logits of both, token by token, in float64.

The truth comes from the model's own head over caches that are fed one token at a time; it shares no code with what is
tested, which sees neither set of logits at once.
"""

import copy
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exactness_cases import assert_close
from tiny import build_model

from kvstream import H2O, FixSizeL2, Full, KVStreamCache, RecentOnly, StreamingLLM
from kvstream.engine import scoring
from kvstream.engine.divergence import kl_from_logits
from kvstream.engine.scoring import compare
from kvstream.grid.axes import Grid
from kvstream.grid.planning import no_divergence, notes
from kvstream.measure import quality, scores
from kvstream.measure.peak_memory import peak_bytes
from kvstream.measure.rows import MOST_RANK

FLOAT64, FLOAT32 = torch.float64, torch.float32
IDS = torch.randint(0, 97, (130,), generator=torch.Generator().manual_seed(5))
POLICIES = [StreamingLLM(4, 28), StreamingLLM(0, 1), RecentOnly(32), FixSizeL2(32, 0.5, "keep_low"), H2O(32, 16)]


def head_only(head):
    """What scoring needs of a model."""
    return SimpleNamespace(get_output_embeddings=lambda: head, get_input_embeddings=lambda: head)


@torch.inference_mode()
def all_logits(model, policy, ids_T):
    """The model's logits after each token but the last, one token at a time: (T − 1, V)."""
    cache, found = KVStreamCache(model, policy), []
    for place in range(len(ids_T) - 1):
        output = model(ids_T[None, place : place + 1], past_key_values=cache, position_ids=torch.tensor([[place]]))
        found.append(output.logits[0, -1])
    return torch.stack(found).to(FLOAT64)


def by_definition(full_TV, policy_TV, targets_T):
    """KL(full ‖ policy), whether the argmax is the same, and the target's rank among the policy's logits."""
    p_TV, q_TV = full_TV.softmax(-1), policy_TV.softmax(-1)
    kl_T = (p_TV * (p_TV.log() - q_TV.log())).sum(-1)
    own_T1 = policy_TV.gather(1, targets_T[:, None])
    return kl_T, full_TV.argmax(-1) == policy_TV.argmax(-1), 1 + (policy_TV > own_T1).sum(-1)


def rows_of(model, policy, ids_T, common=0, shared=0):
    run = scores.run_full(model, ids_T[None].numpy(), "cpu", common)
    begun = run.begun.first(shared) if shared else None
    asked = {"cells": ["c"], "documents": ["d"], "device": "cpu", "full": run, "begun": begun}
    [found] = quality.evaluate(model, ids_T[None].numpy(), policy, **asked)
    return {name: found.rows[name].to_numpy() for name in ("kl_nats", "same_top", "rank", "nll_nats", "correct")}


CASES = [*product(["llama"], POLICIES), *product(["neox", "neox_tied"], POLICIES[::3])]


@pytest.mark.parametrize(("family", "policy"), CASES, ids=str)
def test_rows_are_those_of_all_logits(family, policy):
    model = build_model(family, FLOAT64)
    found = rows_of(model, policy, IDS)
    kl_T, same_T, rank_T = by_definition(all_logits(model, Full(), IDS), all_logits(model, policy, IDS), IDS[1:])
    assert kl_T.max() > 0.01  # else nothing is told apart
    np.testing.assert_allclose(found["kl_nats"], kl_T.numpy(), rtol=1e-6, atol=1e-9)  # of float32, as it is stored
    assert found["same_top"].tolist() == same_T.tolist()
    assert 0 < same_T.sum() < len(same_T) or policy == POLICIES[0]
    assert found["rank"].tolist() == rank_T.tolist()
    assert (found["correct"] == (found["rank"] == 1)).all()


def test_float32_is_as_exact_as_its_logits():
    model = build_model("neox", FLOAT32)
    kl_T, *_ = by_definition(*(all_logits(model, policy, IDS) for policy in (Full(), POLICIES[0])), IDS[1:])
    np.testing.assert_allclose(rows_of(model, POLICIES[0], IDS)["kl_nats"], kl_T.numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_the_size_of_chunks_changes_nothing(monkeypatch, chunk):
    model, policy = build_model("llama", FLOAT64), POLICIES[0]
    whole = rows_of(model, policy, IDS)
    monkeypatch.setattr("kvstream.engine.replay.chunk_size_for", lambda *_: chunk)
    found = rows_of(model, policy, IDS)
    np.testing.assert_allclose(found["kl_nats"], whole["kl_nats"], rtol=1e-6, atol=1e-9)
    assert found["rank"].tolist() == whole["rank"].tolist()


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, torch.bfloat16])
@pytest.mark.parametrize("policy", [Full(), StreamingLLM(4, 1000), RecentOnly(130), H2O(300, 100)], ids=str)
def test_what_evicts_nothing_is_at_no_distance(dtype, policy):
    """But for rounding, where attention is summed in another order: in bfloat16 no more than of two such forwards."""
    model = build_model("neox", dtype)
    found = rows_of(model, policy, IDS)
    if policy == Full():
        assert found["same_top"].all()
        assert not found["kl_nats"].any()
    elif dtype == torch.bfloat16:
        twin = copy.deepcopy(model).double()
        kl_T, *_ = by_definition(*(all_logits(each, Full(), IDS) for each in (twin, model)), IDS[1:])
        assert np.abs(found["kl_nats"]).mean() <= 2 * kl_T.mean()
    else:
        assert np.abs(found["kl_nats"]).max() <= 1e-6


def test_shared_first_tokens_change_nothing():
    model, ids = build_model("neox", FLOAT64), torch.cat([IDS] * 5)
    policy = StreamingLLM(4, 556)
    alone, shared = rows_of(model, policy, ids), rows_of(model, policy, ids, common=512, shared=512)
    assert not shared["kl_nats"][:500].any()
    for name, held in alone.items():
        np.testing.assert_allclose(shared[name], held, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32])
@pytest.mark.parametrize("level", [0.0, 60.0, -3e3])
def test_a_vocabulary_of_50304(dtype, level):
    """In blocks, with a bias, also where exponents must be shifted; ranks up to the last."""
    generator = torch.Generator().manual_seed(3)
    head = torch.nn.Linear(16, 50_304, dtype=FLOAT64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(50_304, 16, generator=generator, dtype=FLOAT64))
        head.bias.copy_(level + torch.randn(50_304, generator=generator, dtype=FLOAT64))
    head.to(dtype).requires_grad_(False)
    full = torch.randn(1, 9, 16, generator=generator).to(dtype)
    policy = full + 0.1 * torch.randn(1, 9, 16, generator=generator).to(dtype)
    full_TV, policy_TV = (
        hidden[0].double() @ head.weight.double().t() + head.bias.double() for hidden in (full, policy)
    )
    targets = torch.stack([policy_TV[t].argsort(descending=True)[place] for t, place in enumerate(PLACES)])[None]
    _, kept = compare(head_only(head), full, targets)
    found, _ = compare(head_only(head), policy, targets, kept)
    kl_T, same_T, rank_T = by_definition(full_TV, policy_TV, targets[0])
    assert_close(found.kl_nats[0], kl_T, 1e-10 if dtype == FLOAT64 else 2e-5 * (1 + abs(level) / 100))
    assert found.same_top[0].tolist() == same_T.tolist()
    # A logit and the target's own are each a sum of this size, rounded: such as lie nearer may count or not.
    reach = torch.finfo(dtype).eps * (abs(level) + 100)
    near_T = ((policy_TV - policy_TV.gather(1, targets[0, :, None])).abs() <= reach).sum(-1) - 1
    assert near_T.max() <= (0 if dtype == FLOAT64 else 20)
    assert ((found.rank[0] - rank_T).abs() <= near_T).all()


PLACES = [0, 1, 2, 10, 1000, 30_000, 50_000, 50_302, 50_303]


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32])
def test_a_head_that_is_more_than_its_weights_is_asked_itself(dtype):
    """Its logits are no product, so that only both sets of them tell: here they are capped."""
    model = build_model.__wrapped__("llama", FLOAT32).to(dtype)
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, logits: 3 * torch.tanh(logits / 3))
    found = rows_of(model, POLICIES[0], IDS)
    kl_T, same_T, rank_T = by_definition(*(all_logits(model, p, IDS) for p in (Full(), POLICIES[0])), IDS[1:])
    np.testing.assert_allclose(found["kl_nats"], kl_T.numpy(), rtol=1e-4, atol=1e-6)
    assert found["rank"].tolist() == rank_T.tolist()
    assert found["same_top"].tolist() == same_T.tolist()


def test_half_precision_compares_what_was_not_rounded():
    """Logits of bfloat16 are apart by up to a sixteenth: KL from these would be noise."""
    generator = torch.Generator().manual_seed(4)
    head = torch.nn.Linear(32, 2000, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    head.weight.copy_(torch.randn(2000, 32, generator=generator))
    full = torch.randn(1, 50, 32, generator=generator).to(torch.bfloat16)
    policy = (full.float() * (1 + 0.01 * torch.randn(1, 50, 32, generator=generator))).to(torch.bfloat16)
    targets = torch.randint(2000, (1, 50), generator=generator)
    _, kept = compare(head_only(head), full, targets)
    found, _ = compare(head_only(head), policy, targets, kept)
    kl_T, *_ = by_definition(*(x[0].double() @ head.weight.double().t() for x in (full, policy)), targets[0])
    np.testing.assert_allclose(found.kl_nats[0].numpy(), kl_T.numpy(), rtol=1e-3, atol=1e-5)
    plain = scoring.score(head_only(head), policy, targets)
    assert torch.equal(plain.nll_nats, found.nll_nats)  # of logits as the model rounds them


def test_a_bias_in_half_precision_leaves_ranks_whole():
    """The product is rounded, and the bias added to that: so must be what ranks compare with."""
    generator = torch.Generator().manual_seed(6)
    head = torch.nn.Linear(32, 2000, dtype=torch.bfloat16).requires_grad_(False)
    head.weight.copy_(torch.randn(2000, 32, generator=generator))
    head.bias.copy_(torch.randn(2000, generator=generator))
    hidden, targets = torch.randn(1, 60, 32, generator=generator).to(torch.bfloat16), torch.arange(60)[None]
    found, _ = compare(head_only(head), hidden, targets)
    logits = (hidden[0] @ head.weight.t()).float() + head.bias.float()
    ranks = 1 + (logits > logits.gather(1, targets[0, :, None])).sum(-1)
    assert ((found.rank[0] - ranks).abs() <= 12).all()  # ties of rounded logits alone
    assert (found.rank[0] == ranks).float().mean() > 0.5


def test_what_full_rules_out_counts_nothing():
    full, policy = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(7), dtype=FLOAT64)
    full[:, :8] = -torch.inf
    policy[:, :4] = -torch.inf
    found = kl_from_logits(full, policy)
    p, q = full.log_softmax(-1), policy.log_softmax(-1)
    truth = torch.stack([(p[t, 8:].exp() * (p[t, 8:] - q[t, 8:])).sum() for t in range(5)])
    assert_close(found, truth, 1e-12)
    policy[0, 20] = -torch.inf
    assert kl_from_logits(full, policy)[0] == torch.inf


def test_what_is_no_number_is_none():
    """From the token on that poisons the model; before it all is as without."""
    model = build_model.__wrapped__("neox", FLOAT32)
    with torch.no_grad():
        model.get_input_embeddings().weight[95] = float("nan")
    ids = IDS.clone() % 90
    ids[100] = 95
    found = rows_of(model, StreamingLLM(2, 14), ids)
    assert np.isfinite(found["kl_nats"][:99]).all()
    assert np.isnan(found["kl_nats"][100:]).all()  # full never forgets it
    assert not found["same_top"][100:].any()
    assert found["rank"][:99].all()
    assert not found["rank"][np.isnan(found["nll_nats"])].any()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_without_it_the_rest_is_the_same_and_the_columns_are_empty(policy):
    model = build_model("neox", FLOAT32)
    asked = {"cells": ["c"], "documents": ["d"], "device": "cpu"}
    [plain] = quality.evaluate(model, IDS[None].numpy(), policy, **asked)
    found = rows_of(model, policy, IDS)
    assert np.array_equal(plain.rows["nll_nats"], found["nll_nats"])
    assert plain.rows["correct"].to_pylist() == found["correct"].tolist()
    assert [plain.rows[name].null_count for name in ("kl_nats", "same_top", "rank")] == [129] * 3


def test_ranks_are_capped():
    held = {"nll_nats": np.ones(2, np.float32), "correct": np.zeros(2, bool), "rank": np.array([65_534, 150_000])}
    assert quality.as_rows("c", "d", np.arange(2), np.arange(2), held)["rank"].to_pylist() == [65_534, MOST_RANK]


def test_texts_side_by_side_are_as_alone():
    model, policy = build_model("llama", FLOAT64), POLICIES[0]
    both = torch.stack([IDS, IDS.flip(0)])
    run = scores.run_full(model, both.numpy(), "cpu")
    asked = {"cells": ["c", "c"], "documents": ["d", "e"], "device": "cpu"}
    together = quality.evaluate(model, both.numpy(), policy, **asked, full=run)
    for place, found in enumerate(together):
        alone = rows_of(model, policy, both[place])
        np.testing.assert_allclose(found.rows["kl_nats"], alone["kl_nats"], rtol=1e-6, atol=1e-9)
        kept = {"cells": ["c"], "documents": ["d"], "device": "cpu", "full": run.of(place)}
        [one] = quality.evaluate(model, both[place : place + 1].numpy(), policy, **kept)
        np.testing.assert_allclose(one.rows["kl_nats"], alone["kl_nats"], rtol=1e-6, atol=1e-9)


def test_what_is_kept_of_full_is_of_the_hidden_size_and_no_logits_of_all_tokens_exist():
    tokens, vocabulary = 4096, 50_304
    model = build_model("neox", FLOAT32, vocabulary)
    ids = torch.randint(0, vocabulary, (1, tokens + 1), generator=torch.Generator().manual_seed(6)).numpy()
    asked = {"cells": ["c"], "documents": ["d"], "device": "cpu"}

    def cells():
        run = scores.run_full(model, ids, "cpu")
        quality.evaluate(model, ids, POLICIES[0], **asked, full=run)
        held.append(sum(each.nbytes for each in vars(run.kept).values()))

    held: list[int] = []
    quality.evaluate(model, ids[:, :600], POLICIES[0], **asked)  # what is loaded once
    peak = peak_bytes("cpu", cells)
    assert held == [tokens * (model.config.hidden_size * 4 + 16)]
    assert peak < tokens * vocabulary * 4 / 10, "the logits of all tokens"


def test_it_is_told_why_nothing_is_compared():
    grid = Grid("g", ("m",), (StreamingLLM(4, 4),), lengths=(100,))
    assert no_divergence(grid) == "full is not among the policies"
    assert any("full is not among the policies" in note and "--policies full" in note for note in notes(grid, 3))
    long = Grid("g", ("m",), (Full(),), lengths=(70_000,))
    assert "65,536" in no_divergence(long)
    assert any("divergence" in note for note in notes(long, 3))
    assert no_divergence(Grid("g", ("m",), (Full(),), lengths=(65_537,))) is None
    quiet = Grid("g", ("m",), (StreamingLLM(4, 4),), lengths=(100,), metrics="nll")
    assert not any("divergence" in note for note in notes(quiet, 3))
    with pytest.raises(ValueError, match="metrics: 'ppl' is not valid; choose one of kl, nll"):
        Grid("g", ("m",), (Full(),), lengths=(100,), metrics="ppl")
