"""The CUDA backend's kernels, on a GPU if there is one, else in Triton's interpreter: each against its plain twin.

Where Triton is not installed nothing of this runs, and the end of the test run says so.
"""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import NO_TRITON
from exactness_cases import FLOAT32, FLOAT64, assert_close
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
    replay,
)  # fmt: skip
from kvstream.engine import notes
from kvstream.engine.backends import backend_for
from kvstream.engine.backends.reference import Reference
from kvstream.engine.backends.scan import scan_plainly
from kvstream.engine.contest import leaving_offers, tie
from kvstream.engine.decode_engine import DecodeEngine
from kvstream.engine.lifetimes import Lifetimes
from kvstream.engine.replay import replay_windows, windows
from kvstream.engine.rope import Rotation
from kvstream.engine.scanned_layer import Arriving, ScannedLayer
from kvstream.engine.shared_tables import SharedTables
from kvstream.policies.base import BoundedPolicy, Regions
from kvstream.policies.draws import uniform_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_TRITON, reason="Triton is not installed: pip install triton")]
if not NO_TRITON:
    from triton.runtime.errors import OutOfResources

    from kvstream.engine.backends.cuda import backend, shedding, tiles
    from kvstream.engine.backends.cuda.contest import NEVER, leaving, visible
    from kvstream.engine.backends.cuda.rotation import turned
    from kvstream.engine.backends.cuda.scan import scan_in_kernel
    from kvstream.engine.backends.cuda.scoring import predicted
    from kvstream.engine.backends.cuda.tiles import CANDIDATES, Tiles, shrinking

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
T = 41  # two and a half blocks of queries
MODES = ("cache", "absolute", "frozen")


@dataclass(frozen=True)
class SinksAndValues(BoundedPolicy):
    """Sinks, recents and, between them, those with the largest values: what no policy of kvstream has at once."""

    name = "sinks_and_values"
    kept_by: Literal["head", "layer"] = "head"

    @property
    def regions(self):
        return Regions(2, 5, 4)

    @property
    def shared_by_heads(self):
        return self.kept_by == "layer"

    @property
    def scored_by(self):
        return "token"

    def token_scores(self, keys_BHSD, values_BHSD):
        return values_BHSD.norm(dim=-1)


POLICIES = [
    Full(),
    StreamingLLM(3, 9),
    StreamingLLM(0, 9),
    StreamingLLM(20, 1),
    StreamingLLM(5, 0),
    RecentOnly(1),
    RecentOnly(17, skip_layers=(1,)),
    FixSizeL2(11, 0.5, "keep_low"),
    FixSizeL2(11, 0.5, "keep_high"),
    FixSizeL2(11, 0.5, "random", seed=3),
    FixSizeL2(9, 0.0, "keep_low"),
    FixSizeL2(1, 0.0, "random"),
    FixSizeL2(40, 0.7, "keep_low"),
    SinksAndValues(),
    SinksAndValues("layer"),
]
CASES = [(policy, "llama" if place % 2 else "neox") for place, policy in enumerate(POLICIES)]
CASES += [(replace(p, position=mode), "neox" if place % 2 else "llama") for place, p in enumerate(POLICIES[1:])
          for mode in MODES[1:] if place in (0, 6, 8, 12)]  # fmt: skip


INTERPRETED = [pytest.mark.long, pytest.mark.interpreted]


def few_first(cases, step):
    """The interpreter takes seconds for each: one of so many in `make test`, all in `make test-faults` and on a GPU."""
    rows = [each if isinstance(each, tuple) else (each,) for each in cases]
    return [pytest.param(*row, marks=INTERPRETED * (place % step > 0)) for place, row in enumerate(rows)]


@pytest.fixture
def cuda(monkeypatch):
    """Have all but float64 computed by the CUDA backend, with tiles so small that there are several."""

    def chosen(device, dtype):
        return backend_for(device, dtype) if dtype == FLOAT64 else backend.Cuda(device)

    def fits(*call):
        assert real(*call), "the reference would be compared with itself"
        return True

    real = backend._fits
    monkeypatch.setattr(backend, "_fits", fits)
    monkeypatch.setattr(tiles, "candidates", lambda *_: (Tiles(16, 16, 16, 1, 1),))
    monkeypatch.setattr(tiles, "chosen", {})
    monkeypatch.setattr(tiles, "meanwhile", {})
    monkeypatch.setattr(tiles, "processors", lambda _: 1000)
    for module in ("layer", "scoring"):
        monkeypatch.setattr(f"kvstream.engine.{module}.backend_for", chosen)


