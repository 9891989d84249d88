"""Tokens through a `ScannedLayer`, one after another, compiled for CPUs: what `scan` does in Python.

Shape legend: B batch, U sets of kept tokens, K kv-heads of a set, S slots, N tokens held, G query heads per
kv-head, T tokens, D head size, C and E as in `scanned_layer`, W and X as in `scan_views`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kvstream.engine.backends.compiled_attention import compiled, copy, scores, scores_of_one, softmax, weighted_sums
from kvstream.engine.backends.compiled_norms import turn_and_measure
from kvstream.engine.backends.scan import measured
from kvstream.engine.backends.scan_views import by_sets, store, views_of, widened

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer


def scan_compiled(layer: ScannedLayer, new: Arriving, scaling: float) -> torch.Tensor:
    """Take no Python step per token; sets of kept tokens are spread over torch's threads: (B, H, G, T, D)."""
    views = views_of(layer, new.q_BHGTD.shape[2])
    sets, K = views.slots[0].shape[:2]
    none_UKT, none_UKTE, none_TE = views.nothing
    half = layer.dtype != views.wide
    if half:  # what it is turned to is rounded, as it is stored
        new = measured(layer, new)
    q_UKGTD, k_UKTD, v_UKTD = (by_sets(widened(x), sets, K) for x in (new.q_BHGTD, new.k_BHTD, new.v_BHTD))
    first_UKT = none_UKT if new.score_BHT is None else by_sets(new.score_BHT, sets, K)
    own_UKTE = none_UKTE if new.own_BHTE is None else by_sets(widened(new.own_BHTE), sets, K)
    apart_UKTD, turn = none_UKTE, (none_TE, none_TE)
    if new.apart_BHTD is not None and new.own_BHTE is None:
        apart_UKTD = by_sets(new.apart_BHTD, sets, K)
        turn = (new.turn.cos.numpy(), new.turn.sin.numpy()) if new.turn else turn
    output = torch.empty(new.q_BHGTD.shape, dtype=views.wide)  # by torch, which counts what it allocates
    output_UKGTD = output.numpy().reshape(q_UKGTD.shape)
    slots_UKSX = [by_sets(widened(x), sets, K) for x in views.of[:3]] if half else views.slots
    of_sets = (q_UKGTD, k_UKTD, v_UKTD, apart_UKTD, own_UKTE, first_UKT, output_UKGTD, *slots_UKSX, *views.beside)
    before = layer.held(layer.seen)
    how = (layer.seen, before, q_UKGTD.dtype.type(scaling), *turn, *views.how)

    def piece(part: slice) -> None:
        _scan(*[x[part] for x in of_sets], *how)

    views.pace.spread(piece, sets, q_UKGTD.size * min(before + k_UKTD.shape[2], layer.full))
    if not half:
        return output
    store(layer, new, views)
    return output.to(layer.dtype)


@compiled
def _scan(
    q_UKGTD: Any, k_UKTD: Any, v_UKTD: Any, apart_UKTD: Any, own_UKTE: Any, first_UKT: Any, out_UKGTD: Any,
    keys_UKSD: Any, values_UKSD: Any, own_UKSE: Any, sum_UKC: Any, score_UKS: Any, order_US: Any, token_US: Any,
    seen: int, held_before: int, scaling: float, cos_TE: Any, sin_TE: Any, left: int, sinks: int, recent: int,
    memory: float, heard: int, per_age: bool, pooled: int, tie: float, cos_SW: Any, sin_SW: Any, rotated: int,
    integers: Any,
) -> None:  # fmt: skip
    """memory: as `attention_memory`, below 0 where attention does not score; heard: as `queries_heard`.

    Keys that are compared come measured, in own_UKTE and first_UKT, or are turned and measured here.
    """
    sets, heads, groups, tokens, D = q_UKGTD.shape
    full = order_US.shape[1]
    compares, scored, measures = sum_UKC.shape[2] > 0, first_UKT.shape[2] > 0, apart_UKTD.shape[2] > 0
    rows = groups if groups == 1 else (groups + 3) // 4 * 4  # `scores` takes four at a time
    q_GD, weight_GN = np.zeros((rows, D), q_UKGTD.dtype), np.empty((rows, full), q_UKGTD.dtype)
    bits_GN = weight_GN.view(integers.dtype)
    turned_D, out_GD = np.zeros(D, q_UKGTD.dtype), np.empty((groups, D), q_UKGTD.dtype)
    half = rotated // 2
    heard_N, decides_N = np.empty(full), np.empty(full)
    slot_N, rank_S, away_N = (np.empty(full, np.uint64), np.empty(full, np.uint64), np.empty(full, np.uint64))
    place_N = np.empty(full, np.uint64)
    for u in range(sets):
        order_S, token_S = order_US[u], token_US[u]
        held = held_before
        for n in range(full):
            rank_S[order_S[n]] = n
        for t in range(tokens):
            held += 1
            new = order_S[held - 1]
            token_S[new] = seen + t
            # Slots are read in the order of memory, which is faster than by age, those that are free left out.
            packed = True
            for n in range(held, full):
                packed = packed and order_S[n] >= np.uint64(held)
            if packed:
                for slot in range(held):
                    slot_N[slot], away_N[slot] = slot, np.uint64(held - 1) - rank_S[slot]
            else:
                at = 0
                for slot in range(full):
                    slot_N[at], away_N[at] = slot, np.uint64(held - 1) - rank_S[slot]
                    at += rank_S[slot] < np.uint64(held)
            counts = memory >= 0 and (heard == 0 or full - held < heard)
            stays = 0.0 if heard > 0 and full - held == heard - 1 else memory
            for n in range(held):
                decides_N[n] = 0
            for k in range(heads):
                copy(k_UKTD[u, k, t], keys_UKSD[u, k, new])
                copy(v_UKTD[u, k, t], values_UKSD[u, k, new])
                score_UKS[u, k, new] = first_UKT[u, k, t] if scored else 0.0
                for g in range(groups):
                    copy(q_UKGTD[u, k, g, t], q_GD[g])
                if groups > 1:
                    scores(q_GD, keys_UKSD[u, k], slot_N, away_N, held, scaling, cos_SW, sin_SW, weight_GN)
                else:
                    for d in range(half):
                        turned_D[d], turned_D[half + d] = q_GD[0, half + d], q_GD[0, d]
                    scores_of_one(
                        q_GD[0], turned_D, keys_UKSD[u, k], slot_N, away_N, held, scaling, cos_SW, sin_SW, weight_GN[0]
                    )
                for g in range(groups):
                    softmax(weight_GN[g], bits_GN[g], held)
                weighted_sums(values_UKSD[u, k], slot_N, held, weight_GN, out_GD)
                for g in range(groups):
                    copy(out_GD[g], out_UKGTD[u, k, g, t])
                if counts:
                    _update(score_UKS[u, k], slot_N, held, stays, groups, weight_GN, heard_N)
                if compares:
                    if measures:
                        own_E = own_UKSE[u, k, new]
                        score_UKS[u, k, new] = turn_and_measure(apart_UKTD[u, k, t], cos_TE, sin_TE, t, own_E)
                    else:
                        copy(own_UKTE[u, k, t], own_UKSE[u, k, new])
                    _add(sum_UKC[u, k], own_UKSE[u, k, new], k_UKTD[u, k, t], score_UKS[u, k, new])
                if held == full:
                    of_head = score_UKS[u, k], own_UKSE[u, k], keys_UKSD[u, k], sum_UKC[u, k]
                    _decide(*of_head, slot_N, away_N, held, sinks, held - recent, decides_N, place_N)
            if held < full:
                continue
            if per_age:
                for n in range(held):
                    decides_N[n] /= max(1, seen + t + 1 - token_S[order_S[n]])
            if pooled > 1:
                _pool(decides_N, sinks, held - recent, pooled, heard_N)
            while held > left:
                leaves = _lowest(decides_N, sinks, held - recent, tie)
                slot = order_S[leaves]
                if compares:
                    for k in range(heads):
                        _add(sum_UKC[u, k], own_UKSE[u, k, slot], keys_UKSD[u, k, slot], -score_UKS[u, k, slot])
                for n in range(leaves, held - 1):
                    order_S[n] = order_S[n + 1]
                    rank_S[order_S[n]] = n
                    decides_N[n] = decides_N[n + 1]
                held -= 1
                order_S[held], rank_S[slot] = slot, held


