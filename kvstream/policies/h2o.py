"""H2O: of the older tokens those stay that have received most attention so far, the heavy hitters.

https://arxiv.org/abs/2306.14048. As the paper decodes: scores begin with the first token and add up while a token is
cached. Public evaluation code that picks heavy hitters from the column sums of a whole sequence's attention sees the
future, and is not comparable; other code divides a sum by its token's age, which is `normalise="age"`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from kvstream.policies.base import ScoredBy
from kvstream.policies.fields import Axis, Range
from kvstream.policies.sinks_and_recents import SinksAndRecents

Normalise = Literal["none", "age"]


@dataclass(frozen=True)
class H2O(SinksAndRecents):
    """Keep the first `start_size` and the last `recent_size` tokens; of the others the lowest sum of attention leaves.

    A token's sum takes the mean of the query heads that share its kv-head, query by query, its own included.
    """

    name: ClassVar[str] = "h2o"
    scorer: ClassVar[str] = "h2o"
    scored_by: ClassVar[ScoredBy] = "attention"
    attention_memory: ClassVar[float] = 1.0
    start_size: Annotated[int, Axis("start_sizes", (0,), "attention sinks"), Range(0)] = 0
    normalise: Annotated[Normalise, Axis("normalise", ("none",), "what a sum of attention is divided by")] = "none"

    @property
    def per_age(self) -> bool:
        """As `normalise` says."""
        return self.normalise == "age"
