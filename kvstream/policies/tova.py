"""TOVA: whoever the last query attends to least leaves, the newest token included.

https://arxiv.org/abs/2401.06104. One set of tokens is kept for all heads of a layer, by the mean of all query heads.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from kvstream.policies.base import BoundedPolicy, Regions, ScoredBy
from kvstream.policies.fields import Range


@dataclass(frozen=True)
class TOVA(BoundedPolicy):
    """Keep the `budget` tokens that received most of the last query's attention at every step; nothing is protected."""

    name: ClassVar[str] = "tova"
    shared_by_heads: ClassVar[bool] = True
    scored_by: ClassVar[ScoredBy] = "attention"
    attention_memory: ClassVar[float] = 0.0
    budget: Annotated[int, Range(1)]

    @property
    def regions(self) -> Regions:
        """Everything contested."""
        return Regions(sinks=0, contested=self.budget, recent=0)
