"""The attention sinks of all layers, turned together as the cache moves on in the text.

With positions by rank the sinks stay at 0 … s−1 while the newest token's index grows, so every step they must come
nearer by one. Scoring them apart, with a query of their own, would cost each layer a product; turning the keys of all
layers at once costs the whole model one rotation. They are turned from where they first stood, so no error adds up.

Shape legend: L layers, B batch, H kv-heads, S sinks or slots, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kvstream.engine.rope import Rotation


class Anchored(Protocol):
    """A layer whose first slots are its sinks, and which keeps them at their own positions, too: anchors_BHSD."""

    keys: torch.Tensor
    anchors_BHSD: torch.Tensor


class Sinks:
    """Where the sinks of a cache's layers stand, and what is needed to turn them on."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Look at the layers again when next asked: their sinks or slots have changed."""
        self.shift: int | None = None
        self.groups: list[_Group] | None = None

    def turn(
        self,
        layers: Sequence[Anchored],
        shift: int,
        rotation_of: Callable[[tuple[int, ...], torch.Tensor], Rotation],
    ) -> None:
        """Have the sinks of all layers stand `shift` positions further on in their slots."""
        if self.shift == shift:
            return
        if self.groups is None:
            devices = dict.fromkeys(layer.keys.device for layer in layers)
            grouped = [[layer for layer in layers if layer.keys.device == device] for device in devices]
            self.groups = [_Group.of(group, rotation_of) for group in grouped]
        for group in self.groups:
            rotate = rotation_of((shift,), group.anchors)
            torch._foreach_copy_(group.slots, list(rotate.of_parts(group.anchors, group.swapped).unbind()))
        self.shift = shift

    def __getstate__(self) -> dict[str, Any]:
        """Take nothing along: slots are views of the layers' keys, and those of a copy are others."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look at the layers when first asked."""
        self.forget()


@dataclass(frozen=True)
class _Group:
    """The sinks of the layers on one device, and their slots in each layer.

    anchors: as they first stood, stacked, (L, B, H, S, rotated size). swapped: the same with swapped halves.
    """

    anchors: torch.Tensor
    swapped: torch.Tensor
    slots: list[torch.Tensor]

    @classmethod
    def of(cls, layers: Sequence[Anchored], rotation_of: Callable[[tuple[int, ...], torch.Tensor], Rotation]) -> _Group:
        stacked_LBHSD = torch.stack([layer.anchors_BHSD for layer in layers])
        anchors, swapped = rotation_of((0,), stacked_LBHSD).parts(stacked_LBHSD)
        size = anchors.shape[-1]  # the rest of a head is never turned
        return cls(anchors, swapped, [layer.keys[:, :, : layer.anchors_BHSD.shape[2], :size] for layer in layers])
