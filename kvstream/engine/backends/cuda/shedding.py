"""Who leaves a `ScannedLayer` on a GPU: one way for replay, within the kernel that takes many tokens, and for a token.

Where a step is recorded torch attends for its token, on all of the card at once, and then a small kernel decides.
Both know each slot's rank in age instead of listing slots by age, as ranks change for all at once when one leaves.

Shape legend: B batch, H kv-heads, U sets of kept tokens, S slots, D head size, C and E as in `scanned_layer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import ScannedLayer

AT_ONCE = 64  # keys or values


@triton.jit
def own_keys(OWN, KEY, row, d, seen, D: tl.constexpr, E: tl.constexpr):
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
        own = own_keys(OWNS, KEYS, n[:, None], d[None, :], (n < S)[:, None], D, E)
        tl.store(DECIDES + n, tl.sum(own * whole[None, :], 1), mask=n < S)


@triton.jit
def ranks_of(ORDER, RANK, s, S, BLOCK_S: tl.constexpr):
    """The slots' ranks in age, beyond all others where there is no slot; RANK holds them, too."""
    tl.store(RANK + tl.load(ORDER + s, mask=s < S, other=0), s, mask=s < S)
    tl.debug_barrier()
    return tl.load(RANK + s, mask=s < S, other=2 * BLOCK_S)


@triton.jit
def shed(
    u, rank, token, seen, KEYS, OWNS, SUM, SCORE, DECIDES, S, left, sinks, recent, tie,
    HEADS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    BN: tl.constexpr, COMPARES: tl.constexpr, PER_AGE: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    """Have tokens of a set whose slots are all taken leave: the ranks after it."""
    d, s = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    there = s < S
    decides = tl.zeros([BLOCK_S], tl.float64)
    for k in range(HEADS):
        head = u * HEADS + k
        score = tl.load(SCORE + head * S + s, mask=there, other=0.0)
        if COMPARES:
            _along(OWNS + head * S * E, KEYS + head * S * D, SUM + head * D, DECIDES, S, D, E, BLOCK_D, BN)
            tl.debug_barrier()
            score *= -tl.load(DECIDES + s, mask=there, other=0.0)
            tl.debug_barrier()
        decides += score
    if PER_AGE:
        decides /= tl.maximum(seen - token, 1).to(tl.float64)
    if POOLED > 1:
        # Laid out by age, those that are protected as zeros, of which neighbours are then summed up.
        inside = (rank >= sinks) & (rank < S - recent)
        tl.store(DECIDES + rank, tl.where(inside, decides, 0.0), mask=there)
        tl.debug_barrier()
        decides = tl.zeros([BLOCK_S], tl.float64)
        for near in range(-(POOLED // 2), POOLED // 2 + 1):
            place = rank + near
            decides += tl.load(DECIDES + place, mask=there & (place >= 0) & (place < S), other=0.0)
        decides /= POOLED
        tl.debug_barrier()
    held = S
    while held > left:
        inside = (rank >= sinks) & (rank < held - recent)
        lowest = tl.min(tl.where(inside, decides, float("inf")))
        among = inside & (decides <= lowest + tl.abs(lowest) * tie)
        leaves = tl.maximum(tl.max(tl.where(among, rank, -1)), sinks)  # −1: all are NaN
        if COMPARES:
            slot = tl.sum(tl.where(rank == leaves, s, 0))
            for k in range(HEADS):
                head = u * HEADS + k
                own = own_keys(OWNS, KEYS, head * S + slot, d, d < D, D, E)
                whole = tl.load(SUM + head * D + d, mask=d < D)
                score_out = tl.load(SCORE + head * S + slot)
                tl.store(SUM + head * D + d, whole - own * score_out, mask=d < D)
        moved = tl.where((rank > leaves) & (rank < held), rank - 1, rank)
        rank = tl.where(rank == leaves, held - 1, moved)
        held -= 1
    return rank


@triton.jit(do_not_specialize=["S", "left", "sinks", "recent"])
def _shedding(
    KEYS, OWNS, SUM, SCORE, ORDER, TOKEN, NEWEST, RANK, DECIDES, S, left, sinks, recent, tie,
    HEADS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    BN: tl.constexpr, COMPARES: tl.constexpr, PER_AGE: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    u, s = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_S)
    ORDER += u * S
    rank = ranks_of(ORDER, RANK + u * S, s, S, BLOCK_S)
    token = tl.load(TOKEN + u * S + s, mask=s < S, other=0)
    rank = shed(
        u, rank, token, tl.load(NEWEST) + 1, KEYS, OWNS, SUM, SCORE, DECIDES + u * S, S, left, sinks, recent, tie,
        HEADS, D, E, BLOCK_D, BLOCK_S, BN, COMPARES, PER_AGE, POOLED,
    )  # fmt: skip
    tl.debug_barrier()
    tl.store(ORDER + rank, s, mask=s < S)


def shed_in_kernel(layer: ScannedLayer, token_1: torch.Tensor) -> None:
    """Have tokens leave, as `scan.shed_plainly`; token_1: the newest token's index, on the device."""
    of = layer.keys, layer.own_BHSE, layer.sum_BHC, layer.score_BHS, layer.order_BUS, layer.token_BUS, token_1
    regions, policy = layer.regions, layer.policy
    _shedding_op(*of, layer.left, regions.sinks, regions.recent, layer.tie, policy.per_age, policy.pooled)


@torch.library.custom_op("kvstream::shed", mutates_args=("sum_BHC", "order_BUS"))
def _shedding_op(
    keys_BHSD: torch.Tensor, own_BHSE: torch.Tensor, sum_BHC: torch.Tensor, score_BHS: torch.Tensor,
    order_BUS: torch.Tensor, token_BUS: torch.Tensor, token_1: torch.Tensor, left: int, sinks: int, recent: int,
    tie: float, per_age: bool, pooled: int,
) -> None:  # fmt: skip
    """An operation of torch's own, so that a compiler takes it as it is."""
    rank_BUS, decides_BUS = (torch.empty_like(order_BUS, dtype=of) for of in (torch.int32, torch.float64))
    with torch.cuda.device_of(keys_BHSD):
        _shedding[(order_BUS.shape[:2].numel(),)](
            keys_BHSD, own_BHSE, sum_BHC, score_BHS, order_BUS, token_BUS, token_1, rank_BUS, decides_BUS,
            order_BUS.shape[2], left, sinks, recent, tie, PER_AGE=per_age, POOLED=pooled,
            **built_for(keys_BHSD, own_BHSE, sum_BHC, order_BUS),
        )  # fmt: skip


def built_for(
    keys_BHSD: torch.Tensor, own_BHSE: torch.Tensor, sum_BHC: torch.Tensor, order_BUS: torch.Tensor
) -> dict[str, Any]:
    """What both kernels are compiled for."""
    (_, H, _, D), slots = keys_BHSD.shape, triton.next_power_of_2(order_BUS.shape[2])
    return {
        "HEADS": H // order_BUS.shape[1],
        "D": D,
        "E": own_BHSE.shape[-1],
        "BLOCK_D": max(16, triton.next_power_of_2(D)),
        "BLOCK_S": slots,
        "BN": AT_ONCE,
        "COMPARES": sum_BHC.shape[-1] > 0,
        "num_warps": min(max(slots // 128, 4), 16),
    }
