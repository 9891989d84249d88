"""A layer that never evicts.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T tokens of this call, D head size.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from kvstream.engine.layer import Layer
from kvstream.engine.shared_tables import SharedTables


class UnboundedLayer(Layer):
    """Keeps every token, in buffers that double when they are full, or never if `capacity` tokens suffice."""

    is_croppable = True

    def __init__(self, tables: SharedTables, capacity: int | None = None) -> None:
        super().__init__(tables)
        self.capacity = capacity or 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the capacity asked for."""
        super().lazy_initialization(key_states, value_states)
        B, H, _, D = key_states.shape
        self.keys = key_states.new_empty(B, H, self.capacity, D)
        self.values = torch.empty_like(self.keys)

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        T, start, G = k_BHTD.shape[2], self.seen, q_BHGTD.shape[2]
        self._reserve(start + T)
        if T > 1:
            return self.backend.causal(self, q_BHGTD, k_BHTD, v_BHTD, scaling)
        rotated = self.tables.rotation_of((start,), k_BHTD)(torch.cat((q_BHGTD[..., 0, :], k_BHTD), dim=2))
        self.keys[:, :, start] = rotated[:, :, G]
        self.values[:, :, start] = v_BHTD[:, :, 0]
        self.seen += 1
        held = slice(self.seen)
        outputs = self.backend.step(rotated[:, :, :G], self.keys[:, :, held], self.values[:, :, held], scaling)
        return outputs[..., None, :]

    def _filled(self, name: str) -> int:  # noqa: ARG002
        return self.seen

    def _reserve(self, tokens: int) -> None:
        if tokens > (held := self.keys.shape[2]):
            more = (0, 0, 0, max(tokens, 2 * held) - held)
            with torch.inference_mode(False):
                self.keys, self.values = functional.pad(self.keys, more), functional.pad(self.values, more)
