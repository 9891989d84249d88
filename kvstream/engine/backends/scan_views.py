"""A `ScannedLayer` as its compiled loop sees it: arrays that show its tensors, kept from call to call.

Half precision the loop does not know: as in `scan`, it is computed in float32. The loop is given a copy of the slots
for one call, as one that stayed would take twice the cache's memory; what arrived is stored as it came.

Shape legend: B batch, H kv-heads, U sets of kept tokens, K kv-heads of a set, S slots, G query heads per kv-head,
T tokens, D head size, W dimensions turned by distance, X what a slot holds of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kvstream.engine.backends.compiled_attention import compiled, copy
from kvstream.engine.backends.pace import PACES, Pace

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer

LANES = 32  # dimensions that a loop takes at a time on the widest CPUs; of fewer it takes one by one


@dataclass(frozen=True)
class Views:
    """The arrays, by sets and their heads: of one token, half the time would go into making them.

    of: the tensors that they show. wide: what the loop computes in. slots: keys, values and own keys, in half precision
    as bits. beside: sums, scores, order and tokens. how: what does not change. nothing: tokens' scores, their own keys
    and rotations where there are none.
    """

    of: tuple[torch.Tensor, ...]
    wide: torch.dtype
    slots: list[Any]
    beside: list[Any]
    how: tuple[Any, ...]
    nothing: tuple[Any, Any, Any]
    pace: Pace


def views_of(layer: ScannedLayer, groups: int) -> Views:
    """Show the layer's tensors, or those of before while they are the same."""
    stored, added = (layer.keys, layer.values, layer.own_BHSE), (layer.sum_BHC, layer.score_BHS)
    of = (*stored, *added, layer.order_BUS, layer.token_BUS)
    if layer.views is None or any(one is not other for one, other in zip(of, layer.views.of)):
        policy, regions = layer.policy, layer.regions
        sets, S = layer.order_BUS.shape[:2].numel(), layer.order_BUS.shape[2]
        K = layer.keys.shape[:2].numel() // sets
        wide = torch.promote_types(layer.keys.dtype, torch.float32)
        slots, beside = ([bits(x).view(sets, K, *x.shape[2:]).numpy() for x in part] for part in (stored, added))
        beside += [layer.order_BUS.view(sets, S).numpy().view(np.uint64), layer.token_BUS.view(sets, S).numpy()]
        memory = -1.0 if policy.scored_by != "attention" else policy.attention_memory
        how = (layer.left, regions.sinks, regions.recent, memory, policy.queries_heard, policy.per_age, policy.pooled)
        dtype = torch.empty(0, dtype=wide).numpy().dtype
        nothing = np.empty((sets, K, 0)), np.empty((sets, K, 0, 0), dtype), np.empty((0, 0), dtype)
        how = (*how, layer.tie, *_rotations(layer, groups, dtype))
        layer.views = Views(of, wide, slots, beside, how, nothing, PACES[policy.name])
    return layer.views


def by_sets(x: torch.Tensor, sets: int, heads: int) -> Any:
    """Rows of a batch and heads as sets and their heads; contiguous, as loops over any other layout are slow."""
    return np.ascontiguousarray(x.numpy().reshape(sets, heads, *x.shape[2:]))


def widened(x: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; what is wider as it is."""
    return x.float() if x.element_size() < 4 else x


def bits(x: torch.Tensor) -> torch.Tensor:
    """Half precision as the integers that NumPy has for it; what is wider as it is."""
    return x.view(torch.int16) if x.element_size() < 4 else x


def store(layer: ScannedLayer, new: Arriving, views: Views) -> None:
    """Write what arrived and stayed into the layer's slots, as it came: the loop wrote into a copy of them."""
    (sets, K), (order_US, token_US) = views.slots[0].shape[:2], views.beside[2:]
    held = layer.held(layer.seen + new.k_BHTD.shape[2])
    for x, slots_UKSX in zip((new.k_BHTD, new.v_BHTD, new.own_BHTE), views.slots):
        if x is not None:
            _store(by_sets(bits(x), sets, K), order_US, token_US, layer.seen, held, slots_UKSX)


@compiled
def _store(new_UKTX: Any, order_US: Any, token_US: Any, seen: int, held: int, slots_UKSX: Any) -> None:
    sets, heads, tokens, _ = new_UKTX.shape
    for u in range(sets):
        for n in range(max(0, held - tokens), held):  # by age, so that all who arrived are among these
            slot = order_US[u, n]
            t = token_US[u, slot] - seen
            if 0 <= t < tokens:
                for k in range(heads):
                    copy(new_UKTX[u, k, t], slots_UKSX[u, k, slot])


def _rotations(layer: ScannedLayer, groups: int, dtype: Any) -> list[Any]:
    """Cosines and sines by distance, how many dimensions are rotated, and an example of integers as wide as `dtype`.

    Of each pair of dimensions where several queries share a key, (S, pairs); for one query of both, (S, W), as its
    loops are long then: the others of W turn by nothing.
    """
    integers = np.empty(0, f"i{dtype.itemsize}")
    if layer.distances is None:
        return [np.empty((0, 0), dtype), np.empty((0, 0), dtype), 0, integers]
    cos_SW, sin_SW = layer.distances.cos.numpy(), layer.distances.sin.numpy()
    size, D = cos_SW.shape[-1], layer.keys.shape[3]
    if groups > 1:
        return [cos_SW[:, : size // 2].copy(), sin_SW[:, size // 2 :].copy(), size, integers]
    wide = ((0, 0), (0, min(-(-size // LANES) * LANES, D) - size))
    return [np.pad(cos_SW, wide, constant_values=1), np.pad(sin_SW, wide), size, integers]
