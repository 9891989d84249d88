"""A layer with a budget: slots for what it keeps and for the next token, overwritten in place.

Nothing moves to make room: the next token overwrites the slot of one that left, since attention over a set of keys does
not care about their order (`slot_layout`). Single tokens are served by `bounded_step`, many at once, as exactly, by
`bounded_chunk`. Who leaves is up to `eviction`, where keys and queries stand to `positions`.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S slots or keys, Z seats, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kvstream.engine.bounded_step import attend_token
from kvstream.engine.eviction import Eviction
from kvstream.engine.layer import Layer
from kvstream.engine.positions import Positions, Ranks
from kvstream.engine.shared_tables import SharedTables
from kvstream.engine.slot_layout import SlotLayout
from kvstream.policies import BoundedPolicy


class BoundedLayer(Layer):
    """One layer under a bounded policy."""

    row_tensors = ("keys", "values", "anchors_BHSD", "plain_BHZD")

    def __init__(self, tables: SharedTables, policy: BoundedPolicy, layer: int) -> None:
        super().__init__(tables)
        regions = policy.regions_of(layer)
        assert regions is not None, "a layer with a budget has regions"
        self.layout = SlotLayout(regions.sinks, regions.contested, regions.recent)
        self.positions = Positions(policy.position, regions.budget)
        self.eviction = Eviction(policy, layer, self.layout) if regions.contested else None
        self.turned = False  # whether the contested keys in the slots are rotated to their ranks

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots."""
        super().lazy_initialization(key_states, value_states)
        B, H, _, D = key_states.shape
        by_rank, seats = self.positions.by_rank, self.layout.seats
        self.keys = key_states.new_empty(B, H, self.layout.contested_at + seats, D)
        self.values = torch.empty_like(self.keys)
        self.anchors_BHSD = key_states.new_empty(B, H, self.layout.sinks, D)  # sinks at their own positions
        self.plain_BHZD = key_states.new_empty(B, H, seats if by_rank else 0, D)  # contested keys, unrotated
        self.ranks = None
        if self.eviction:
            self.eviction.allocate(self.keys, self.values)
            if by_rank:
                table = self.tables.distances(self.layout.budget + 1, key_states)
                self.ranks = Ranks(self.layout.sinks, self.layout.budget, table)
        self.forget_plans()

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        if k_BHTD.shape[2] == 1:
            return attend_token(self, q_BHGTD, k_BHTD, v_BHTD, scaling)
        if self.seen + k_BHTD.shape[2] > self.layout.protected:
            return self.backend.bounded(self, q_BHGTD, k_BHTD, v_BHTD, scaling)
        start = self.seen  # nobody loses protection: as a full cache
        output_BHGTD = self.backend.causal(self, q_BHGTD, k_BHTD, v_BHTD, scaling)
        self.anchor(start, k_BHTD.shape[2])
        return output_BHGTD

    @property
    def shift(self) -> int:
        """How much nearer than by index the older keys are to the next token."""
        return self.positions.shift(self.seen)

    @property
    def members(self) -> int:
        """Contested tokens now held, as many in every row."""
        return self.layout.members(self.seen)

    @property
    def seats(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in the contested slots, (B, H, Z, D) each; keys unrotated where rank is position."""
        held = slice(self.layout.contested_at, None)
        return self.plain_BHZD if self.positions.by_rank else self.keys[:, :, held], self.values[:, :, held]

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for keys and values, second copies of sinks and of contested keys included."""
        return super().kv_bytes + (self.anchors_BHSD.nbytes + self.plain_BHZD.nbytes if self.is_initialized else 0)

    def anchor(self, start: int, tokens: int) -> None:
        """Keep the sinks among these tokens, just written, at their own positions."""
        if start < self.layout.sinks:
            new = slice(start, min(start + tokens, self.layout.sinks))
            self.anchors_BHSD[:, :, new] = self.keys[:, :, new]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        super().reorder_cache(beam_idx)
        self.forget_plans()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything this layer holds. The slot of the next token is zeroed: it holds what memory happened to hold."""
        if self.seen >= self.layout.contested_at:
            for slots in (self.keys, self.values):
                slots[:, :, self.layout.slot_of(self.seen)] = 0
        return super().state()

    @property
    def names(self) -> set[str]:
        """With what an eviction holds."""
        return super().names | set(Eviction.row_tensors if self.eviction else ())

    def restore(self, state: dict[str, torch.Tensor], seen: int) -> None:
        """Go on from a state of a layer like this; or of a full one, whose first sinks + recent tokens are the same."""
        super().restore(state, seen)
        if "anchors_BHSD" not in state:
            self.anchor(0, seen)

    def take_back(self, tokens: int) -> None:
        """Count again from so many tokens; contents are not restored."""
        super().take_back(tokens)
        self.forget_plans()

    def rewind(self, tokens: int) -> None:
        """As for any layer; one that is full after so many stays as it is, since any later token costs it the same."""
        if tokens < self.layout.budget:
            self.take_back(tokens)

    def forget_plans(self) -> None:
        """Drop what was computed ahead: slots have changed."""
        self.turned = False
        if self.eviction:
            self.eviction.forget()
        self.tables.sinks.forget()

    def _held(self) -> Iterator[tuple[Any, str]]:
        yield from super()._held()
        if self.eviction and self.is_initialized:
            yield from ((self.eviction, name) for name in self.eviction.row_tensors)

    def _filled(self, name: str) -> int:
        if name == "anchors_BHSD":
            return min(self.seen, self.layout.sinks)
        if name in Eviction.row_tensors:
            return self.members
        if name == "keys" and self.positions.by_rank:  # contested keys are turned to their ranks from plain_BHZD, again
            return self.layout.filled(self.seen)
        return self.members + (0 if name == "plain_BHZD" else self.layout.filled(self.seen))