@lru_cache
def model_on(family, dtype):
    import copy

    return copy.deepcopy(build_model(family, dtype)).to(DEVICE)


@lru_cache
def truth(family, policy, length=T):
    return replay(build_model(family, FLOAT64), text(length), policy)


def text(length):
    return torch.randperm(97, generator=torch.Generator().manual_seed(3))[:length]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize(("policy", "family"), few_first(CASES, 8), ids=str)
def test_replay_is_exact(policy, family, cuda):
    """In chunks whose ends lie within blocks, and where a chunk is one token, which the reference takes."""
    expected, model = truth(family, policy), model_on(family, FLOAT32)
    for size in (13,) if DEVICE.type == "cpu" else (T, 13, 1, 39):  # the interpreter is slow
        ours = replay(model, text(T).to(DEVICE), policy, chunk_size=size)
        assert_close(ours.cpu(), expected, 2e-5, f"by {size}")


@pytest.mark.long
@pytest.mark.interpreted
@pytest.mark.parametrize("policy", [StreamingLLM(3, 9), Full(), FixSizeL2(11, 0.5, "keep_low")], ids=str)
def test_half_precision_differs_by_its_rounding(policy, cuda):
    # Triton's interpreter multiplies bfloat16 as if its bits were whole numbers (3.9, tl.dot).
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    expected, model = truth("llama", policy), model_on("llama", dtype)
    ours = replay(model, text(T).to(DEVICE), policy, chunk_size=30).cpu()
    assert (ours - expected).abs().mean() < 0.2
    assert (ours - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    "policy", few_first([StreamingLLM(3, 9), FixSizeL2(11, 0.5, "keep_low"), SinksAndValues()], 3), ids=str
)
def test_texts_side_by_side_states_and_single_tokens(policy, cuda):
    """One chunk, some tokens one by one, a state carried into another cache, a chunk: as each text alone."""
    model, ids = model_on("llama", FLOAT32), torch.stack([text(T), text(T).flip(0)]).to(DEVICE)
    cache = KVStreamCache(model, policy)
    parts = list(replay_windows(model, [ids[:, :18]], cache))
    parts += replay_windows(model, windows([ids[:, 17:20]], 1), cache)
    other = KVStreamCache(model, policy)
    other.restore(cache.state())
    parts += replay_windows(model, [ids[:, 19:]], other)
    nll = torch.cat([part.nll_nats for part in parts], 1).cpu()
    for row, one in zip(nll, ids.cpu()):
        assert_close(row, replay(build_model("llama", FLOAT64), one, policy), 2e-5)


@pytest.mark.long
def test_nan_reaches_all_that_see_it(cuda):
    """What sees it is NaN, with whatever else shares a block; what comes before, in other blocks, is not."""
    model = build_model("neox", FLOAT32)
    poisoned = type(model)(model.config).eval()
    poisoned.load_state_dict(model.state_dict())
    ids = text(60)
    with torch.no_grad():
        poisoned.get_input_embeddings().weight[ids[30]] = torch.nan
    for policy in (Full(), RecentOnly(9), FixSizeL2(11, 0.5, "keep_low")):
        nll = replay(poisoned.to(DEVICE), ids.to(DEVICE), policy).cpu()
        assert nll[30:38].isnan().all()
        assert nll[:16].isfinite().all()


# --------------------------------------------------------------------------------------------------- kernel by kernel


@pytest.mark.parametrize("size", [4, 8])
def test_rotation_is_that_of_plain_torch(size):
    x, angles = drawn(2, 3, 70, 8), drawn(70, size // 2, seed=1)
    cos, sin = angles.cos(), angles.sin()
    plain = Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))(x)
    assert (turned(x, (cos, sin)) - plain).abs().max() < 1e-6
    into = torch.zeros(2, 3, 90, 8, device=DEVICE)
    turned(x, (cos, sin), into[:, :, 5:75])
    assert (into[:, :, 5:75] - plain).abs().max() < 1e-6
    assert not into[:, :, :5].any()
    assert not into[:, :, 75:].any()
    assert turned(x[:, :, :0], (cos, sin)).shape == (2, 3, 0, 8)


