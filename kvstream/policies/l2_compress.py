"""L2Compress (KNorm): a full cache is cut to a share of itself, in which the keys with the smallest norms stay.

https://arxiv.org/abs/2406.11430. Nothing is protected, not even the newest token. The number of tokens held is a
saw-tooth between ⌈prune_after · keep_ratio⌉ and prune_after − 1; the budget is `prune_after`, the most that a query
sees. RoPE does not change a norm.

Where the share is so large that a cut would leave all (⌈prune_after · keep_ratio⌉ = prune_after: a ratio above
1 − 1/prune_after), the definition goes on beyond its budget; here one token leaves all the same, as soon as
`prune_after` are held. Small layers of a pyramid, cut as `prune_after` says of theirs, come to that first; none is
smaller than two tokens, as one that held a single token would have nothing to choose from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kvstream.policies.base import BoundedPolicy, Regions, ScoredBy, key_norms
from kvstream.policies.fields import Axis, Range

if TYPE_CHECKING:
    import torch

LEAST = 2  # of one token a cut would leave nothing, or all


@dataclass(frozen=True)
class L2Compress(BoundedPolicy):
    """Once `prune_after` tokens are held, keep ⌈prune_after · keep_ratio⌉ of them, per head: at least one leaves."""

    name: ClassVar[str] = "l2_compress"
    scored_by: ClassVar[ScoredBy] = "token"
    scores_turned_alike: ClassVar[bool] = True
    keep_ratio: Annotated[float, Axis("compress_ratios", (0.5,), "share of the tokens that a cut leaves"), Range(0, 1)]
    prune_after: Annotated[int, Range(LEAST)]

    @property
    def regions(self) -> Regions:
        """Everything contested."""
        return Regions(0, self.prune_after, 0)

    @property
    def in_every_layer(self) -> int:
        """The fewest that can be cut."""
        return LEAST

    @classmethod
    def at_budget(cls, budget: int, **fields: Any) -> L2Compress:
        """The budget is `prune_after`."""
        return cls(prune_after=budget, **fields)

    def shed(self, regions: Regions) -> tuple[int, int]:
        """As soon as so many are held."""
        stay = math.ceil(regions.budget * Fraction(self.keep_ratio).limit_denominator(10**6))
        return regions.budget, min(max(stay, self.keep_ratio > 0), regions.budget - 1)

    def token_scores(self, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Score by the key's norm, shape (B, H, S): the largest leave."""
        return -key_norms(keys_BHSD)
