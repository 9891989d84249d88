"""A layer whose evictions follow attention: tokens pass it one after another, in any number per call.

Whom a query sees depends on what the queries before it saw, so within such a layer nothing can be settled ahead. What
passes it one by one are attention scores alone; projections and MLP stay products over a whole chunk. The loop is the
backend's (`Backend.scan`): compiled on CPUs.

A token that leaves frees its slot for the next one, so slots are in no order; `order_BUS` lists them by the age of
their tokens, those that are free last. Where ranks are positions, keys are kept unrotated, as ranks change.

Shape legend: B batch, H kv-heads, U sets of kept tokens (H, or 1 where heads share one), S slots, G query heads per
kv-head, T tokens, D head size.
"""

from __future__ import annotations

import torch

from kvstream.engine.layer import Layer
from kvstream.engine.positions import Positions
from kvstream.engine.rope import Rotation
from kvstream.engine.shared_tables import SharedTables
from kvstream.policies import BoundedPolicy


class ScannedLayer(Layer):
    """One layer under a policy scored by attention.

    score_BHS: what the policy makes of the attention that each token has received, float64, as it adds up.
    token_BUS: which token of the text a slot holds.
    """

    row_tensors = ("keys", "values", "score_BHS", "order_BUS", "token_BUS")

    def __init__(self, tables: SharedTables, policy: BoundedPolicy, layer: int) -> None:
        super().__init__(tables)
        regions = policy.regions_of(layer)
        assert regions is not None, "a layer with a budget has regions"
        self.policy, self.regions = policy, regions
        self.positions = Positions(policy.position, regions.budget)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots: the budget, and one for the token that comes."""
        super().lazy_initialization(key_states, value_states)
        (B, H, _, D), S = key_states.shape, self.regions.budget + 1
        self.keys = key_states.new_zeros(B, H, S, D)
        self.values = torch.zeros_like(self.keys)
        self.score_BHS = key_states.new_zeros(B, H, S, dtype=torch.float64)
        sets = 1 if self.policy.shared_by_heads else H
        self.order_BUS = torch.arange(S, device=self.device).repeat(B, sets, 1)
        self.token_BUS = torch.zeros_like(self.order_BUS)
        self.distances: Rotation | None = None  # rotations to 0 … budget, where ranks are positions
        if self.positions.by_rank:
            self.distances = self.tables.rope.at(torch.arange(S), key_states)

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        T = k_BHTD.shape[2]
        if not self.positions.by_rank:
            rotate = self.tables.rotation(self.seen, T, self.positions.cap, k_BHTD)
            q_BHGTD, k_BHTD = rotate(q_BHGTD), rotate(k_BHTD)
        output_BHGTD = self.backend.scan(self, q_BHGTD, k_BHTD, v_BHTD, scaling)
        self.seen += T
        return output_BHGTD

    @property
    def kept(self) -> int:
        """How many tokens are held."""
        return min(self.seen, self.regions.budget)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything this layer holds; in the free slot, nothing instead of what memory happened to hold."""
        free_BU = self.order_BUS[:, :, self.regions.budget, None]
        free_BH = free_BU.expand(*self.score_BHS.shape[:2], 1)
        self.score_BHS.scatter_(2, free_BH, 0.0)
        self.token_BUS.scatter_(2, free_BU, 0)
        for slots_BHSD in (self.keys, self.values):
            slots_BHSD.scatter_(2, free_BH[..., None].expand(-1, -1, -1, slots_BHSD.shape[-1]), 0.0)
        return super().state()

    def rewind(self, tokens: int) -> None:
        """As for any layer; one that is full stays as it is, since any later token costs it the same."""
        if tokens < self.regions.budget:
            self.take_back(tokens)

    def _filled(self, name: str) -> int:  # noqa: ARG002
        return min(self.seen, self.regions.budget + 1)
