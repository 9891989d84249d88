"""The recent tokens of a layer by age, as a chunk needs them: slots hold them in a ring.

Knows slots and tokens' numbers, no attention. Shape legend: B batch, H kv-heads, S tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kvstream.engine.slot_layout import SlotLayout


def stretches(layout: SlotLayout, tokens: range) -> Iterator[tuple[slice, slice]]:
    """Yield where tokens of the ring lie: slots in a row, and which of the tokens these are."""
    done = 0
    while done < len(tokens):
        slot = layout.slot_of(tokens[done])
        count = min(len(tokens) - done, layout.contested_at - slot)
        yield slice(slot, slot + count), slice(done, done + count)
        done += count


def extend(layout: SlotLayout, slots_BHSD: torch.Tensor, held: range, new_BHSD: torch.Tensor) -> torch.Tensor:
    """Line up these tokens of the ring, oldest first, and behind them the new ones."""
    return torch.cat((*(slots_BHSD[:, :, place] for place, _ in stretches(layout, held)), new_BHSD), dim=2)


def keep_newest(layout: SlotLayout, slots_BHSD: torch.Tensor, tokens: range, held_BHSD: torch.Tensor) -> None:
    """Write the newest of these tokens, as many as stay protected, to their slots."""
    newest = tokens[max(0, len(tokens) - layout.recent) :]
    newest_BHSD = held_BHSD[:, :, len(tokens) - len(newest) :]
    for place, own in stretches(layout, newest):
        slots_BHSD[:, :, place] = newest_BHSD[:, :, own]
