"""Tokens through a `ScannedLayer`, one after another, compiled for CPUs: what `scan` does in Python.

Shape legend: B batch, U sets of kept tokens, K kv-heads of a set, S slots, N tokens held, by age, G query heads per
kv-head, T tokens, D head size, E the same where keys are compared, else 0, W dimensions turned by distance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from kvstream.engine.backends.pace import PACE

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer

LANES = 32  # dimensions that a loop takes at a time on the widest CPUs; of fewer it takes one by one
compiled: Any = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


def scan_compiled(layer: ScannedLayer, new: Arriving, scaling: float) -> torch.Tensor:
    """Take no Python step per token; sets of kept tokens are spread over torch's threads: (B, H, G, T, D)."""
    held, shared = views_of(layer)
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
    PACE.spread(piece, sets, queries * layer.keys.shape[3] * min(before + new.k_BHTD.shape[2], layer.full))
    return output_BHGTD


def views_of(layer: ScannedLayer) -> tuple[list[Any], list[Any]]:
    """The layer as arrays, those of sets and the rotations that all share; kept while its tensors are these."""
    tensors = (layer.keys, layer.values, layer.own_BHSE, layer.sum_BHE, layer.score_BHS)
    orders = (layer.order_BUS, layer.token_BUS)
    if layer.views is None or any(one is not other for one, other in zip((*tensors, *orders), layer.views[0])):
        sets, S = layer.order_BUS.shape[:2].numel(), layer.order_BUS.shape[2]
        K = layer.keys.shape[:2].numel() // sets
        of_sets = [x.view(sets, K, *x.shape[2:]).numpy() for x in tensors]
        of_sets += [layer.order_BUS.view(sets, S).numpy().view(np.uint64), layer.token_BUS.view(sets, S).numpy()]
        layer.views = (*tensors, *orders), of_sets, _rotations(layer)
    return layer.views[1], layer.views[2]


