"""SinkL2: sinks and recent tokens are protected, and of the others the key with the largest L2 norm leaves, per head.

As https://arxiv.org/abs/2406.11430 scores keys, with the ends protected. RoPE does not change a norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvstream.policies.base import ScoredBy, key_norms
from kvstream.policies.sinks_and_recents import SinksAndRecents

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SinkL2(SinksAndRecents):
    """Keep the first `start_size` and the last `recent_size` tokens, and of the others those of small norms."""

    name: ClassVar[str] = "sink_l2"
    scorer: ClassVar[str] = "l2"
    scored_by: ClassVar[ScoredBy] = "token"

    def token_scores(self, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Score by the key's norm, shape (B, H, S): the largest leaves."""
        return -key_norms(keys_BHSD)
