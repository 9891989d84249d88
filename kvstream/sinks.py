"""The attention sinks of all layers, turned together as the cache moves on in the text.

With positions by rank the sinks stay at 0 … s−1 while the newest token's index grows, so every step they must come
nearer by one. Scoring them apart, with a query of their own, would cost each layer a product; turning the keys of all
layers at once costs the whole model one rotation. They are turned from where they first stood, so no error adds up.

Shape legend: L layers, B batch, H kv-heads, S sinks or slots, D head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

import torch

from kvstream.rope import Rotation


class Anchored(Protocol):
    """A layer whose first slots are its sinks, and which keeps them at their own positions, too: anchors_BHSD."""

    keys: torch.Tensor
    anchors_BHSD: torch.Tensor


class Sinks:
    """The sinks of the layers that have joined.

    Layers are held weakly: they hold this, and in a ring of references their memory would outlive them.
    """

    def __init__(self) -> None:
        self.layers: list[weakref.ref[Anchored]] = []
        self.forget()

    def join(self, layer: Anchored) -> None:
        """Add a layer."""
        self.layers.append(weakref.ref(layer))

    def forget(self) -> None:
        """Look at the layers again when next asked: their sinks or slots have changed."""
        self.shift: int | None = None
        self.held: tuple[torch.Tensor, torch.Tensor] | None = None

    def turn(self, shift: int, rotation_of: Callable[[tuple[int, ...], torch.Tensor], Rotation]) -> None:
        """Have the sinks of all layers stand `shift` positions further on in their slots."""
        if self.shift == shift:  # another layer has asked before
            return
        if self.held is None:
            layers = [layer for held in self.layers if (layer := held()) is not None]
            anchors_LBHSD = torch.stack([layer.anchors_BHSD for layer in layers])
            self.held = rotation_of((shift,), anchors_LBHSD).parts(anchors_LBHSD)
            size = self.held[0].shape[-1]  # the rest of a head is never turned
            self.slots = [layer.keys[:, :, : layer.anchors_BHSD.shape[2], :size] for layer in layers]
        rotate = rotation_of((shift,), self.held[0])
        torch._foreach_copy_(self.slots, list(rotate.of_parts(*self.held).unbind()))
        self.shift = shift
