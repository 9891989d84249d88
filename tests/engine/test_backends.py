"""Each backend computes what the plain definition says: cpu against reference, and reference against softmax itself."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from exactness_cases import FLOAT32, FLOAT64

from kvstream import H2O, KeyDiff, KVStreamCache, decode, parse_policy, replay
from kvstream.engine import chunk_choice
from kvstream.engine.attention import merge_partials
from kvstream.engine.backends import backend_for
from kvstream.engine.backends.compiled_attention import softmax
from kvstream.engine.backends.compiled_scan import scan_compiled
from kvstream.engine.backends.cpu import Cpu
from kvstream.engine.backends.reference import Reference
from kvstream.engine.backends.scan import scan_plainly
from kvstream.engine.chunk_choice import MEASURED, chunk_size_for, fitting_chunk, memory_of, take_less
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.positions import Ranks
from kvstream.engine.replay import replay_windows
from kvstream.engine.rope import Rotation
from kvstream.engine.scanned_layer import Arriving, ScannedLayer
from kvstream.engine.shared_tables import SharedTables
from kvstream.policies import POLICIES
from kvstream.policies.fields import spanned

B, H, G, T, S, D = 2, 3, 2, 5, 11, 8
CPU = torch.device("cpu")
BACKENDS = [Cpu(CPU), Reference(CPU)]
CLOSE = {FLOAT64: 1e-12, FLOAT32: 2e-6, torch.bfloat16: 2e-2}


def drawn(*shape, dtype=FLOAT64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64).to(dtype)


def close(ours, truth, dtype):
    """Infinite where the truth is, of the same sign; elsewhere finite and near. No truth here is NaN."""
    ours, truth = ours.double(), truth.double()
    assert ours.shape == truth.shape
    assert not truth.isnan().any()
    infinite = truth.isinf()
    assert torch.equal(ours[infinite], truth[infinite])
    assert ours[~infinite].isfinite().all()
    assert (ours - truth)[~infinite].abs().max() <= CLOSE[dtype] * 10


def test_a_device_has_one_backend():
    for dtype in CLOSE:
        assert type(backend_for(CPU, dtype)) is Cpu
        for kind in ("mps", "meta"):
            assert type(backend_for(torch.device(kind), dtype)) is Reference
    assert type(backend_for(torch.device("cuda"), FLOAT64)) is Reference


def test_chunks_are_fixed_on_cpus_and_elsewhere_double_while_they_fit(tiny_model):
    assert {chunk_size_for(tiny_model("neox", dtype), rows) for dtype in CLOSE for rows in (1, 99)} == {CHUNK_SIZE}
    assert fitting_chunk(1e9, 1) == fitting_chunk(1e9, 8) == 16 * CHUNK_SIZE
    assert fitting_chunk(0, 1) == CHUNK_SIZE
    assert [fitting_chunk(32 * CHUNK_SIZE, rows) // CHUNK_SIZE for rows in (1, 2, 3, 8, 16, 17, 64)] == [
        16, 16, 8, 4, 2, 1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("free", "reserved", "bytes_there"),
    [(90, 0, 100), (20, 40, 100), (20, 30, 50), (10, 5, 15)],
    ids=["nobody else", "torch's own", "half", "little"],
)
def test_chunks_take_a_share_of_what_others_leave_where_that_is_less_than_half(
    monkeypatch, free, reserved, bytes_there
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    assert memory_of(torch.device("cuda")) == bytes_there


def test_chunks_are_half_as_long_where_memory_was_lacking(tiny_model, monkeypatch):
    """However much room there was: more than the longest chunk takes, or less."""
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(chunk_choice, "device_of", lambda _: gpu)
    monkeypatch.setattr(chunk_choice, "serves", lambda *_: True)
    for tokens, rows, first in ((1e6, 1, 16), (1e6, 8, 16), (32 * CHUNK_SIZE, 8, 4)):
        model = copy.copy(tiny_model("neox", torch.float32))
        vars(model)[MEASURED] = {(gpu, torch.float32): tokens}
        sizes = [chunk_size_for(model, rows)]
        for _ in range(6):
            take_less(model)
            sizes.append(chunk_size_for(model, rows))
        assert [size // CHUNK_SIZE for size in sizes] == [max(1, first >> times) for times in range(7)]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("masked", [None, "shared", "per head"])
def test_a_block_is_softmax(backend, dtype, masked):
    q, k, v = drawn(B, H, G, T, D, dtype=dtype), drawn(B, H, S, D, dtype=dtype, seed=1), drawn(B, H, S, D, dtype=dtype)
    mask = None
    if masked:
        shape = (T, S) if masked == "shared" else (B, H, T, S)
        mask = torch.where(drawn(*shape, seed=2) < 0, -torch.inf, 0.0).to(dtype)
        mask[..., 1, :] = -torch.inf  # a query that sees none of these keys
    scores = torch.einsum("bhgtd,bhsd->bhgts", q.double(), k.double()) * 0.3
    scores = scores if mask is None else scores + mask.double().unsqueeze(-3)
    found = backend.block(q, k, v, 0.3, mask)
    total = scores.logsumexp(-1)
    close(found.logsumexp_BHGT, total, dtype)
    sees = ~total.isinf()
    assert bool(sees.all()) == (masked is None)
    truth = torch.einsum("bhgts,bhsd->bhgtd", scores.softmax(-1), v.double())
    close(found.outputs_BHGTD[sees], truth[sees], dtype)
    assert found.outputs_BHGTD.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda each: type(each).__name__)
def test_partials_merge_into_the_whole(backend):
    q, k, v = drawn(B, H, G, T, D), drawn(B, H, S, D, seed=1), drawn(B, H, S, D, seed=2)
    cuts = [slice(0, 2), slice(2, 3), slice(3, S)]
    merged = merge_partials([backend.block(q, k[:, :, cut], v[:, :, cut], 0.5) for cut in cuts])
    close(merged, backend.block(q, k, v, 0.5).outputs_BHGTD, FLOAT64)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("apart", [0, 4])
def test_a_step_asks_keys_apart_by_queries_of_their_own(backend, apart):
    q, k, v = drawn(B, H, 2 * G if apart else G, D), drawn(B, H, S, D, seed=1), drawn(B, H, S, D, seed=2)
    outputs = backend.step(q, k, v, 0.5, apart)
    scores = 0.5 * torch.einsum("bhgd,bhsd->bhgs", q, k)
    if apart:
        scores = torch.cat((scores[:, :, :G, :apart], scores[:, :, G:, apart:]), -1)
    close(outputs, scores.softmax(-1) @ v, FLOAT64)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("rotated", [4, D])
def test_keys_at_ranks_are_rotated_pair_by_pair(backend, dtype, rotated):
    """Each pair of dimensions is a complex number; a key stands at its place among those that a query sees."""
    first, budget = 2, 9
    query_T = torch.arange(6, 6 + T)
    generator = torch.Generator().manual_seed(3)
    enter = torch.randint(0, 14, (B, H, S), generator=generator)
    leave = enter + torch.randint(0, 4, (B, H, S), generator=generator)
    q, k, v = drawn(B, H, G, T, D, dtype=dtype), drawn(B, H, S, D, dtype=dtype, seed=1), drawn(B, H, S, D, dtype=dtype)
    frequency = 10.0 ** -torch.linspace(0, 2, rotated // 2, dtype=FLOAT64)
    angles = torch.arange(budget + 1)[:, None] * frequency
    cos, sin = angles.cos(), angles.sin()
    table = Rotation(torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype))
    scores = torch.full((B, H, G, T, S), -torch.inf, dtype=FLOAT64)
    half = rotated // 2
    for b, h, t in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(T)).tolist():
        seen = [u for u in range(S) if enter[b, h, u] <= query_T[t] <= leave[b, h, u]]
        for rank, u in enumerate(seen):
            distance = min(int(query_T[t]), budget) - first - rank
            assert distance >= 0
            turn = torch.polar(torch.ones(half, dtype=FLOAT64), distance * frequency)
            key = torch.complex(k[b, h, u, :half].double(), k[b, h, u, half:rotated].double())
            for g in range(G):
                query = torch.complex(q[b, h, g, t, :half].double(), q[b, h, g, t, half:rotated].double())
                rest = (q[b, h, g, t, rotated:].double() * k[b, h, u, rotated:].double()).sum()
                scores[b, h, g, t, u] = 0.4 * (float((query * turn * key.conj()).real.sum()) + float(rest))
    found = backend.block_by_rank(q, k, v, enter, leave, query_T, 0.4, Ranks(first, budget, table))
    total = scores.logsumexp(-1)
    assert total.isinf().any()
    close(found.logsumexp_BHGT, total, dtype)
    sees = ~total.isinf()
    close(found.outputs_BHGTD[sees], (scores.softmax(-1) @ v.double()[:, :, None])[sees], dtype)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_cpu_is_the_reference(dtype):
    """At a size at which kernels tile."""
    q, k, v = (drawn(1, 2, 2, 70, 64, dtype=dtype), *(drawn(1, 2, 300, 64, dtype=dtype, seed=s) for s in (1, 2)))
    mask = torch.where(drawn(70, 300, seed=3) < -1, -torch.inf, 0.0).to(dtype)
    ours, plain = (backend.block(q, k, v, 1 / math.sqrt(64), mask) for backend in BACKENDS)
    close(ours.outputs_BHGTD, plain.outputs_BHGTD, dtype)
    close(ours.logsumexp_BHGT, plain.logsumexp_BHGT, dtype)


@pytest.mark.parametrize("policy_text", ["streaming_llm(4,7)", "fix_size_l2(11,0.5,keep_low)", "full"])
def test_the_engine_computes_the_same_on_the_reference(monkeypatch, policy_text, tiny_model, tokens):
    """What a GPU without a backend of its own runs: replay, decode and plain calls end to end."""
    policy, ids = parse_policy(policy_text), tokens(60, 3)
    for family in ("neox", "llama"):
        model = tiny_model(family, FLOAT64)
        ours = replay(model, ids, policy, chunk_size=25), decode(model, ids, policy).nll_nats
        with monkeypatch.context() as patch:
            for module in ("layer", "scoring"):
                patch.setattr(f"kvstream.engine.{module}.backend_for", lambda device, dtype: Reference(device))
            plain = replay(model, ids, policy, chunk_size=25), decode(model, ids, policy).nll_nats
        for one, other in zip(ours, plain):
            assert (one - other).abs().max() < 1e-9
            assert one.shape == other.shape


@pytest.mark.parametrize(
    "label",
    ["h2o(9,4,start_size=2)", "keydiff(9,3,start_size=1)", "tova(9)", "snapkv(9,3,3,4)", "l2_compress(0.5,9)"],
)
def test_scans_need_no_float64_where_a_device_has_none(monkeypatch, label, tiny_model, tokens):
    """As Apple's GPU, on which nothing of a layer may be float64."""
    policy, ids, model = parse_policy(label), tokens(40, 3), tiny_model("llama", FLOAT32)
    truth = replay(model, ids, policy)
    for module in ("layer", "scoring"):
        monkeypatch.setattr(f"kvstream.engine.{module}.backend_for", lambda device, dtype: Reference(device))
    monkeypatch.setattr("kvstream.engine.scanned_layer.exact_dtype", lambda like: FLOAT32)
    cache = KVStreamCache(model, policy)
    [found] = replay_windows(model, [ids[None]], cache)
    assert (found.nll_nats[0] - truth).abs().max() < 1e-4
    held = [tensor for layer in cache.layers for tensor in vars(layer).values() if isinstance(tensor, torch.Tensor)]
    assert {tensor.dtype for tensor in held} == {FLOAT32, torch.int64}


