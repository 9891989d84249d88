"""The recent tokens of a layer by age, as a chunk needs them: slots hold them in a ring.

Knows slots and tokens' numbers, no attention. Shape legend: B batch, H kv-heads, S tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvstream.engine.bounded_layer import BoundedLayer
    from kvstream.engine.slot_layout import SlotLayout


def stretches(layout: SlotLayout, tokens: range) -> Iterator[tuple[slice, slice]]:
    """Yield where tokens of the ring lie: slots in a row, and which of the tokens these are."""
    done = 0
    while done < len(tokens):
        slot = layout.slot_of(tokens[done])
        count = min(len(tokens) - done, layout.contested_at - slot)
        yield slice(slot, slot + count), slice(done, done + count)
        done += count


def extend(
    layer: BoundedLayer, keys_BHTD: torch.Tensor, values_BHTD: torch.Tensor
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Write the sinks among these new tokens to their slots, and line up the others behind those of the ring.

    keys_BHTD: rotated. Returns the ring's oldest token, and the keys and values of it and all that follow.
    """
    layout, start = layer.layout, layer.seen
    new_sinks = min(max(layout.sinks - start, 0), keys_BHTD.shape[2])
    first = max(layout.sinks, start - layout.recent)
    held = range(first, max(first, start))
    lined_up = []
    for slots_BHSD, new_BHTD in ((layer.keys, keys_BHTD), (layer.values, values_BHTD)):
        slots_BHSD[:, :, start : start + new_sinks] = new_BHTD[:, :, :new_sinks]
        ring = (slots_BHSD[:, :, place] for place, _ in stretches(layout, held))
        lined_up.append(torch.cat((*ring, new_BHTD[:, :, new_sinks:]), dim=2))
    layer.anchor(start, new_sinks)
    keys_BHSD, values_BHSD = lined_up
    return first, keys_BHSD, values_BHSD


def keep_newest(layer: BoundedLayer, first: int, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> None:
    """Write the newest of tokens `first` and following, as many as stay protected, to their slots."""
    newest = min(keys_BHSD.shape[2], layer.layout.recent)
    end = first + keys_BHSD.shape[2]
    for slots_BHSD, held_BHSD in ((layer.keys, keys_BHSD), (layer.values, values_BHSD)):
        newest_BHSD = held_BHSD[:, :, held_BHSD.shape[2] - newest :]
        for place, own in stretches(layer.layout, range(end - newest, end)):
            slots_BHSD[:, :, place] = newest_BHSD[:, :, own]
    layer.forget_plans()
