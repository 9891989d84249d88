"""Tokens through a layer whose evictions follow attention, one after another: plainly, and compiled for CPUs.

Each token takes the free slot, is answered, has the policy score all tokens, and then one of the contested leaves if
more than the budget are held: the lowest score, of equals the youngest. Both ways write the layer's slots, scores and
order (see `ScannedLayer`) in place. The same code takes one token or many, so decoding and replay decide alike.

Shape legend: B batch, H kv-heads, U sets of kept tokens, K kv-heads of a set, S slots, N tokens held, by age, G query
heads per kv-head, T tokens, D head size, P rotated pairs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from kvstream.engine.contest import tie

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import ScannedLayer

TIE = tie(torch.float64)
compiled: Any = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


def scan_plainly(
    layer: ScannedLayer, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Take some Python steps per token, on any device and in any dtype, under any policy: (B, H, G, T, D)."""
    steps = range(k_BHTD.shape[2])
    return torch.stack(
        [_step(layer, layer.seen + t, q_BHGTD[..., t, :], k_BHTD[:, :, t], v_BHTD[:, :, t], scaling) for t in steps], -2
    )


def _step(
    layer: ScannedLayer, token: int, q_BHGD: torch.Tensor, k_BHD: torch.Tensor, v_BHD: torch.Tensor, scaling: float
) -> torch.Tensor:
    regions, policy = layer.regions, layer.policy
    held = min(token, regions.budget)  # and the new one, the youngest
    slot_BUN = layer.order_BUS[:, :, : held + 1]
    slot_BHN = slot_BUN.expand(-1, k_BHD.shape[1], -1)
    slot_BHND = slot_BHN[..., None].expand(-1, -1, -1, k_BHD.shape[-1])
    layer.keys.scatter_(2, slot_BHND[:, :, -1:], k_BHD[:, :, None])
    layer.values.scatter_(2, slot_BHND[:, :, -1:], v_BHD[:, :, None])
    layer.score_BHS.scatter_(2, slot_BHN[:, :, -1:], 0.0)
    layer.token_BUS.scatter_(2, slot_BUN[:, :, -1:], token)

    keys_BHND, values_BHND = layer.keys.gather(2, slot_BHND), layer.values.gather(2, slot_BHND)
    if layer.distances:
        keys_BHND = layer.distances.window(0, held + 1)(keys_BHND)
        q_BHGD = layer.distances.window(held, held + 1)(q_BHGD)
    wide = torch.promote_types(q_BHGD.dtype, torch.float32)
    weights_BHGN = (q_BHGD.to(wide) @ keys_BHND.to(wide).mT * scaling).softmax(-1)
    score_BHN = policy.update_scores(layer.score_BHS.gather(2, slot_BHN), weights_BHGN.double())
    layer.score_BHS.scatter_(2, slot_BHN, score_BHN)
    if held == regions.budget:
        age_BUN = token + 1 - layer.token_BUS.gather(2, slot_BUN)
        decides_BHN = score_BHN / age_BUN if policy.per_age else score_BHN
        contested_BHN = decides_BHN[:, :, regions.sinks : held + 1 - regions.recent]
        if policy.shared_by_heads:
            contested_BHN = contested_BHN.mean(1, keepdim=True)
        lowest_BU1 = contested_BHN.amin(-1, keepdim=True)
        among_BUN = contested_BHN <= lowest_BU1 + lowest_BU1.abs() * TIE
        rank_N = torch.arange(held + 1, device=layer.device)
        leaves_BU1 = regions.sinks + (among_BUN * (1 + rank_N[: among_BUN.shape[-1]])).amax(-1, keepdim=True) - 1
        last = held * torch.ones_like(leaves_BU1)
        younger_BUN = torch.where(rank_N < leaves_BU1, rank_N, (rank_N + 1).clamp(max=held))
        younger_BUN = torch.where(rank_N == last, leaves_BU1, younger_BUN)
        layer.order_BUS.copy_(slot_BUN.gather(2, younger_BUN))
    return (weights_BHGN @ values_BHND.to(wide)).to(v_BHD.dtype)


