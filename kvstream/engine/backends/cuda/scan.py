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
from kvstream.engine.backends.cuda.shedding import built_for, own_keys, ranks_of, shed
from kvstream.engine.backends.scan import measured

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer

MOST_SLOTS = 1 << 13  # a program holds ranks and scores of all of them at once


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


@triton.jit(do_not_specialize=["T", "S", "seen", "held", "left", "sinks", "recent", "heard"])
def _scan(
    Q, K, V, OWN, FIRST, OUT, KEYS, VALUES, OWNS, SUM, SCORE, ORDER, TOKEN, RANK, WEIGHT, DECIDES, COS, SIN,
    T, S, seen, held, left, sinks, recent, heard, memory, tie, scale,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BN: tl.constexpr, BY_RANK: tl.constexpr, BY_ATTENTION: tl.constexpr,
    COMPARES: tl.constexpr, PER_AGE: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    u = tl.program_id(0).to(tl.int64)
    ORDER += u * S
    TOKEN += u * S
    RANK += u * S
    WEIGHT += u * S
    DECIDES += u * S
    d, s = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    wide, there = d < D, s < S
    rank = ranks_of(ORDER, RANK, s, S, BLOCK_S)
    token = tl.load(TOKEN + s, mask=there, other=0)
    for t in range(T):
        held += 1
        new = tl.sum(tl.where(rank == held - 1, s, 0))
        token = tl.where(s == new, seen + t, token)
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
                own = own_keys(OWN, K, head * T + t, d, wide, D, E)
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
        if held == S:
            tl.debug_barrier()
            rank = shed(
                u, rank, token, seen + t + 1, KEYS, OWNS, SUM, SCORE, DECIDES, S, left, sinks, recent, tie,
                HEADS, D, E, BLOCK_D, BLOCK_S, BN, COMPARES, PER_AGE, POOLED,
            )  # fmt: skip
            held = left
            tl.store(RANK + s, rank, mask=there)
        tl.debug_barrier()
    tl.store(TOKEN + s, token, mask=there)
    tl.store(ORDER + rank, s, mask=there)


def scan_in_kernel(layer: ScannedLayer, new: Arriving, scaling: float) -> torch.Tensor:
    """Take tokens through a layer that has at most `MOST_SLOTS` slots: (B, H, G, T, D)."""
    new = measured(layer, new)
    policy, regions, (B, H, G, T, _) = layer.policy, layer.regions, new.q_BHGTD.shape
    output_BHGTD = torch.empty_like(new.q_BHGTD, memory_format=torch.contiguous_format)
    first_BHT = layer.score_BHS.new_zeros(B, H, T) if new.score_BHT is None else new.score_BHT
    own_BHTE = layer.own_BHSE if new.own_BHTE is None else new.own_BHTE  # not looked at where no keys are compared
    come = [x.contiguous() for x in (new.q_BHGTD, new.k_BHTD, new.v_BHTD, own_BHTE, first_BHT)]
    rank_BUS, weight_BUS, decides_BUS = (
        torch.empty_like(layer.order_BUS, dtype=of) for of in (torch.int32, torch.float32, torch.float64)
    )
    cos, sin, half = weight_BUS, weight_BUS, 1  # not looked at where keys stand where they came
    if layer.positions.by_rank:
        cos, sin = layer.tables.pairs(0, layer.full, None, layer.device)
        half = cos.shape[-1]
    _scan[(layer.order_BUS.shape[:2].numel(),)](
        *come, output_BHGTD, layer.keys, layer.values, layer.own_BHSE, layer.sum_BHC, layer.score_BHS, layer.order_BUS,
        layer.token_BUS, rank_BUS, weight_BUS, decides_BUS, cos, -sin, T, layer.full, layer.seen,
        layer.held(layer.seen), layer.left, regions.sinks, regions.recent, policy.queries_heard,
        policy.attention_memory or 0.0, layer.tie, scaling, GROUPS=G, HALF=half, BY_RANK=layer.positions.by_rank,
        BY_ATTENTION=policy.scored_by == "attention", PER_AGE=policy.per_age, POOLED=policy.pooled,
        **built_for(layer.keys, layer.own_BHSE, layer.sum_BHC, layer.order_BUS),
    )  # fmt: skip
    return output_BHGTD
