"""How far the attention sinks stand from a query, with positions by rank: never farther than a budget.

Sinks stay at 0 … s−1 while the newest token's index grows, so every token they must come nearer by one.

* Decoding turns their keys (`Sinks`). Scoring them apart, with a query of their own, would cost each layer a product;
  turning the keys of all layers at once costs the whole model one rotation, or one for each budget where layers differ
  in theirs. They are turned from where they first stood, so no error adds up.
* Replay, where one key meets many queries, leaves the keys there and turns the queries (`queries_of_sinks`).

Shape legend: L layers, B batch, H kv-heads, G query heads per kv-head, T queries, S sinks or slots, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from kvstream.engine.rope import Rotation

if TYPE_CHECKING:
    from kvstream.engine.bounded_layer import BoundedLayer


def queries_of_sinks(layer: BoundedLayer, q_BHGTD: torch.Tensor) -> torch.Tensor:
    """Turn the queries of the tokens that come next to where sinks find them: by rank, none above the budget."""
    return layer.tables.rotation(layer.seen, q_BHGTD.shape[-2], layer.layout.budget, q_BHGTD)(q_BHGTD)


RotationOf = Callable[[tuple[int, ...], torch.Tensor], Rotation]


class Sinks:
    """Where the sinks of a cache's layers stand, and what is needed to turn them on."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Look at the layers again when next asked: their sinks or slots have changed."""
        self.groups: list[Group] | None = None

    def turn(self, layers: Sequence[BoundedLayer], rotation_of: RotationOf) -> None:
        """Have the sinks of these layers, always the same, stand where the next token's query finds them."""
        if self.groups is None:
            self.groups = groups_of(layers)
        for group in self.groups:
            group.turn([layers[place] for place in group.places], rotation_of)

    def __getstate__(self) -> dict[str, Any]:
        """Take nothing along: slots are views of the layers' keys, and those of a copy are others."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look at the layers when first asked."""
        self.forget()


class Group:
    """The sinks of layers that are turned by one operation: on one device, as many, under one budget.

    Knows them by their places: layers held here would hold themselves, and their memory be freed late.
    """

    def __init__(self, places: list[int]) -> None:
        self.places = places
        self.shift = 0
        self.anchors: torch.Tensor | None = None

    def turn(self, layers: Sequence[BoundedLayer], rotation_of: RotationOf) -> None:
        """Have the sinks of these layers, the group's, stand where the next token's query finds them."""
        shift = layers[0].shift
        if self.shift != shift:
            self.turn_by(layers, rotation_of((shift,), layers[0].keys))
            self.shift = shift

    def turn_by(self, layers: Sequence[BoundedLayer], rotation: Rotation) -> None:
        """Have them stand that far from where they first stood."""
        if self.anchors is None:
            stacked_LBHSD = torch.stack([layer.anchors_BHSD for layer in layers])
            # As they first stood, and the same with swapped halves: both (L, B, H, S, rotated size).
            self.anchors, self.swapped = rotation.parts(stacked_LBHSD)
            size = self.anchors.shape[-1]  # the rest of a head is never turned
            self.slots = [layer.keys[:, :, : layer.layout.sinks, :size] for layer in layers]
        torch._foreach_copy_(self.slots, list(rotation.of_parts(self.anchors, self.swapped).unbind()))


def groups_of(layers: Sequence[BoundedLayer]) -> list[Group]:
    """Put together what can be turned together."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, layer in enumerate(layers):
        if layer.layout.sinks:
            alike.setdefault((layer.keys.device, layer.layout.sinks, layer.layout.budget), []).append(place)
    return [Group(places) for places in alike.values()]
