"""Where the keys and queries of one layer stand, in each of the three position modes (see `BoundedPolicy.position`).

A key is stored rotated to the position it had when it came. In "cache" mode recent keys keep their true distances to
the query, so they may stay there while the query stands at its index t; older keys, at their rank, are then nearer
than by index: by `shift`, once the budget is full.

A rank falls whenever an older key leaves, so no rotation of keys or queries serves two queries alike. What is turned
instead is the distance d between them: with q·conj(k) = a + ib for each pair of dimensions, the score is the sum of
a·cos(d) − b·sin(d) at the pair's frequency, plus the product of the dimensions that are not rotated. Backends compute
that (`block_by_rank`) from `Ranks`.

Shape legend: T queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvstream.engine.rope import Rotation
from kvstream.policies.base import Position


@dataclass(frozen=True)
class Positions:
    """One mode, and the budget of the layer."""

    mode: Position
    budget: int

    @property
    def by_rank(self) -> bool:
        """Whether older keys move as others leave."""
        return self.mode == "cache"

    @property
    def cap(self) -> int | None:
        """The highest position of any key or query, if there is one."""
        return self.budget if self.mode == "frozen" else None

    def of(self, token: int) -> int:
        """The position of a token's key and query as it comes."""
        return token if self.cap is None else min(token, self.cap)

    def shift(self, token: int) -> int:
        """How much nearer than by index older keys are to a token's query."""
        return max(0, token - self.budget) if self.by_rank else 0


@dataclass(frozen=True)
class Ranks:
    """Positions by rank: the lowest rank of a contested key, the budget, and the rotations to 0 … budget."""

    first: int
    budget: int
    table: Rotation

    def positions(self, query_T: torch.Tensor) -> torch.Tensor:
        """How far above the oldest contested key queries with these token indices stand, (T,)."""
        return query_T.clamp(max=self.budget) - self.first
