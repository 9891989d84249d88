"""Attention of a chunk under an eviction policy in one pass: sinks, a band of recent keys, contested keys by lifetime.

Every block of queries goes over three kinds of keys and keeps one softmax over all of them
(https://arxiv.org/abs/2205.14135), so no mask and no score is written to memory, and nothing has to be merged:

    recent      keys at 0 ≤ t − j ≤ recent, asked by queries rotated to their own positions
    sinks       seen from their own token on, asked by queries rotated to the positions of old keys
    contested   those listed for the block (`contest.visible`), each seen by the queries enter ≤ t ≤ leave: rotated, and
                asked as sinks are, or unrotated and scored at the rank that each has for each query (`positions.Ranks`)

Products of float32 are sums of three of TF32 ("tf32x3"): on an H100 as exact as IEEE's, and 3.5 times as fast. Where
torch is told to multiply in TF32, they are one of them.

Shape legend: B batch, H kv-heads, T queries, S recent keys, N contested keys, D head size; in kernels: tiles of BM
queries, BN or BC keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kvstream.engine.backends.cuda.contest import visible
from kvstream.engine.backends.cuda.rotation import Pairs, load_turned
from kvstream.engine.backends.cuda.tiles import Tiles
from kvstream.engine.widest import float32_products

LOG2_E = 1.4426950408889634
SINKS_AT_ONCE = 16


@triton.jit
def _absorb(acc, top, total, scores, values, PRECISION: tl.constexpr):
    """Take more keys into a softmax: scores (BM, keys) as exponents of 2, −inf where unseen."""
    higher = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - safe[:, None])
    fade = tl.exp2(top - safe)
    total = total * fade + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None], input_precision=PRECISION)
    return acc, higher, total


@triton.jit
def _recent_tile(
    acc, top, total, q, K, V, ks, vs, j, t, first, S, recent, scale, d,
    MASK: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    inside = (j < S)[:, None] & (d < D)[None, :]
    k = tl.load(K + j[:, None] * ks + d[None, :], mask=inside, other=0.0)
    v = tl.load(V + j[:, None] * vs + d[None, :], mask=inside, other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if MASK:
        age = t[:, None] - (first + j)[None, :]
        s = tl.where((age >= 0) & (age <= recent) & (j < S)[None, :], s, float("-inf"))
    return _absorb(acc, top, total, s, v, PRECISION)


@triton.jit
def _scores_at_rank(
    Q, qt, K, ks, m, pick, there, listed, away, COS, SIN, table, d, k,
    HALF: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply unrotated queries and keys that are `away` from each other, pair by pair of dimensions."""
    if 2 * HALF < D:
        rest = there[:, None] & ((d >= 2 * HALF) & (d < D))[None, :]
        s = tl.dot(tl.load(Q + m[:, None] * qt + d[None, :], mask=rest, other=0.0), tl.trans(k),
                   input_precision=PRECISION)  # fmt: skip
    else:
        s = tl.zeros(away.shape, tl.float32)
    for p in range(HALF):
        q1 = tl.load(Q + m * qt + p, mask=there, other=0.0).to(tl.float32)[:, None]
        q2 = tl.load(Q + m * qt + p + HALF, mask=there, other=0.0).to(tl.float32)[:, None]
        k1 = tl.load(K + pick * ks + p, mask=listed, other=0.0).to(tl.float32)[None, :]
        k2 = tl.load(K + pick * ks + p + HALF, mask=listed, other=0.0).to(tl.float32)[None, :]
        c = tl.load(COS + p * table + away)
        sn = tl.load(SIN + p * table + away)
        s += c * (q1 * k1 + q2 * k2) + sn * (q1 * k2 - q2 * k1)
    return s


@triton.jit(do_not_specialize=["T", "S", "N", "start", "first", "sinks", "recent", "members", "offered", "budget",
                               "table", "width"])  # fmt: skip
