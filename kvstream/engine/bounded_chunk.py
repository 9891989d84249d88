"""Many tokens through a layer with a budget at once, exactly as one by one.

Layer l at token t depends only on layer l−1 up to t and on the layer's own cache, so a whole chunk passes a layer as
matrix products, and only the masks know what each query's cache had evicted by then. Sinks, recents and contested keys
answer apart, since with positions by rank each is asked by queries that stand elsewhere; then they are merged.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S keys, Z seats, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvstream.engine import ring
from kvstream.engine.attention import Partial, blocks, merge_partials
from kvstream.engine.contested_keys import ContestedKeys
from kvstream.engine.sink_rotation import queries_of_sinks

if TYPE_CHECKING:
    from kvstream.engine.bounded_layer import BoundedLayer


def attend_bounded(
    layer: BoundedLayer, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Answer the queries, take the keys and values into the layer, and count; the output is shaped as the queries."""
    start, T = layer.seen, k_BHTD.shape[2]
    rotate = layer.tables.rotation(start, T, layer.positions.cap, k_BHTD)
    first, keys_BHSD, values_BHSD = ring.extend(layer, rotate(k_BHTD), v_BHTD)
    contested = _contest(layer, first, keys_BHSD, values_BHSD)

    recent_BHGTD = rotate(q_BHGTD)
    old_BHGTD = queries_of_sinks(layer, q_BHGTD) if layer.positions.by_rank else recent_BHGTD
    outputs = []
    for low, high in blocks(T):
        block = (..., slice(low, high), slice(None))
        tokens = range(start + low, start + high)
        partials = _answer_sinks(layer, old_BHGTD[block], tokens, scaling)
        partials += _answer_recents(layer, recent_BHGTD[block], tokens, first, keys_BHSD, values_BHSD, scaling)
        if contested:
            queries = (q_BHGTD if layer.ranks else old_BHGTD)[block]
            partials += contested.answer(layer.backend, queries, tokens, scaling, layer.ranks)
        outputs.append(merge_partials(partials))
    ring.keep_newest(layer, first, keys_BHSD, values_BHSD)
    if contested:
        for held_BHZD, stay_BHZD in zip(layer.seats, contested.survivors()):
            held_BHZD[:, :, : stay_BHZD.shape[2]] = stay_BHZD
    layer.seen += T
    return torch.cat(outputs, dim=-2)


def _answer_sinks(layer: BoundedLayer, queries_BHGTD: torch.Tensor, tokens: range, scaling: float) -> list[Partial]:
    if not (sinks := min(layer.layout.sinks, tokens.stop)):
        return []
    keys, values = layer.anchors_BHSD[:, :, :sinks], layer.values[:, :, :sinks]
    mask = layer.tables.band(len(tokens), sinks, tokens.start, tokens.stop, keys) if tokens.start < sinks else None
    return [layer.backend.block(queries_BHGTD, keys, values, scaling, mask)]


def _answer_recents(
    layer: BoundedLayer,
    queries_BHGTD: torch.Tensor,
    tokens: range,
    first: int,
    keys_BHSD: torch.Tensor,
    values_BHSD: torch.Tensor,
    scaling: float,
) -> list[Partial]:
    """Answer from tokens `first` and following, of which each query sees the last recent ones and its own."""
    if tokens.stop <= first:
        return []
    begin = max(first, tokens.start - layer.layout.recent)
    seen = slice(begin - first, tokens.stop - first)
    mask = layer.tables.band(len(tokens), tokens.stop - begin, tokens.start - begin, layer.layout.recent, keys_BHSD)
    return [layer.backend.block(queries_BHGTD, keys_BHSD[:, :, seen], values_BHSD[:, :, seen], scaling, mask)]


def _contest(
    layer: BoundedLayer, first: int, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor
) -> ContestedKeys | None:
    """Play the chunk's contests between the members and the ring's tokens, which lose their protection in turn."""
    candidates = max(0, keys_BHSD.shape[2] - layer.layout.recent)
    if layer.eviction is None or not layer.members + candidates:
        return None
    keys_BHCD, values_BHCD = keys_BHSD[:, :, :candidates], values_BHSD[:, :, :candidates]
    seat_BHMD = layer.eviction.by_age(layer.members)[..., None].expand(-1, -1, -1, keys_BHSD.shape[-1])
    lifetimes = layer.eviction.lifetimes(first + layer.layout.recent, layer.members, keys_BHCD, values_BHCD)
    if layer.positions.by_rank:
        keys_BHCD = layer.tables.rope.at(-torch.arange(first, first + candidates), keys_BHCD)(keys_BHCD)
    keys_BHND, values_BHND = (
        torch.cat((held_BHZD.gather(2, seat_BHMD), new_BHCD), 2)
        for held_BHZD, new_BHCD in zip(layer.seats, (keys_BHCD, values_BHCD))
    )
    return ContestedKeys(keys_BHND, values_BHND, lifetimes)
