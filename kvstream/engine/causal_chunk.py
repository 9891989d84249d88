"""Many tokens through a layer that holds all tokens so far, each in the slot of its index, and evicts none.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvstream.engine.attention import Partial, blocks, merge_partials

if TYPE_CHECKING:
    from kvstream.engine.layer import Layer


def attend_causal(
    layer: Layer, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Answer the queries, take the keys and values into the layer, and count; the output is shaped as the queries."""
    start, T = layer.seen, k_BHTD.shape[2]
    layer.values[:, :, start : start + T] = v_BHTD
    rotate = layer.tables.rotation(start, T, None, k_BHTD)
    q_BHGTD = rotate(q_BHGTD)
    layer.keys[:, :, start : start + T] = rotate(k_BHTD)
    outputs = []
    for first, end in blocks(T, layer.backend.query_block):
        masked = []
        for low, high in blocks(end - first):
            own = slice(start + first, start + first + high)
            mask = layer.tables.band(high - low, high, low, high, q_BHGTD)
            queries = q_BHGTD[:, :, :, first + low : first + high]
            masked.append(layer.backend.block(queries, layer.keys[:, :, own], layer.values[:, :, own], scaling, mask))
        partials = [Partial.of_blocks(masked)]
        if start + first:
            before = layer.keys[:, :, : start + first], layer.values[:, :, : start + first]
            partials.append(layer.backend.block(q_BHGTD[:, :, :, first:end], *before, scaling))
        outputs.append(merge_partials(partials))
    layer.seen += T
    return torch.cat(outputs, dim=-2)
