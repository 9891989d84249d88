"""FixSizeL2: a fixed budget in which older keys compete by their L2 norm, per head.

Keys with a small norm tend to receive much attention, so `keep_low` keeps them (https://arxiv.org/abs/2406.11430);
`keep_high` is its opposite and `random` its control. Attention sinks are not protected, except by their norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from kvstream.policies.base import BoundedPolicy, Regions, ScoredBy, key_norms
from kvstream.policies.draws import uniform_ranks
from kvstream.policies.fields import Axis, Range, share_of

if TYPE_CHECKING:
    import numpy as np
    import torch

Strategy = Literal["keep_low", "keep_high", "random"]


@dataclass(frozen=True)
class FixSizeL2(BoundedPolicy):
    """Keep the newest ⌊budget·keep_ratio⌋ tokens; one older token leaves per step and head, chosen by `strategy`."""

    name: ClassVar[str] = "fix_size_l2"
    budget: Annotated[int, Range(1)]
    keep_ratio: Annotated[float, Axis("keep_ratios", (0.7,), "share of the budget for the newest tokens"), Range(0, 1)]
    strategy: Annotated[Strategy, Axis("strategies", ("keep_low",), "which of the older keys stay")]
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0

    @property
    def regions(self) -> Regions:
        """Recents by ratio, the rest contested."""
        recent = share_of(self.budget, self.keep_ratio)
        return Regions(sinks=0, contested=self.budget - recent, recent=recent)

    @property
    def scored_by(self) -> ScoredBy:
        """By token, unless the leaving one is drawn."""
        return "nothing" if self.strategy == "random" else "token"

    def token_scores(self, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Score by the key's norm, shape (B, H, S); RoPE does not change it."""
        norms_BHS = key_norms(keys_BHSD)
        return -norms_BHS if self.strategy == "keep_low" else norms_BHS

    def draws(self, layer: int, heads: int, steps: range) -> np.ndarray | None:
        """Draw the leaving rank anew at every step, from (seed, layer, head, step) alone."""
        if self.strategy != "random":
            return None
        regions = self.regions_of(layer) or self.regions
        return uniform_ranks(self.seed, layer, heads, steps, regions.contested + 1)