def kept_to_compare(scan, keys, turn):
    """What a layer with room for all keeps of these keys: the dimensions that are turned, and 1 ÷ their norms."""
    policy = KeyDiff(9, 3, 1, position="cache" if turn else "absolute")
    size = turn.cos.shape[-1] if turn else 4
    rope = SimpleNamespace(size=size, at=lambda positions, like: turning(size, positions, like.dtype))
    layer = ScannedLayer(SharedTables(rope), policy, 0)
    layer.lazy_initialization(keys, keys)
    scan(layer, Arriving(keys[:, :, None], keys, keys, apart_BHTD=keys, turn=turn), 0.3)
    return layer.own_BHSE[:, :, :5], layer.score_BHS[:, :, :5]


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64, torch.bfloat16])
@pytest.mark.parametrize("rotated", [None, 4, 8])
def test_keys_to_compare_are_turned_and_measured(rotated, dtype):
    """As by complex numbers; a key of nothing has no direction, and one that is not a number has none either."""
    keys = torch.randn(2, 3, 5, 8, dtype=FLOAT64, generator=torch.Generator().manual_seed(7)).to(dtype)
    keys[0, 1, 2], keys[1, 2, 3, 5] = 0.0, torch.nan
    half, turn = (rotated or 0) // 2, None
    angles_TP = torch.arange(5).double()[:, None] * torch.tensor([0.9, 0.5, 0.2, 0.1])[:half]
    if rotated:
        cos, sin = angles_TP.cos().repeat(1, 2), torch.cat((-angles_TP.sin(), angles_TP.sin()), 1)
        turn = Rotation(cos.to(dtype), sin.to(dtype))
    pairs = torch.complex(keys[..., :half].double(), keys[..., half : 2 * half].double())
    turned = pairs * torch.polar(torch.ones_like(angles_TP), angles_TP)
    tolerance = {torch.float32: 1e-6, FLOAT64: 1e-14, torch.bfloat16: 3e-2}[dtype]
    for scan in (scan_compiled, scan_plainly):
        own, inverse = kept_to_compare(scan, keys.transpose(1, 2).contiguous().transpose(1, 2), turn)
        truth = torch.cat((turned.real, turned.imag), -1).nan_to_num()
        assert own.dtype == dtype
        assert own.shape == (2, 3, 5, rotated or 0)
        assert (own.double().nan_to_num() - truth).abs().max() < tolerance if rotated else own.numel() == 0
        norms = keys.double().norm(dim=-1)
        assert inverse.dtype == FLOAT64
        assert (inverse * norms - 1)[norms > 0].abs().max() < tolerance
        assert inverse[0, 1, 2] == inverse[1, 2, 3] == 0