def scan_compiled(
    layer: ScannedLayer, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Take no Python step per token; sets of kept tokens are spread over torch's threads: (B, H, G, T, D)."""
    B, U, S = layer.order_BUS.shape
    sets, K = B * U, k_BHTD.shape[1] // U
    output_BHGTD = torch.empty(q_BHGTD.shape, dtype=q_BHGTD.dtype)
    of_sets = [x.reshape(sets, K, *x.shape[2:]).numpy() for x in (q_BHGTD, k_BHTD, v_BHTD)]
    held = [x.view(sets, K, *x.shape[2:]).numpy() for x in (layer.keys, layer.values, layer.score_BHS, output_BHGTD)]
    order_US, token_US = (x.view(sets, S).numpy() for x in (layer.order_BUS, layer.token_BUS))
    dtype = held[0].dtype.type
    regions, policy = layer.regions, layer.policy
    cos_SP = sin_SP = np.empty((0, 0), dtype)
    if layer.distances:
        pairs = layer.distances.cos.shape[-1] // 2
        cos_SP, sin_SP = (x[:, pairs:].contiguous().numpy() for x in (layer.distances.cos, layer.distances.sin))
    how = (regions.sinks, regions.recent, policy.attention_memory, policy.per_age)
    threads = min(torch.get_num_threads(), sets)
    pieces = [slice(sets * n // threads, sets * (n + 1) // threads) for n in range(threads)]

    def piece(part: slice) -> None:
        arrays = [x[part] for x in (*of_sets, *held)]
        _scan(*arrays, order_US[part].view(np.uint64), token_US[part], layer.seen, *how, dtype(scaling), cos_SP, sin_SP)

    list(pool(threads).map(piece, pieces) if threads > 1 else map(piece, pieces))
    return output_BHGTD


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live on."""
    return ThreadPoolExecutor(threads)


@compiled
def _scan(
    q_UKGTD: Any, k_UKTD: Any, v_UKTD: Any, keys_UKSD: Any, values_UKSD: Any, score_UKS: Any, out_UKGTD: Any,
    order_US: Any, token_US: Any, seen: int, sinks: int, recent: int, memory: float, per_age: bool, scaling: float,
    cos_SP: Any, sin_SP: Any,
) -> None:  # fmt: skip
    sets, heads, groups, tokens, _ = q_UKGTD.shape
    budget = order_US.shape[1] - 1
    weight_N = np.empty(budget + 1, q_UKGTD.dtype)
    heard_N, decides_N = np.empty(budget + 1), np.empty(budget + 1)
    for u in range(sets):
        order_S, token_S = order_US[u], token_US[u]
        for t in range(tokens):
            held = min(seen + t, budget) + 1
            new = order_S[held - 1]
            token_S[new] = seen + t
            decides_N[:held] = 0
            for k in range(heads):
                keys_UKSD[u, k, new] = k_UKTD[u, k, t]
                values_UKSD[u, k, new] = v_UKTD[u, k, t]
                score_UKS[u, k, new] = 0
                heard_N[:held] = 0
                for g in range(groups):
                    top = _scores(
                        q_UKGTD[u, k, g, t], keys_UKSD[u, k], order_S, held, scaling, cos_SP, sin_SP, weight_N
                    )
                    _weigh(values_UKSD[u, k], order_S, held, top, weight_N, out_UKGTD[u, k, g, t])
                    for n in range(held):
                        heard_N[n] += weight_N[n]
                _update(score_UKS[u, k], order_S, held, memory, groups, heard_N, decides_N)
            if held > budget:
                if per_age:
                    for n in range(held):
                        decides_N[n] /= seen + t + 1 - token_S[order_S[n]]
                _free(order_S, held, sinks, held - recent, decides_N)


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
def _update(
    score_S: Any, order_S: Any, held: int, memory: float, groups: int, heard_N: Any, decides_N: Any
) -> None:  # fmt: skip
    """Add a query's attention, the mean of its heads', to what is left of the scores; add these to what decides."""
    for n in range(held):
        score = memory * score_S[order_S[n]] + heard_N[n] / groups
        score_S[order_S[n]] = score
        decides_N[n] += score


@compiled
def _free(order_S: Any, held: int, first: int, end: int, decides_N: Any) -> None:
    """Have the slot of the lowest of tokens first … end − 1, by age, be the free one, the last."""
    lowest = decides_N[first]
    for n in range(first, end):
        lowest = min(lowest, decides_N[n])
    leaves = first
    for n in range(first, end):
        if decides_N[n] <= lowest + abs(lowest) * TIE:
            leaves = n
    slot = order_S[leaves]
    for n in range(leaves, held - 1):
        order_S[n] = order_S[n + 1]
    order_S[held - 1] = slot
