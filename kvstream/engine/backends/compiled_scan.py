"""Tokens through a `ScannedLayer`, one after another, compiled for CPUs: what `scan` does in Python.

Shape legend: B batch, U sets of kept tokens, K kv-heads of a set, S slots, N tokens held, G query heads per
kv-head, T tokens, D head size, E the same where keys are compared, else 0, W dimensions turned by distance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kvstream.engine.backends.compiled_attention import compiled, copy, scores, scores_of_one, softmax, weighted_sums
from kvstream.engine.backends.pace import PACES

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer

LANES = 32  # dimensions that a loop takes at a time on the widest CPUs; of fewer it takes one by one


def scan_compiled(layer: ScannedLayer, new: Arriving, scaling: float) -> torch.Tensor:
    """Take no Python step per token; sets of kept tokens are spread over torch's threads: (B, H, G, T, D)."""
    held, shared = views_of(layer, new.q_BHGTD.shape[2])
    sets, K = held[0].shape[:2]
    output_BHGTD = torch.empty(new.q_BHGTD.shape, dtype=new.q_BHGTD.dtype)
    come = (new.q_BHGTD, new.k_BHTD, new.v_BHTD, new.own_BHTE, new.score_BHT, output_BHGTD)
    # Contiguous, as each other layout is compiled by itself, and loops over it are slow.
    of_sets = [x.reshape(sets, K, *x.shape[2:]).contiguous().numpy() for x in come] + held
    before = layer.held(layer.seen)
    count = (layer.seen, before, layer.left, layer.regions.sinks, layer.regions.recent)
    policy = layer.policy
    memory = -1.0 if policy.scored_by != "attention" else policy.attention_memory
    how = (memory, policy.queries_heard, policy.per_age, policy.pooled, layer.tie, of_sets[0].dtype.type(scaling))

    def piece(part: slice) -> None:
        _scan(*[x[part] for x in of_sets], *count, *how, *shared)

    queries = new.q_BHGTD.shape[:-1].numel()
    PACES[policy.name].spread(
        piece, sets, queries * layer.keys.shape[3] * min(before + new.k_BHTD.shape[2], layer.full)
    )
    return output_BHGTD


def views_of(layer: ScannedLayer, groups: int) -> tuple[list[Any], list[Any]]:
    """The layer as arrays, those of sets and the rotations that all share; kept while its tensors are these."""
    tensors = (layer.keys, layer.values, layer.own_BHSE, layer.sum_BHE, layer.score_BHS)
    orders = (layer.order_BUS, layer.token_BUS)
    if layer.views is None or any(one is not other for one, other in zip((*tensors, *orders), layer.views[0])):
        sets, S = layer.order_BUS.shape[:2].numel(), layer.order_BUS.shape[2]
        K = layer.keys.shape[:2].numel() // sets
        of_sets = [x.view(sets, K, *x.shape[2:]).numpy() for x in tensors]
        of_sets += [layer.order_BUS.view(sets, S).numpy().view(np.uint64), layer.token_BUS.view(sets, S).numpy()]
        layer.views = (*tensors, *orders), of_sets, _rotations(layer, groups)
    return layer.views[1], layer.views[2]