def turning(rotated, positions, dtype=FLOAT64):
    """Rotate the first dimensions of a head to these positions."""
    angles_SP = positions[:, None] * torch.tensor([0.9, 0.5, 0.2, 0.1])[: rotated // 2].double()
    cos_SR, sin_SR = angles_SP.cos().repeat(1, 2), torch.cat((-angles_SP.sin(), angles_SP.sin()), 1)
    return Rotation(cos_SR.to(dtype), sin_SR.to(dtype))


def scanned(scan, policy, rotated, queries):
    """What a scan of nine tokens answers, and the layer after it."""
    rope = SimpleNamespace(size=rotated, at=lambda positions, like: turning(rotated, positions))
    layer, keys = ScannedLayer(SharedTables(rope), policy, 0), drawn(B, H, 9, D, seed=1)
    layer.lazy_initialization(keys, keys)
    compared = {}
    if policy.scored_by == "similarity":
        compared = {"apart_BHTD": keys}
        compared |= {"turn": turning(rotated, torch.arange(9))} if layer.own_BHSE.shape[-1] else {}
    arriving = Arriving(drawn(B, H, queries, 9, D), keys, drawn(B, H, 9, D, seed=2), **compared)
    return scan(layer, arriving, 0.3), layer


@pytest.mark.parametrize("policy", [H2O(6, 3, start_size=1), KeyDiff(5, 2, 1)], ids=str)
@pytest.mark.parametrize("position", ["cache", "frozen", "absolute"])
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("rotated", [8, 4])
def test_a_compiled_scan_does_what_the_plain_one_does_however_many_queries_share_a_key(
    policy, position, queries, rotated
):
    policy = replace(policy, position=position)
    (ours, layer), (truth, plain) = (scanned(scan, policy, rotated, queries) for scan in (scan_compiled, scan_plainly))
    close(ours, truth, FLOAT64)
    close(layer.score_BHS, plain.score_BHS, FLOAT64)
    assert torch.equal(layer.order_BUS, plain.order_BUS)
    if policy.scored_by == "similarity":
        close(layer.sum_BHC, plain.sum_BHC, FLOAT64)
        assert plain.sum_BHC.any()
        assert layer.own_BHSE.shape[-1] == (0 if position == "absolute" else rotated)


SAMPLED = {"start_sizes": (1,), "windows": (3,), "every": (4,), "normalise": ("none", "age")}
IN_TURN = [each for kind in POLICIES.values() for each in spanned(kind, 9, SAMPLED) if each.in_turn(0)]
COMPILED = [each for each in IN_TURN if not each.scores_in_python]
TEXT = 31


def taken(policy, dtype, queries, tied, sizes):
    """What a layer answers to a text in calls of these sizes, and the layer.

    Where tokens tie, few keys return again and again, none is turned, and queries attend to all alike.
    """
    turns, token_T = int(not tied), torch.arange(TEXT) % (3 if tied else TEXT)
    rope = SimpleNamespace(size=4, at=lambda positions, like: turning(4, turns * positions, like.dtype))
    k, v = (drawn(B, H, TEXT, D, dtype=dtype, seed=seed)[:, :, token_T] for seed in (1, 2))
    q = drawn(B, H, queries, TEXT, D, dtype=dtype) * turns
    layer = ScannedLayer(SharedTables(rope), policy, 0)
    layer.lazy_initialization(k, v)
    calls = zip(q.split(sizes, 3), k.split(sizes, 2), v.split(sizes, 2))
    return torch.cat([layer._answer(*call, 0.3) for call in calls], 3), layer


def by_age(layer):
    """What is stored of the tokens that a layer holds: their numbers, keys, values, own keys; and their scores."""
    slot_BUN = layer.order_BUS[:, :, : layer.held(layer.seen)]
    slot_BHN = slot_BUN.expand(B, H, -1)
    stored = (layer.keys, layer.values, layer.own_BHSE)
    found = [x.gather(2, slot_BHN[..., None].expand(-1, -1, -1, x.shape[3])) for x in stored]
    return [layer.token_BUS.gather(2, slot_BUN), *found], layer.score_BHS.gather(2, slot_BHN)


@pytest.mark.parametrize("policy", COMPILED, ids=str)
@pytest.mark.parametrize("position", ["cache", "absolute"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_takes_no_python_step_per_token_and_does_what_those_did(
    monkeypatch, policy, position, dtype, queries, tied
):
    policy = replace(policy, position=position)
    with patch("kvstream.engine.backends.cpu.scan_compiled", scan_plainly):
        truth, plain = taken(policy, dtype, queries, tied, TEXT)
    monkeypatch.setattr("kvstream.engine.backends.cpu.scan_plainly", None)
    for size in (1, 7, TEXT):
        ours, layer = taken(policy, dtype, queries, tied, size)
        (stored, score), (stored_plainly, score_plainly) = by_age(layer), by_age(plain)
        assert all(torch.equal(one, other) for one, other in zip(stored, stored_plainly)), "bit by bit"
        assert torch.allclose(score, score_plainly, rtol=1e-5, atol=1e-6)
        assert torch.allclose(layer.sum_BHC, plain.sum_BHC, rtol=1e-12, atol=1e-12)
        assert ours.dtype == truth.dtype == dtype
        assert torch.allclose(ours.float(), truth.float(), rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert layer.kv_bytes == sum(x.numel() for x in (layer.keys, layer.values, layer.own_BHSE)) * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_the_compiled_softmax_is_exact_to_a_few_units_in_the_last_place(dtype, count):
    scores = (np.random.default_rng(count).standard_normal(count) * 30).astype(dtype)
    weights = np.append(scores, dtype(7))  # what is behind stays as it is
    softmax(weights, weights.view(f"i{weights.itemsize}"), count)
    wide = np.exp((scores - scores.max()).astype(np.longdouble))
    truth, floor = wide / wide.sum(), np.exp(np.longdouble(-86 if dtype is np.float32 else -700))
    assert (np.abs(weights[:count] - truth) <= np.finfo(dtype).eps * 8 * truth + 2 * floor).all()
    assert weights[count] == 7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_compiled_softmax_takes_the_farthest_scores_and_hides_no_nan(dtype):
    for scores, truth in (
        ([-3e38, 0, 3e38], [0, 0, 1]),
        ([-np.inf, 2, 2], [0, 0.5, 0.5]),
        ([0, np.nan, 1], [np.nan] * 3),
    ):
        weights = np.array(scores, dtype)
        softmax(weights, weights.view(f"i{weights.itemsize}"), 3)
        np.testing.assert_allclose(weights, truth, atol=1e-37)
