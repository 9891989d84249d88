"""Tokens through a `ScannedLayer` on a GPU, one after another in one kernel: what `backends.scan` does in Python.

One program takes all tokens of a call for one set of kept tokens: a kv-head, or all of a layer's where they share a
set. Instead of listing slots by age it knows each slot's rank in age, which changes for all at once when one leaves.
What one thread wrote and another reads passes through memory, with a barrier between.

Shape legend: B batch, U sets, K kv-heads of a set, S slots, G query heads per kv-head, T tokens, D head size, E as
in `scanned_layer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kvstream.engine.backends.cuda.rotation import load_turned

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer

MOST_SLOTS = 1 << 13  # a program holds ranks and scores of all of them at once
AT_ONCE = 64  # keys or values


@triton.jit
def _scores(q, KEYS, RANK, WEIGHT, COS, SIN, S, held, scale, BY_RANK: tl.constexpr, HALF: tl.constexpr,
            D: tl.constexpr, BLOCK_D: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    for first in range(0, S, BN):
        n = first + tl.arange(0, BN)
        rank = tl.load(RANK + n, mask=n < S, other=S)
        seen = rank < held
        if BY_RANK:
            away = tl.where(seen, held - 1 - rank, 0)  # keys are turned back by it: sines come negated
            keys = load_turned(KEYS, D, n, seen, COS, SIN, away, HALF, D, BLOCK_D)
        else:
            keys = tl.load(KEYS + n[:, None] * D + d[None, :], mask=seen[:, None] & (d < D)[None, :], other=0.0)
        score = tl.sum(keys.to(tl.float32) * q[None, :], 1) * scale
        tl.store(WEIGHT + n, tl.where(seen, score, float("-inf")), mask=n < S)


@triton.jit
def _sums(VALUES, WEIGHT, S, D: tl.constexpr, BLOCK_D: tl.constexpr, BN: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, S, BN):
        n = first + tl.arange(0, BN)
        weight = tl.load(WEIGHT + n, mask=n < S, other=0.0)
        held = (weight > 0)[:, None] & (d < D)[None, :]  # what a free slot holds means nothing
        values = tl.load(VALUES + n[:, None] * D + d[None, :], mask=held, other=0.0)
        total += tl.sum(values.to(tl.float32) * weight[:, None], 0)
    return total


@triton.jit
def _own(OWN, KEY, row, d, seen, D: tl.constexpr, E: tl.constexpr):
    """Keys at their index, float64: the first E dimensions are kept apart."""
    own = tl.load(KEY + row * D + d, mask=seen & (d >= E) & (d < D), other=0.0).to(tl.float64)
    if E > 0:
        own += tl.load(OWN + row * E + d, mask=seen & (d < E), other=0.0).to(tl.float64)
    return own


@triton.jit
def _along(OWNS, KEYS, SUM, DECIDES, S, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BN: tl.constexpr):
    """How far the keys point along their sum."""
    d = tl.arange(0, BLOCK_D)
    whole = tl.load(SUM + d, mask=d < D, other=0.0)
    for first in range(0, S, BN):
        n = first + tl.arange(0, BN)
        own = _own(OWNS, KEYS, n[:, None], d[None, :], (n < S)[:, None], D, E)
        tl.store(DECIDES + n, tl.sum(own * whole[None, :], 1), mask=n < S)


@triton.jit(do_not_specialize=["T", "S", "seen", "held", "left", "sinks", "recent", "heard"])
def _scan(
    Q, K, V, OWN, FIRST, OUT, KEYS, VALUES, OWNS, SUM, SCORE, RANK, TOKEN, WEIGHT, DECIDES, COS, SIN,
    T, S, seen, held, left, sinks, recent, heard, memory, tie, scale,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BN: tl.constexpr, BY_RANK: tl.constexpr, BY_ATTENTION: tl.constexpr,
    COMPARES: tl.constexpr, PER_AGE: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    u = tl.program_id(0).to(tl.int64)
    RANK += u * S
    TOKEN += u * S
    WEIGHT += u * S
    DECIDES += u * S
    d, s = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    wide, there = d < D, s < S
    rank = tl.load(RANK + s, mask=there, other=2 * BLOCK_S)
    token = tl.load(TOKEN + s, mask=there, other=0)
    for t in range(T):
        held += 1
        new = tl.sum(tl.where(rank == held - 1, s, 0))
        token = tl.where(s == new, seen + t, token)
        decides = tl.zeros([BLOCK_S], tl.float64)
        for k in range(HEADS):
            head = u * HEADS + k
            at, to = (head * T + t) * D + d, (head * S + new) * D + d
            tl.store(KEYS + to, tl.load(K + at, mask=wide), mask=wide)
            tl.store(VALUES + to, tl.load(V + at, mask=wide), mask=wide)
            first = tl.load(FIRST + head * T + t)
            if COMPARES:
                if E > 0:
                    kept = tl.load(OWN + (head * T + t) * E + d, mask=d < E)
                    tl.store(OWNS + (head * S + new) * E + d, kept, mask=d < E)
                own = _own(OWN, K, head * T + t, d, wide, D, E)
                whole = tl.load(SUM + head * D + d, mask=wide)
                tl.store(SUM + head * D + d, whole + own * first, mask=wide)
            tl.debug_barrier()
            got = tl.zeros([BLOCK_S], tl.float64)
            for g in range(GROUPS):
                row = ((head * GROUPS + g) * T + t) * D + d
                q = tl.load(Q + row, mask=wide, other=0.0).to(tl.float32)
                _scores(q, KEYS + head * S * D, RANK, WEIGHT, COS, SIN, S, held, scale, BY_RANK, HALF, D, BLOCK_D, BN)
                tl.debug_barrier()
                score = tl.load(WEIGHT + s, mask=there, other=float("-inf"))
                weight = tl.exp(score - tl.max(score))
                weight = weight / tl.sum(weight)
                tl.debug_barrier()
                tl.store(WEIGHT + s, weight, mask=there)
                tl.debug_barrier()
                answer = _sums(VALUES + head * S * D, WEIGHT, S, D, BLOCK_D, BN)
                tl.store(OUT + row, answer.to(OUT.dtype.element_ty), mask=wide)
                got += weight.to(tl.float64)
                tl.debug_barrier()
            score = tl.load(SCORE + head * S + s, mask=there, other=0.0)
            score = tl.where(s == new, first, score)
            tl.debug_barrier()  # several threads may hold the same slot: all have read before one writes
            if BY_ATTENTION:  # noqa: SIM102 - known when compiled, unlike what follows
                if (heard == 0) | (S - held < heard):
                    stays = tl.where((heard > 0) & (S - held == heard - 1), 0.0, memory)
                    score = tl.where(rank < held, stays * score + got / GROUPS, score)
            tl.store(SCORE + head * S + s, score, mask=there)
            if COMPARES:
                owns, keys = OWNS + head * S * E, KEYS + head * S * D
                _along(owns, keys, SUM + head * D, DECIDES, S, D, E, BLOCK_D, BN)
                tl.debug_barrier()
                score *= -tl.load(DECIDES + s, mask=there, other=0.0)
            decides += score
        if held == S:
            if PER_AGE:
                decides /= tl.maximum(seen + t + 1 - token, 1).to(tl.float64)
            if POOLED > 1:
                # Laid out by age, those that are protected or free as zeros, of which neighbours are then summed up.
                inside = (rank >= sinks) & (rank < held - recent)
                tl.store(DECIDES + rank, tl.where(inside, decides, 0.0), mask=there)
                tl.debug_barrier()
                decides = tl.zeros([BLOCK_S], tl.float64)
                for near in range(-(POOLED // 2), POOLED // 2 + 1):
                    place = rank + near
                    decides += tl.load(DECIDES + place, mask=there & (place >= 0) & (place < S), other=0.0)
                decides /= POOLED
                tl.debug_barrier()
            while held > left:
                inside = (rank >= sinks) & (rank < held - recent)
                lowest = tl.min(tl.where(inside, decides, float("inf")))
                among = inside & (decides <= lowest + tl.abs(lowest) * tie)
                leaves = tl.maximum(tl.max(tl.where(among, rank, -1)), sinks)  # −1: all are NaN
                if COMPARES:
                    slot = tl.sum(tl.where(rank == leaves, s, 0))
                    for k in range(HEADS):
                        head = u * HEADS + k
                        own = _own(OWNS, KEYS, head * S + slot, d, wide, D, E)
                        whole = tl.load(SUM + head * D + d, mask=wide)
                        score_out = tl.load(SCORE + head * S + slot)
                        tl.store(SUM + head * D + d, whole - own * score_out, mask=wide)
                moved = tl.where((rank > leaves) & (rank < held), rank - 1, rank)
                rank = tl.where(rank == leaves, held - 1, moved)
                held -= 1
            tl.store(RANK + s, rank, mask=there)
        tl.debug_barrier()
    tl.store(TOKEN + s, token, mask=there)


def scan_in_kernel(layer: ScannedLayer, new: Arriving, scaling: float) -> torch.Tensor:
    """Take tokens through a layer that has at most `MOST_SLOTS` slots: (B, H, G, T, D)."""
    policy, regions, (B, H, G, T, D) = layer.policy, layer.regions, new.q_BHGTD.shape
    sets = layer.order_BUS.shape[1]
    output_BHGTD = torch.empty_like(new.q_BHGTD, memory_format=torch.contiguous_format)
    first_BHT = layer.score_BHS.new_zeros(B, H, T) if new.score_BHT is None else new.score_BHT
    own_BHTE = layer.own_BHSE if new.own_BHTE is None else new.own_BHTE  # not looked at where no keys are compared
    come = [x.contiguous() for x in (new.q_BHGTD, new.k_BHTD, new.v_BHTD, own_BHTE, first_BHT)]
    place_BUS = torch.arange(layer.full, device=layer.device).expand_as(layer.order_BUS)
    rank_BUS = torch.empty_like(layer.order_BUS).scatter_(2, layer.order_BUS, place_BUS).int()
    weight_BUS = rank_BUS.new_empty(rank_BUS.shape, dtype=torch.float32)
    decides_BUS = rank_BUS.new_empty(rank_BUS.shape, dtype=torch.float64)
    cos, sin, half = weight_BUS, weight_BUS, 1  # not looked at where keys stand where they came
    if layer.positions.by_rank:
        cos, sin = layer.tables.pairs(0, layer.full, None, layer.device)
        half = cos.shape[-1]
    slots = triton.next_power_of_2(layer.full)
    _scan[(B * sets,)](
        *come, output_BHGTD, layer.keys, layer.values, layer.own_BHSE, layer.sum_BHC, layer.score_BHS, rank_BUS,
        layer.token_BUS, weight_BUS, decides_BUS, cos, -sin, T, layer.full, layer.seen, layer.held(layer.seen),
        layer.left, regions.sinks, regions.recent, policy.queries_heard, policy.attention_memory or 0.0, layer.tie,
        scaling, HEADS=H // sets, GROUPS=G, HALF=half, D=D, E=layer.own_BHSE.shape[-1],
        BLOCK_D=max(16, triton.next_power_of_2(D)), BLOCK_S=slots, BN=AT_ONCE,
        BY_RANK=layer.positions.by_rank, BY_ATTENTION=policy.scored_by == "attention",
        COMPARES=layer.sum_BHC.shape[-1] > 0, PER_AGE=policy.per_age, POOLED=policy.pooled,
        num_warps=min(max(slots // 128, 4), 16),
    )  # fmt: skip
    layer.order_BUS.copy_(rank_BUS.argsort(-1))
    return output_BHGTD