@pytest.mark.parametrize(("members", "room", "tokens"), [(0, 5, 30), (3, 5, 30), (5, 5, 30), (0, 1, 9), (2, 8, 7)])
@pytest.mark.parametrize("by", ["scores", "draws", "equal scores"])
def test_contests_end_as_on_the_host(members, room, tokens, by):
    rows, offered, block = 4, 20, 8
    scores = drawn(rows, tokens, seed=2)
    if by == "equal scores":
        scores = torch.randint(1, 4, (rows, tokens), generator=torch.Generator().manual_seed(2)).float().to(DEVICE)
        scores *= 1 + 2e-7 * drawn(rows, tokens)
    draws = uniform_ranks(7, 0, rows, range(offered, offered + tokens - members), room + 1)
    host = draws if by == "draws" else np.empty((rows, 0), np.int64)
    relative = tie(FLOAT32)
    offers = leaving_offers(scores.cpu().numpy(), host, members, room, np.float32(relative))
    life = Lifetimes.of(offered, members, torch.from_numpy(offers)[None])
    on_device = torch.from_numpy(draws).to(DEVICE) if by == "draws" else None
    leave = leaving(scores, on_device, members, room, offered, relative)
    assert torch.equal(leave.cpu().long(), life.leave_BHN[0].clamp(max=NEVER))
    queries = range(offered - 3, offered + tokens - members)
    listed, count = visible(leave, members, room, offered, queries, block)
    firsts = list(range(queries.start, queries.stop, block))
    for place, first in enumerate([*firsts, queries.stop]):
        last = min(first + block, queries.stop) - 1 if place < len(firsts) else first
        seen = life.seen_by(first, last)[0]
        for row in range(rows):
            assert listed[row, place, : count[row, place]].tolist() == seen[row].nonzero()[:, 0].tolist()
    assert (count[:, -1] == min(room, tokens)).all()


def test_scores_are_those_of_plain_torch():
    """Over several blocks of the vocabulary, with ruled out tokens, equal logits and NaN."""
    head = torch.nn.Linear(4, 5000).to(DEVICE).requires_grad_(False)
    head.weight.copy_(drawn(5000, 4) * 20)
    head.bias.copy_(drawn(5000, seed=1))
    head.bias[:4500] = -torch.inf
    head.weight[4900], head.bias[4900] = head.weight[4800], head.bias[4800]
    hidden = drawn(70, 4, seed=2)
    hidden[7] = torch.nan
    best = (hidden @ head.weight.t() + head.bias).argmax(-1)
    targets = torch.where(torch.arange(70, device=DEVICE) % 2 == 0, best, 4900)
    found = predicted(head, hidden, targets, 64 * 5000 * 4, more=True, keep=True)
    plain = Reference(DEVICE).predict(head, hidden, targets, more=True, keep=True)
    numbers = torch.arange(70, device=DEVICE) != 7
    assert torch.equal(found.top_T[numbers], plain.top_T[numbers])
    assert (found.above_T - plain.above_T)[numbers].abs().max() <= 1  # of equals, whose last bits differ
    assert found.nll_T[7].isnan()
    for name in ("nll_T", "log_sum_T", "mean_TE"):
        own, theirs = (getattr(each, name)[numbers] for each in (found, plain))
        assert (own - theirs).abs().max() < 1e-4 * theirs.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_divergence_in_half_precision_is_of_what_was_not_rounded(dtype):
    head = torch.nn.Linear(8, 5000).to(DEVICE).requires_grad_(False)
    head.weight.copy_(drawn(5000, 8))
    head.to(dtype)
    hidden, targets = drawn(70, 8, seed=2).to(dtype), torch.arange(70, device=DEVICE)
    found = predicted(head, hidden, targets, 64 * 5000 * 2, more=True, keep=True)
    exact, plain = (hidden.to(to) @ head.weight.to(to).t() + head.bias.to(to) for to in (torch.float64, torch.float32))
    assert (found.log_sum_T - exact.logsumexp(-1)).abs().max() < 1e-5
    mean = exact.softmax(-1) @ head.weight.double()
    rounding = (plain.softmax(-1) @ head.weight.float() - mean).abs().max()
    assert (found.mean_TE - mean).abs().max() < 2 * rounding < 1e-4
    rounded = predicted(head, hidden, targets, 64 * 5000 * 2)
    assert torch.equal(rounded.nll_T, found.nll_T)


# -------------------------------------------------------------------------------------------------------------- limits