def _attend(
    Q, K, V, SINK_K, SINK_V, OLD_K, OLD_V, LIST, COUNT, LEAVE, COS, SIN, OLD_COS, OLD_SIN, RANK_COS,
    RANK_SIN, OUT, qb, qh, qt, kb, kh, ks, vb, vh, vs, skb, skh, sks, svb, svh, svs, okb, okh, oks,
    ovb, ovh, ovs, ob, oh, ot, T, S, N, start, first, sinks, recent, members, offered, budget, table,
    width, scale,
    QUERY_HEADS: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, SINKS: tl.constexpr,
    TWO_TURNS: tl.constexpr, CONTESTED: tl.constexpr, BY_RANK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.num_programs(0)
    block = blocks - 1 - tl.program_id(0)  # those with the most keys first
    b, qhead = tl.program_id(1) // QUERY_HEADS, tl.program_id(1) % QUERY_HEADS
    b64 = b.to(tl.int64)
    qhead = qhead.to(tl.int64)  # of a long text a head begins beyond 32 bits
    h = qhead // GROUPS
    Q += b64 * qb + qhead * qh
    K += b64 * kb + h * kh
    V += b64 * vb + h * vh
    m = block * BM + tl.arange(0, BM)
    there = m < T
    t = start + m
    d = tl.arange(0, BLOCK_D)
    dtype = K.dtype.element_ty
    recent_q = load_turned(Q, qt, m, there, COS, SIN, m, HALF, D, BLOCK_D).to(dtype)
    acc = tl.zeros([BM, BLOCK_D], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)

    # The band: masked on its left edge, whole in the middle, masked on the diagonal. Counted as keys are, from `first`.
    lowest, highest = start + block * BM - first, start + block * BM + BM - first
    stop = tl.minimum(S, highest)
    left = tl.maximum(lowest - recent, 0) // BN * BN
    left_stop = tl.minimum(tl.cdiv(tl.maximum(highest - 1 - recent, 0), BN) * BN, stop)
    right = tl.maximum(tl.maximum(lowest + 1, 0) // BN * BN, left_stop)
    for n in range(left, left_stop, BN):
        acc, top, total = _recent_tile(acc, top, total, recent_q, K, V, ks, vs, n + tl.arange(0, BN), t, first, S,
                                       recent, scale, d, True, D, PRECISION)  # fmt: skip
    for n in range(tl.maximum(left, left_stop), tl.minimum(right, stop), BN):
        acc, top, total = _recent_tile(acc, top, total, recent_q, K, V, ks, vs, n + tl.arange(0, BN), t, first, S,
                                       recent, scale, d, False, D, PRECISION)  # fmt: skip
    for n in range(tl.maximum(left, right), stop, BN):
        acc, top, total = _recent_tile(acc, top, total, recent_q, K, V, ks, vs, n + tl.arange(0, BN), t, first, S,
                                       recent, scale, d, True, D, PRECISION)  # fmt: skip

    if SINKS or (CONTESTED and not BY_RANK):
        old_q = recent_q
        if TWO_TURNS:
            old_q = load_turned(Q, qt, m, there, OLD_COS, OLD_SIN, m, HALF, D, BLOCK_D).to(dtype)
    if SINKS:
        SINK_K += b64 * skb + h * skh
        SINK_V += b64 * svb + h * svh
        for n in range(0, sinks, BS):
            j = n + tl.arange(0, BS)
            inside = (j < sinks)[:, None] & (d < D)[None, :]
            k = tl.load(SINK_K + j[:, None] * sks + d[None, :], mask=inside, other=0.0)
            v = tl.load(SINK_V + j[:, None] * svs + d[None, :], mask=inside, other=0.0)
            s = tl.dot(old_q, tl.trans(k), input_precision=PRECISION) * scale
            s = tl.where((j[None, :] <= t[:, None]) & (j < sinks)[None, :], s, float("-inf"))
            acc, top, total = _absorb(acc, top, total, s, v, PRECISION)

    if CONTESTED:
        row = b * (QUERY_HEADS // GROUPS) + h
        OLD_K += b64 * okb + h * okh
        OLD_V += b64 * ovb + h * ovh
        LIST += (row * (blocks + 1) + block).to(tl.int64) * width
        LEAVE += row.to(tl.int64) * N
        count = tl.load(COUNT + row * (blocks + 1) + block)
        older = tl.zeros([BM], tl.int32)
        for n in range(0, count, BC):
            u = n + tl.arange(0, BC)
            listed = u < count
            pick = tl.load(LIST + u, mask=listed, other=0)
            enter = tl.where(pick < members, 0, offered + 1 + pick - members)
            leave = tl.load(LEAVE + pick, mask=listed, other=-1)
            alive = (enter[None, :] <= t[:, None]) & (t[:, None] <= leave[None, :]) & listed[None, :]
            inside = listed[:, None] & (d < D)[None, :]
            k = tl.load(OLD_K + pick[:, None] * oks + d[None, :], mask=inside, other=0.0)
            v = tl.load(OLD_V + pick[:, None] * ovs + d[None, :], mask=inside, other=0.0)
            if BY_RANK:
                rank = older[:, None] + tl.cumsum(alive.to(tl.int32), 1) - 1
                older += tl.sum(alive.to(tl.int32), 1)
                away = tl.where(alive, tl.minimum(t, budget)[:, None] - sinks - rank, 0)
                s = _scores_at_rank(Q, qt, OLD_K, oks, m, pick, there, listed, away, RANK_COS, RANK_SIN, table, d, k,
                                    HALF, D, PRECISION)  # fmt: skip
            else:
                s = tl.dot(old_q, tl.trans(k), input_precision=PRECISION)
            s = tl.where(alive, s * scale, float("-inf"))
            acc, top, total = _absorb(acc, top, total, s, v, PRECISION)

    acc = acc / total[:, None]
    at = OUT + b64 * ob + qhead * oh + m[:, None] * ot + d[None, :]
    tl.store(at, acc.to(OUT.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])


@dataclass(frozen=True)
class Recent:
    """The keys of tokens `first` and following, rotated, (B, H, S, D); of them a query sees the last `reach` and its
    own. turn: tables of the queries' positions."""

    keys_BHSD: torch.Tensor
    values_BHSD: torch.Tensor
    first: int
    reach: int
    turn: Pairs


@dataclass(frozen=True)
class Old:
    """Keys that stay behind: the first tokens', rotated; turn: tables of the queries' positions as these see them."""

    keys_BHSD: torch.Tensor
    values_BHSD: torch.Tensor
    turn: Pairs


@dataclass(frozen=True)
class Contested:
    """Contested keys by age, members and then candidates, (B, H, N, D), and which queries see each.

    leave_RN: the last query. members: how many were there before; room: seats. offered: the step at which the first
    candidate is. ranks: tables of distances, (pairs, budget + 1) each, where keys are unrotated.
    """

    keys_BHND: torch.Tensor
    values_BHND: torch.Tensor
    leave_RN: torch.Tensor
    members: int
    room: int
    offered: int
    budget: int
    ranks: Pairs | None

    def seen_by(self, queries: range, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """List those that each block of so many queries sees, and the one query after all: see `contest.visible`."""
        return visible(self.leave_RN, self.members, self.room, self.offered, queries, block)


def precision_of(dtype: torch.dtype) -> str:
    """How products of a dtype are taken: of float32 in TF32 alone where torch's are."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if float32_products("cuda") == "tf32" else "tf32x3"


def attend(
    q_BHTD: torch.Tensor, start: int, recent: Recent, old: Old, contested: Contested | None, scaling: float,
    tiles: Tiles,
) -> torch.Tensor:  # fmt: skip
    """Answer unrotated queries, (B, query heads, T, D), of tokens `start` and following: (B, T, query heads, D)."""
    B, QH, T, D = q_BHTD.shape
    out = q_BHTD.new_empty(B, T, QH, D)
    none = recent.turn[0]  # a tensor to pass where there is nothing
    sinks = old.keys_BHSD.shape[2]
    held = (contested.keys_BHND, contested.values_BHND) if contested else (recent.keys_BHSD, recent.values_BHSD)
    lists = none, none
    if contested:
        lists = contested.seen_by(range(start, start + T), tiles.queries)
    leave = contested.leave_RN if contested else none
    ranks = contested.ranks if contested else None
    said = (contested.members, contested.offered, contested.budget) if contested else (0, 0, 0)
    keys = (recent.keys_BHSD, recent.values_BHSD, old.keys_BHSD, old.values_BHSD, *held)
    _attend[(triton.cdiv(T, tiles.queries), B * QH)](
        q_BHTD, *keys, *lists, leave, *recent.turn, *old.turn, *(ranks or (none, none)), out,
        *q_BHTD.stride()[:3], *(stride for each in keys for stride in each.stride()[:3]),
        out.stride(0), out.stride(2), out.stride(1),
        T, recent.keys_BHSD.shape[2], held[0].shape[2], start, recent.first, sinks, recent.reach, *said,
        ranks[0].shape[1] if ranks else 0, lists[0].shape[-1], scaling * LOG2_E,
        QUERY_HEADS=QH, GROUPS=QH // keys[0].shape[1], HALF=none.shape[1], D=D,
        BLOCK_D=max(16, triton.next_power_of_2(D)), BM=tiles.queries, BN=tiles.keys, BC=tiles.contested,
        BS=SINKS_AT_ONCE, SINKS=sinks > 0, TWO_TURNS=old.turn is not recent.turn, CONTESTED=contested is not None,
        BY_RANK=ranks is not None, PRECISION=precision_of(q_BHTD.dtype),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out