def _rotations(layer: ScannedLayer) -> list[Any]:
    """Cosines and sines by distance, (S, W), and how many dimensions are rotated; the others of W turn by nothing."""
    dtype = layer.keys.numpy().dtype
    if layer.distances is None:
        return [np.empty((0, 0), dtype), np.empty((0, 0), dtype), 0]
    size, D = layer.distances.cos.shape[-1], layer.keys.shape[3]
    wide = min(-(-size // LANES) * LANES, D)
    cos_SW, sin_SW = np.ones((layer.full, wide), dtype), np.zeros((layer.full, wide), dtype)
    cos_SW[:, :size], sin_SW[:, :size] = layer.distances.cos.numpy(), layer.distances.sin.numpy()
    return [cos_SW, sin_SW, size]


@compiled
def _scan(
    q_UKGTD: Any, k_UKTD: Any, v_UKTD: Any, own_UKTE: Any, first_UKT: Any, out_UKGTD: Any, keys_UKSD: Any,
    values_UKSD: Any, own_UKSE: Any, sum_UKE: Any, score_UKS: Any, order_US: Any, token_US: Any, seen: int,
    held_before: int, left: int, sinks: int, recent: int, memory: float, heard: int, per_age: bool, pooled: int,
    tie: float, scaling: float, cos_SW: Any, sin_SW: Any, rotated: int,
) -> None:  # fmt: skip
    """memory: as `attention_memory`, below 0 where attention does not score; heard: as `queries_heard`."""
    sets, heads, groups, tokens, _ = q_UKGTD.shape
    full = order_US.shape[1]
    compares = own_UKTE.shape[3] > 0
    weight_N, turned_W = np.empty(full, q_UKGTD.dtype), np.zeros(cos_SW.shape[1], q_UKGTD.dtype)
    half = rotated // 2
    heard_N, decides_N = np.empty(full), np.empty(full)
    for u in range(sets):
        order_S, token_S = order_US[u], token_US[u]
        held = held_before
        for t in range(tokens):
            held += 1
            new = order_S[held - 1]
            token_S[new] = seen + t
            counts = memory >= 0 and (heard == 0 or full - held < heard)
            stays = 0.0 if heard > 0 and full - held == heard - 1 else memory
            decides_N[:held] = 0
            for k in range(heads):
                keys_UKSD[u, k, new] = k_UKTD[u, k, t]
                values_UKSD[u, k, new] = v_UKTD[u, k, t]
                score_UKS[u, k, new] = first_UKT[u, k, t]
                heard_N[:held] = 0
                for g in range(groups):
                    q_D = q_UKGTD[u, k, g, t]
                    turned_W[:half], turned_W[half:rotated] = q_D[half:rotated], q_D[:half]
                    top = _scores(q_D, turned_W, keys_UKSD[u, k], order_S, held, scaling, cos_SW, sin_SW, weight_N)
                    _weigh(values_UKSD[u, k], order_S, held, top, weight_N, out_UKGTD[u, k, g, t])
                    if counts:
                        for n in range(held):
                            heard_N[n] += weight_N[n]
                if counts:
                    _update(score_UKS[u, k], order_S, held, stays, groups, heard_N)
                if compares:
                    own_UKSE[u, k, new] = own_UKTE[u, k, t]
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
                    decides_N[n] = decides_N[n + 1]
                held -= 1
                order_S[held] = slot


@compiled
def _scores(
    q_D: Any, turned_W: Any, keys_SD: Any, order_S: Any, held: int, scaling: float, cos_SW: Any, sin_SW: Any,
    score_N: Any,
) -> Any:  # fmt: skip
    """Write a query's scores of the tokens held, by age; returns the highest. With ranks as positions: by distance.

    What is turned is the query; turned_W: its halves swapped, as a rotation adds them.
    """
    wide, size = np.uint64(cos_SW.shape[1]), np.uint64(keys_SD.shape[1])
    for n in range(held):
        slot, away, total = order_S[n], np.uint64(held - 1 - n), scaling - scaling
        for d in range(wide):
            total += (q_D[d] * cos_SW[away, d] + turned_W[d] * sin_SW[away, d]) * keys_SD[slot, d]
        for d in range(wide, size):
            total += q_D[d] * keys_SD[slot, d]
        score_N[n] = total * scaling
    top = score_N[0]
    for n in range(held):
        top = max(top, score_N[n])
    return top


@compiled
def _weigh(values_SD: Any, order_S: Any, held: int, top: float, weight_N: Any, out_D: Any) -> None:
    """Make scores softmax weights, and write the values' weighted sum, of four at a time."""
    total, size = top - top, np.uint64(values_SD.shape[1])
    for n in range(held):
        weight_N[n] = np.exp(weight_N[n] - top)
        total += weight_N[n]
    for n in range(held):
        weight_N[n] /= total
    out_D[:] = 0
    for n in range(0, held - 3, 4):
        w, x, y, z = weight_N[n], weight_N[n + 1], weight_N[n + 2], weight_N[n + 3]
        first, second, third, fourth = order_S[n], order_S[n + 1], order_S[n + 2], order_S[n + 3]
        for d in range(size):
            out_D[d] += w * values_SD[first, d] + x * values_SD[second, d]
            out_D[d] += y * values_SD[third, d] + z * values_SD[fourth, d]
    for n in range(held // 4 * 4, held):
        weight, slot = weight_N[n], order_S[n]
        for d in range(size):
            out_D[d] += weight * values_SD[slot, d]


@compiled
def _update(score_S: Any, order_S: Any, held: int, stays: float, groups: int, heard_N: Any) -> None:
    """Add a query's attention, the mean of its heads', to what stays of the scores."""
    for n in range(held):
        score_S[order_S[n]] = stays * score_S[order_S[n]] + heard_N[n] / groups


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
    before_N[first:end] = decides_N[first:end]
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
    found = first
    for n in range(first, end):
        if decides_N[n] <= lowest + abs(lowest) * tie:
            found = n
    return found