def test_what_the_kernels_cannot_take_is_left_to_the_reference(monkeypatch):
    asked = []
    cuda, cache = backend.Cuda(DEVICE), KVStreamCache(build_model("neox", FLOAT32), FixSizeL2(9, 0.5, "keep_low"))
    for name in ("bounded", "causal"):
        monkeypatch.setattr(Reference, name, lambda *_, name=name: asked.append(name))
    layer = cache.own_layers()[0]
    keys = torch.empty(1, 4, 20, 16)
    layer.lazy_initialization(keys, keys)
    turned_over = torch.empty(1, 4, 1, 16, 20).transpose(-1, -2)
    cuda.causal(layer, turned_over, keys, keys, 1.0)
    monkeypatch.setattr(backend, "MOST_SEATS", 3)
    cuda.bounded(layer, keys[:, :, None], keys, keys, 1.0)
    assert asked == ["causal", "bounded"]


def test_a_chunk_that_kernels_cannot_count_through_is_left_to_the_reference():
    """Shapes alone: the output of one text, (T, query heads, D), and all heads of all texts on one axis of a grid."""
    layer = SimpleNamespace(keys=torch.empty(1, 1, 8, 64, device="meta"))

    def fits(B, H, G, T, D=64):
        q = torch.empty(1, device="meta").expand(B, H, G, T, D)
        k = torch.empty(1, device="meta").expand(B, H, T, D)
        apart = [torch.as_strided(x, x.shape, (*[0] * (x.dim() - 2), D, 1)) for x in (q, k)]
        return backend._fits(layer, *apart, apart[1])

    assert fits(8, 8, 4, 8192)
    assert fits(1, 8, 4, 2**20 - 1)
    assert not fits(1, 8, 4, 2**20)  # 2^31 numbers of an output
    assert fits(2047, 8, 4, 2)
    assert not fits(2048, 8, 4, 2)


