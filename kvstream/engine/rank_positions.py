"""Keys whose position is their rank in the cache, by age.

A rank falls whenever an older key leaves, so no rotation of keys or queries serves two queries alike. What is turned
instead is the distance d between them: with q·conj(k) = a + ib for each pair of dimensions, the score is the sum of
a·cos(d) − b·sin(d) at the pair's frequency, plus the product of the dimensions that are not rotated. Backends compute
that (`block_by_rank`); here stands what they need to know.

Shape legend: T queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvstream.engine.rope import Rotation


@dataclass(frozen=True)
class Ranks:
    """Positions by rank: the lowest rank of a contested key, the budget, and the rotations to 0 … budget."""

    first: int
    budget: int
    table: Rotation

    def positions(self, query_T: torch.Tensor) -> torch.Tensor:
        """How far above the oldest contested key queries with these token indices stand, (T,)."""
        return query_T.clamp(max=self.budget) - self.first
