"""Tokens through a `ScannedLayer`, one after another, compiled for CPUs: what `scan` does in Python.

Shape legend: B batch, U sets of kept tokens, K kv-heads of a set, S slots, N tokens held, by age, G query heads per
kv-head, T tokens, D head size, E the same where keys are compared, else 0, P rotated pairs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer

compiled: Any = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


def scan_compiled(layer: ScannedLayer, new: Arriving, scaling: float) -> torch.Tensor:
    """Take no Python step per token; sets of kept tokens are spread over torch's threads: (B, H, G, T, D)."""
    B, U, S = layer.order_BUS.shape
    sets, K = B * U, new.k_BHTD.shape[1] // U
    output_BHGTD = torch.empty(new.q_BHGTD.shape, dtype=new.q_BHGTD.dtype)
    come = (new.q_BHGTD, new.k_BHTD, new.v_BHTD, new.own_BHTE, new.score_BHT)
    held = (layer.keys, layer.values, layer.own_BHSE, layer.sum_BHE, layer.score_BHS, output_BHGTD)
    of_sets = [x.reshape(sets, K, *x.shape[2:]).numpy() for x in come]
    of_sets += [x.view(sets, K, *x.shape[2:]).numpy() for x in held]
    order_US, token_US = (x.view(sets, S).numpy() for x in (layer.order_BUS, layer.token_BUS))
    dtype = of_sets[0].dtype.type
    regions, policy = layer.regions, layer.policy
    cos_SP = sin_SP = np.empty((0, 0), dtype)
    if layer.distances:
        pairs = layer.distances.cos.shape[-1] // 2
        cos_SP, sin_SP = (x[:, pairs:].contiguous().numpy() for x in (layer.distances.cos, layer.distances.sin))
    count = (layer.seen, layer.held(layer.seen), layer.left, regions.sinks, regions.recent)
    memory = -1.0 if policy.scored_by != "attention" else policy.attention_memory
    how = (memory, policy.queries_heard, policy.per_age, policy.pooled, layer.tie)
    threads = min(torch.get_num_threads(), sets)
    pieces = [slice(sets * n // threads, sets * (n + 1) // threads) for n in range(threads)]

    def piece(part: slice) -> None:
        arrays = [x[part] for x in of_sets]
        _scan(*arrays, order_US[part].view(np.uint64), token_US[part], *count, *how, dtype(scaling), cos_SP, sin_SP)

    list(pool(threads).map(piece, pieces) if threads > 1 else map(piece, pieces))
    return output_BHGTD


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live on."""
    return ThreadPoolExecutor(threads)


@compiled
def _scan(
    q_UKGTD: Any, k_UKTD: Any, v_UKTD: Any, own_UKTE: Any, first_UKT: Any, keys_UKSD: Any, values_UKSD: Any,
    own_UKSE: Any, sum_UKE: Any, score_UKS: Any, out_UKGTD: Any, order_US: Any, token_US: Any, seen: int,
    held_before: int, left: int, sinks: int, recent: int, memory: float, heard: int, per_age: bool, pooled: int,
    tie: float, scaling: float, cos_SP: Any, sin_SP: Any,
) -> None:  # fmt: skip
    """memory: as `attention_memory`, below 0 where attention does not score; heard: as `queries_heard`."""
    sets, heads, groups, tokens, _ = q_UKGTD.shape
    full = order_US.shape[1]
    compares = own_UKTE.shape[3] > 0
    weight_N = np.empty(full, q_UKGTD.dtype)
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
                    top = _scores(
                        q_UKGTD[u, k, g, t], keys_UKSD[u, k], order_S, held, scaling, cos_SP, sin_SP, weight_N
                    )
                    _weigh(values_UKSD[u, k], order_S, held, top, weight_N, out_UKGTD[u, k, g, t])
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
    q_D: Any, keys_SD: Any, order_S: Any, held: int, scaling: float, cos_SP: Any, sin_SP: Any, score_N: Any
) -> Any:  # fmt: skip
    """Write a query's scores of the tokens held, by age; returns the highest. With ranks as positions: by distance."""
    pairs = np.uint64(cos_SP.shape[1])
    for n in range(held):
        slot, total = order_S[n], scaling - scaling
        for d in range(2 * pairs, np.uint64(keys_SD.shape[1])):
            total += q_D[d] * keys_SD[slot, d]
        score_N[n] = total
    for n in range(held):
        slot, away, total = order_S[n], np.uint64(held - 1 - n), score_N[n]
        for p in range(pairs):
            q1, q2, k1, k2 = q_D[p], q_D[p + pairs], keys_SD[slot, p], keys_SD[slot, p + pairs]
            total += cos_SP[away, p] * (q1 * k1 + q2 * k2) - sin_SP[away, p] * (q2 * k1 - q1 * k2)
        score_N[n] = total * scaling
    top = score_N[0]
    for n in range(held):
        top = max(top, score_N[n])
    return top


@compiled
def _weigh(values_SD: Any, order_S: Any, held: int, top: float, weight_N: Any, out_D: Any) -> None:
    """Make scores softmax weights, and write the values' weighted sum."""
    total = top - top
    for n in range(held):
        weight_N[n] = np.exp(weight_N[n] - top)
        total += weight_N[n]
    out_D[:] = 0
    for n in range(held):
        weight_N[n] /= total
        weight, slot = weight_N[n], order_S[n]
        for d in range(np.uint64(values_SD.shape[1])):
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