@pytest.fixture
def card(monkeypatch):
    """A card that nothing is known of, with few multiprocessors; how long its tiles take, and what it said."""
    took, said = {}, []
    monkeypatch.setattr(tiles, "chosen", {})
    monkeypatch.setattr(tiles, "meanwhile", {})
    monkeypatch.setattr(tiles, "timed", lambda work, device: took[work()])
    monkeypatch.setattr(tiles, "processors", lambda _: 8)
    monkeypatch.setattr(tiles, "note", said.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    return took, said


def queries(length):
    return torch.empty(1, 8, length, 64, device=DEVICE)


def holds_up_to(most):
    """A run that gives its tiles back, on a card that cannot hold more queries and keys than so many."""

    def run(each):
        if each.queries + each.keys > most:
            raise OutOfResources(300_000, 100_000, "shared memory")
        return each

    return run


@pytest.mark.parametrize("first", [first for first, *_ in CANDIDATES.values()] if not NO_TRITON else [], ids=str)
def test_tiles_shrink_until_a_card_holds_them(card, monkeypatch, first):
    monkeypatch.setattr(tiles, "candidates", lambda *_: (first,))
    found = tiles.in_tiles(holds_up_to(48), "band", queries(64))
    assert found.queries + found.keys <= 48
    assert found.contested <= found.keys or first.contested > first.keys
    assert tiles.in_tiles(holds_up_to(48), "band", queries(1)) is found
    assert tiles.in_tiles(holds_up_to(32), "band", queries(1)).queries <= 16, "another chunk may need more"
    *_, last = shrinking(first)
    assert max(last.queries, last.keys) == 16


def test_a_card_that_is_busy_is_asked_once_which_tiles_are_quickest(card, monkeypatch):
    took, said = card
    large, slow, quick = Tiles(128, 64, 32, 4, 2), Tiles(64, 64, 32, 4, 2), Tiles(32, 32, 32, 4, 2)
    took |= {slow: 3.0, quick: 2.0}
    monkeypatch.setattr(tiles, "candidates", lambda *_: (large, slow, quick))
    run = holds_up_to(128)
    # 8 multiprocessors have 8 heads × 128 queries at a time each: three of these are enough, two are not.
    assert tiles.in_tiles(run, "rank", queries(3 * 128 - 1)) == slow  # what it holds of the first
    assert not said
    assert tiles.in_tiles(run, "rank", queries(4 * 128)) == quick
    assert said == [
        "a card: rank attention in float32, heads of 64: tiles of 32 queries and 32 keys, of 2 that were timed"
    ]
    took[slow] = 1.0
    assert tiles.in_tiles(run, "rank", queries(4 * 128)) == tiles.in_tiles(run, "rank", queries(1)) == quick
    assert len(said) == 1
    assert tiles.in_tiles(run, "causal", queries(4 * 128)) == slow  # another kind is asked for itself


def test_the_first_tiles_stay_where_others_are_hardly_quicker(card, monkeypatch):
    took, _ = card
    first, other = Tiles(64, 64, 32, 4, 2), Tiles(32, 32, 32, 4, 2)
    took |= {first: 1.0, other: 0.96}
    monkeypatch.setattr(tiles, "candidates", lambda *_: (first, other))
    assert tiles.in_tiles(holds_up_to(999), "band", queries(4 * 64)) == first


def test_tiles_that_leave_no_memory_are_not_taken(card, monkeypatch):
    took, said = card
    first, other = Tiles(64, 64, 32, 4, 2), Tiles(32, 32, 32, 4, 2)
    took[first] = 1.0

    def run(each):
        if each == other:
            raise RuntimeError("Triton Error [CUDA]: out of memory")
        return each

    monkeypatch.setattr(tiles, "candidates", lambda *_: (first, other))
    assert tiles.in_tiles(run, "band", queries(4 * 64)) == first
    assert said[0].endswith("of 1 that were timed")
    monkeypatch.setattr(tiles, "candidates", lambda *_: (other, first))
    assert tiles.in_tiles(run, "causal", queries(1)) == first, "before there is enough to do, too"
    assert tiles.in_tiles(run, "rank", queries(4 * 64)) == first
    monkeypatch.setattr(tiles, "candidates", lambda *_: (other,))
    for length in (1, 4 * 64):  # there may be none at all
        with pytest.raises(RuntimeError, match="out of memory"):
            tiles.in_tiles(run, "contested", queries(length))


@pytest.mark.parametrize(
    ("kilobytes", "sizes"),
    [
        (227, [(128, 64), (64, 64), (64, 32)]),  # an H100
        (99, [(64, 64), (64, 64), (64, 32)]),  # an RTX 4090: two differ in warps
        (48, [(32, 32), (32, 32)]),  # a Turing card
    ],
)
def test_tiles_are_tried_that_a_cards_memory_can_hold(monkeypatch, kilobytes, sizes):
    limit = SimpleNamespace(shared_memory_per_block_optin=kilobytes << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: limit)
    found = tiles.candidates.__wrapped__(torch.float32, "causal", 64, DEVICE)
    assert [(each.queries, each.keys) for each in found] == sizes


SCANNED = [
    KeyDiff(6, 2, 1),
    H2O(6, 3, start_size=1),
    TOVA(6),
    KeyDiff(6, 2, 1, position="frozen"),
    H2O(6, 0, normalise="age", position="absolute"),
    L2Compress(0.5, 8),
    KeyDiff(6, 2, 1, position="absolute"),
    SnapKV(9, 3, 3, 4),
    TOVA(1),
]


@pytest.mark.parametrize("policy", few_first(SCANNED, 4), ids=str)
def test_a_scan_keeps_and_answers_what_the_plain_one_does(policy):
    """In calls of several tokens and of one, for two texts, two heads and three queries to a key.

    The kernel that takes many tokens, and the one that has them leave after one that torch attended for.
    """
    tokens, found = 17, []
    drawn = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 2, *more, tokens, 8, generator=drawn).to(DEVICE) for more in ((3,), (), ()))
    turn = Turns().at(torch.arange(tokens, device=DEVICE), k)
    for scan, of in ((scan_plainly, Reference), (scan_in_kernel, backend.Cuda), (scan_plainly, backend.Cuda)):
        layer = ScannedLayer(SharedTables(Turns()), policy, 0)
        layer.lazy_initialization(k, k)
        layer.backend = of(DEVICE)
        outputs = []
        for start, stop in ((0, 5), (5, 6), (6, tokens)):
            part = slice(start, stop)
            more = {}
            if policy.scored_by == "similarity":
                turned = None if policy.position == "absolute" else turn.window(start, stop)
                more = {"apart_BHTD": k[:, :, part], "turn": turned}
            elif policy.scored_by == "token":
                more = {"score_BHT": policy.token_scores(k, v)[:, :, part].double()}
            new = Arriving(q[..., part, :], k[:, :, part], v[:, :, part], **more)
            outputs.append(scan(layer, new, 0.3))
            layer.seen = stop
        found.append((torch.cat(outputs, -2), layer.state(), layer.order_BUS))
    (truth, true_state, true_order), *others = found
    for output, state, order in others:
        assert torch.equal(order, true_order)
        assert (output - truth).abs().max() < 2e-6
        assert state.keys() == true_state.keys()
        for name, tensor in state.items():
            assert (tensor - true_state[name]).abs().max() < 2e-6 if tensor.numel() else True, name


