"""SinkL2: sinks and recent tokens are protected, and of the others the key with the largest L2 norm leaves, per head.

As https://arxiv.org/abs/2406.11430 scores keys, with the ends protected. RoPE does not change a norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from kvstream.policies.base import BoundedPolicy, Regions, ScoredBy, key_norms
from kvstream.policies.fields import Axis, Range

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SinkL2(BoundedPolicy):
    """Keep the first `start_size` and the last `recent_size` tokens, and of the others those of small norms."""

    name: ClassVar[str] = "sink_l2"
    scorer: ClassVar[str] = "l2"
    budget: Annotated[int, Range(1)]
    recent_size: Annotated[int, Axis("recents", (0.5,), "newest tokens kept, or a share of the budget", True), Range(0)]
    start_size: Annotated[int, Axis("start_sizes", (4,), "attention sinks"), Range(0)] = 4

    @property
    def regions(self) -> Regions:
        """Sinks, recents, and what they leave of the budget."""
        return Regions(self.start_size, self.budget - self.start_size - self.recent_size, self.recent_size)

    @property
    def scored_by(self) -> ScoredBy:
        """By token."""
        return "token"

    def token_scores(self, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Score by the key's norm, shape (B, H, S): the largest leaves."""
        return -key_norms(keys_BHSD)