@compiled
def _update(score_S: Any, slot_N: Any, held: int, stays: float, groups: int, weight_GN: Any, heard_N: Any) -> None:
    """Add a query's attention, the mean of its heads', to what stays of the scores."""
    for n in range(held):
        heard_N[n] = weight_GN[0, n]
    for g in range(1, groups):
        for n in range(held):
            heard_N[n] += weight_GN[g, n]
    for n in range(held):
        score_S[slot_N[n]] = stays * score_S[slot_N[n]] + heard_N[n] / groups


@compiled
def _add(sum_C: Any, own_E: Any, key_D: Any, times: float) -> None:
    """Add a key at its index, of whose dimensions the first may be kept apart."""
    apart = np.uint64(own_E.shape[0])
    for e in range(apart):
        sum_C[e] += times * own_E[e]
    for d in range(apart, np.uint64(key_D.shape[0])):
        sum_C[d] += times * key_D[d]


@compiled
def _decide(
    score_S: Any, own_SE: Any, keys_SD: Any, sum_C: Any, slot_N: Any, away_N: Any, held: int, first: int, end: int,
    decides_N: Any, place_N: Any,
) -> None:  # fmt: skip
    """Add one head's scores, or how little its keys point where their sum does, to what decides, by age.

    Of first … end − 1 alone, as the others are protected; place_N: for the places of those among the slots.
    """
    apart, size = np.uint64(own_SE.shape[1]), np.uint64(sum_C.shape[0])
    newest, contested = np.uint64(held - 1), 0
    for n in range(held):  # apart from what follows, as nobody can foresee which slots are protected
        rank = newest - away_N[n]
        place_N[contested] = n
        contested += (rank >= np.uint64(first)) & (rank < np.uint64(end))
    for n in place_N[:contested]:
        slot = slot_N[n]
        decides = score_S[slot]
        if size > 0:
            along = 0.0
            for e in range(apart):
                along += own_SE[slot, e] * sum_C[e]
            for d in range(apart, size):
                along += keys_SD[slot, d] * sum_C[d]
            decides *= -along
        decides_N[newest - away_N[n]] += decides


@compiled
def _pool(decides_N: Any, first: int, end: int, pooled: int, before_N: Any) -> None:
    """Average each of first … end − 1 with its neighbours among these; past the ends are zeros."""
    copy(decides_N[first:end], before_N[first:end])
    for n in range(first, end):
        total = 0.0
        for near in range(max(first, n - pooled // 2), min(end, n + pooled // 2 + 1)):
            total += before_N[near]
        decides_N[n] = total / pooled


@compiled
def _lowest(decides_N: Any, first: int, end: int, tie: float) -> int:
    """The lowest of first … end − 1, of equals the last."""
    lowest = decides_N[first]
    for n in range(first, end):
        lowest = min(lowest, decides_N[n])
    limit = lowest + abs(lowest) * tie
    last = end - 1
    while last > first and not decides_N[last] <= limit:
        last -= 1
    return last
