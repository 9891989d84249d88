"""What the layers of a cache share: rotations and masks, computed once for all of them.

Shape legend: B batch, H heads, S positions, D head size.
"""

from __future__ import annotations

from typing import Any

import torch

from kvstream.engine.rope import Rope, Rotation
from kvstream.engine.sink_rotation import Sinks

TABLE = 64  # positions whose rotations are computed at once for single tokens


class SharedTables:
    """The model's rotary embedding, the sinks, rotations and masks in use, and how far a call has come."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        self.sinks = Sinks()
        self.in_call = False  # between the first layer's keys and the last layer's answer
        self._begin()

    def _begin(self) -> None:
        self.model_rotates = True
        self._rotations: dict[tuple[Any, ...], Rotation] = {}
        self._distances: dict[tuple[Any, ...], Rotation] = {}
        self._places: dict[tuple[Any, ...], Rotation] = {}
        self._pairs: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._bands: dict[tuple[Any, ...], torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Take along what tables are made of, not the tables."""
        return {"rope": self.rope, "sinks": self.sinks, "in_call": self.in_call}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without tables."""
        vars(self).update(state)
        self._begin()

    def rotation(self, start: int, length: int, cap: int | None, like: torch.Tensor) -> Rotation:
        """Rotate to positions start … start + length − 1, none above `cap`."""
        if length == 1:
            return self.rotation_of((start if cap is None else min(start, cap),), like)
        key = ("span", start, length, cap, like.device)
        if key not in self._rotations:
            if len(self._rotations) >= 64:  # a call needs a few, or one for each layer, and the next call others
                self._rotations.clear()
            positions = _positions(start, length, like)
            self._rotations[key] = self.rope.at(positions if cap is None else positions.clamp(max=cap), like)
        return self._rotations[key]

    def distances(self, count: int, like: torch.Tensor) -> Rotation:
        """Rotate by 0 … count − 1, where ranks are positions: one table for all layers of a budget, also once reset."""
        key = (count, like.device, like.dtype)
        if key not in self._distances:
            with torch.inference_mode(False):  # layers keep it, as they do their slots
                self._distances[key] = self.rope.at(_positions(0, count, like), like)
        return self._distances[key]

    def pairs(
        self, start: int, length: int, cap: int | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as cosines and sines alone, float32, (length, pairs) each: see `Rope.pairs`."""
        key = (start, length, cap, device)
        if key not in self._pairs:
            if len(self._pairs) >= 16:  # a call needs a few, and the next call others
                self._pairs.clear()
            positions = torch.arange(start, start + length, device=device)
            self._pairs[key] = self.rope.pairs(positions if cap is None else positions.clamp(max=cap))
        return self._pairs[key]

    def rotation_of(self, positions: tuple[int, ...], like: torch.Tensor) -> Rotation:
        """Rotate to these positions; one position is good for any number of vectors."""
        key = (positions, like.device)
        if key not in self._places:
            if len(self._places) >= 64:  # a step needs a few, or one for each layer, and the next step others
                self._places.clear()
            # A step's positions lie beside those of the last: tables of them are cheaper than one rotation each.
            spans = [
                self.rotation(p - p % TABLE, TABLE, None, like).window(p % TABLE, p % TABLE + 1) for p in positions
            ]
            self._places[key] = Rotation.concatenate(spans)
        return self._places[key]

    def band(self, queries: int, keys: int, behind: int, reach: int, like: torch.Tensor) -> torch.Tensor:
        """Mask, to be added to scores: query i sees key j where 0 ≤ behind + i − j ≤ reach; shape (queries, keys)."""
        key = queries, keys, behind, reach, like.device
        if key not in self._bands:
            if len(self._bands) >= 16:  # a chunk needs one for each of its blocks, of tokens before it and of its own
                self._bands.clear()
            age = behind + torch.arange(queries)[:, None] - torch.arange(keys)
            self._bands[key] = torch.zeros(queries, keys).masked_fill_((age < 0) | (age > reach), -torch.inf).to(like)
        return self._bands[key]


def _positions(start: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """Count from `start`. GPUs with float64 work angles out by themselves: what comes from the host is waited for."""
    return torch.arange(start, start + length, device=like.device if like.is_cuda else None)