def _rotations(layer: ScannedLayer, groups: int) -> list[Any]:
    """Cosines and sines by distance, how many dimensions are rotated, and an example of the integers as wide as a key.

    Of each pair of dimensions where several queries share a key, (S, pairs); for one query of both, (S, W), as its
    loops are long then: the others of W turn by nothing.
    """
    dtype = layer.keys.numpy().dtype
    integers = np.empty(0, f"i{dtype.itemsize}")
    if layer.distances is None:
        return [np.empty((0, 0), dtype), np.empty((0, 0), dtype), 0, integers]
    cos_SW, sin_SW = layer.distances.cos.numpy(), layer.distances.sin.numpy()
    size, D = cos_SW.shape[-1], layer.keys.shape[3]
    if groups > 1:
        return [cos_SW[:, : size // 2].copy(), sin_SW[:, size // 2 :].copy(), size, integers]
    wide = ((0, 0), (0, min(-(-size // LANES) * LANES, D) - size))
    return [np.pad(cos_SW, wide, constant_values=1), np.pad(sin_SW, wide), size, integers]


@compiled
def _scan(
    q_UKGTD: Any, k_UKTD: Any, v_UKTD: Any, own_UKTE: Any, first_UKT: Any, out_UKGTD: Any, keys_UKSD: Any,
    values_UKSD: Any, own_UKSE: Any, sum_UKE: Any, score_UKS: Any, order_US: Any, token_US: Any, seen: int,
    held_before: int, left: int, sinks: int, recent: int, memory: float, heard: int, per_age: bool, pooled: int,
    tie: float, scaling: float, cos_SW: Any, sin_SW: Any, rotated: int, integers: Any,
) -> None:  # fmt: skip
    """memory: as `attention_memory`, below 0 where attention does not score; heard: as `queries_heard`."""
    sets, heads, groups, tokens, D = q_UKGTD.shape
    full = order_US.shape[1]
    compares = own_UKTE.shape[3] > 0
    rows = groups if groups == 1 else (groups + 3) // 4 * 4  # `scores` takes four at a time
    q_GD, weight_GN = np.zeros((rows, D), q_UKGTD.dtype), np.empty((rows, full), q_UKGTD.dtype)
    bits_GN = weight_GN.view(integers.dtype)
    turned_D, out_GD = np.zeros(D, q_UKGTD.dtype), np.empty((groups, D), q_UKGTD.dtype)
    half = rotated // 2
    heard_N, decides_N = np.empty(full), np.empty(full)
    every_S, rank_S, away_N = (np.empty(full, np.uint64), np.empty(full, np.uint64), np.empty(full, np.uint64))
    for n in range(full):
        every_S[n] = n
    for u in range(sets):
        order_S, token_S = order_US[u], token_US[u]
        held = held_before
        for n in range(full):
            rank_S[order_S[n]] = n
        for t in range(tokens):
            held += 1
            new = order_S[held - 1]
            token_S[new] = seen + t
            # Where no slot in between is free they are read in the order of memory, which is faster than by age.
            packed = True
            for n in range(held, full):
                packed = packed and order_S[n] >= np.uint64(held)
            slot_N = every_S if packed else order_S
            for n in range(held):
                away_N[n] = np.uint64(held - 1) - (rank_S[n] if packed else np.uint64(n))
            counts = memory >= 0 and (heard == 0 or full - held < heard)
            stays = 0.0 if heard > 0 and full - held == heard - 1 else memory
            for n in range(held):
                decides_N[n] = 0
            for k in range(heads):
                copy(k_UKTD[u, k, t], keys_UKSD[u, k, new])
                copy(v_UKTD[u, k, t], values_UKSD[u, k, new])
                score_UKS[u, k, new] = first_UKT[u, k, t]
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
                    copy(own_UKTE[u, k, t], own_UKSE[u, k, new])
                    _add(sum_UKE[u, k], own_UKTE[u, k, t], first_UKT[u, k, t])
                if held == full:
                    _decide(score_UKS[u, k], own_UKSE[u, k], sum_UKE[u, k], order_S, held, decides_N)
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
                        _add(sum_UKE[u, k], own_UKSE[u, k, slot], -score_UKS[u, k, slot])
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
def _add(sum_E: Any, own_E: Any, times: float) -> None:
    for e in range(np.uint64(own_E.shape[0])):
        sum_E[e] += times * own_E[e]


@compiled
def _decide(score_S: Any, own_SE: Any, sum_E: Any, order_S: Any, held: int, decides_N: Any) -> None:
    """Add one head's scores, or how little its keys point where their sum does, to what decides."""
    size = np.uint64(own_SE.shape[1])
    for n in range(held):
        slot = order_S[n]
        decides = score_S[slot]
        if size > 0:
            along = 0.0
            for e in range(size):
                along += own_SE[slot, e] * sum_E[e]
            decides *= -along
        decides_N[n] += decides


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
