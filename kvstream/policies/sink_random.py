"""SinkRandom: sinks and recent tokens are protected, and of the others one drawn at random leaves, per head.

The control of every policy that scores what lies between: what a scorer adds is what it does better than this
(https://arxiv.org/abs/2605.18053 compares scorers so).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from kvstream.policies.draws import uniform_ranks
from kvstream.policies.fields import Range
from kvstream.policies.sinks_and_recents import SinksAndRecents

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SinkRandom(SinksAndRecents):
    """Keep the first `start_size` and the last `recent_size` tokens; of the others one leaves per step, by lot."""

    name: ClassVar[str] = "sink_random"
    scorer: ClassVar[str] = "random"
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0

    def draws(self, layer: int, heads: int, steps: range) -> np.ndarray:
        """Draw the leaving rank anew at every step, from (seed, layer, head, step) alone."""
        regions = self.regions_of(layer) or self.regions
        return uniform_ranks(self.seed, layer, heads, steps, regions.contested + 1)