class Turns:
    """A rotation of four of a head's dimensions."""

    size = 4

    def pairs(self, positions):
        angles = positions[:, None] * torch.tensor([0.9, 0.3], device=positions.device)
        return angles.cos(), angles.sin()

    def at(self, positions, like):
        cos, sin = self.pairs(positions)
        return Rotation(cos.repeat(1, 2).to(like), torch.cat((-sin, sin), 1).to(like))


@pytest.mark.long
@pytest.mark.parametrize("policy", [H2O(9, 4, 2), KeyDiff(9, 3, 1, skip_layers=(1,))], ids=str)
def test_scanned_replay_is_exact(policy, cuda):
    ours = replay(model_on("llama", FLOAT32), text(T).to(DEVICE), policy, chunk_size=30).cpu()
    assert_close(ours, truth("llama", policy), 2e-5)


@pytest.mark.parametrize("policy", few_first([KeyDiff(6, 2, 1), H2O(6, 3, 1), SnapKV(9, 3, 3, 4)], 3), ids=str)
def test_a_recorded_step_decides_in_the_kernel(policy, cuda, monkeypatch):
    """And a compiler takes that as it is."""
    asked, real = [], shedding.built_for
    monkeypatch.setattr(shedding, "built_for", lambda *call: (asked.append(call), real(*call))[1])
    ids, model, found = text(13).to(DEVICE)[None], model_on("llama", FLOAT32), []
    for steady in (False, True):
        engine = DecodeEngine(model, policy, capacity=13, steady=steady)
        engine.fewest = 1
        engine.prefill(ids[:, :9])
        logits = [engine.step(ids[:, 9:10])]
        if steady:
            torch.compiler.reset()
            compute = torch.compile(engine.recorded.step.compute, fullgraph=True, dynamic=False, backend="aot_eager")
            monkeypatch.setattr(engine.recorded, "compute", compute)
        found.append(torch.cat(logits + [engine.step(ids[:, each : each + 1]) for each in range(10, 13)]))
        assert bool(asked) == (steady and policy.name != "snapkv"), "from which none leaves at a recorded step"
    assert_close(found[1].cpu().flatten(), found[0].cpu().flatten(), 2e-5)


def test_a_card_that_takes_no_scan_is_told_once(monkeypatch, capsys):
    def refused(*_):
        raise OutOfResources(99, 48, "shared memory")

    monkeypatch.setattr(backend, "scan_in_kernel", refused)
    monkeypatch.setattr(backend, "refused", set())
    monkeypatch.setattr(notes, "_told", set())
    monkeypatch.setattr(Reference, "scan", lambda *_: "plainly")
    layer = ScannedLayer(SharedTables(None), TOVA(6), 0)
    layer.keys = torch.zeros(1, 1, 7, 8)
    assert [backend.Cuda(DEVICE).scan(layer, None, 1.0) for _ in range(2)] == ["plainly"] * 2
    assert capsys.readouterr().out.count("no kernel for this card, tokens pass in Python") == 1


def test_a_card_that_does_not_take_the_kernel_after_a_step_goes_on_without(monkeypatch, capsys):
    def refused(*_):
        raise OutOfResources(99, 48, "shared memory")

    monkeypatch.setattr(backend, "shed_in_kernel", refused)
    monkeypatch.setattr(backend, "refused", set())
    monkeypatch.setattr(notes, "_told", set())
    monkeypatch.setattr(Reference, "shed", lambda *call: asked.append(call[1:]))
    asked, layer = [], ScannedLayer(SharedTables(None), TOVA(6), 0)
    layer.keys = torch.zeros(1, 1, 7, 8)
    layer.device = DEVICE
    for token in (7, torch.tensor([8])):
        backend.Cuda(DEVICE).shed(layer, token)
    assert asked == [(layer, 7), (layer, torch.tensor([8]))]
    assert capsys.readouterr().out.count("no kernel for this card") == 1
