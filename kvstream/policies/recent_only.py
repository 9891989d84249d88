"""RecentOnly: a sliding window, the baseline that shows what losing the attention sinks costs.

"Window attention" in https://arxiv.org/abs/2309.17453
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from kvstream.policies.base import BoundedPolicy, Regions
from kvstream.policies.fields import Range


@dataclass(frozen=True)
class RecentOnly(BoundedPolicy):
    """Keep the last `window_size` tokens."""

    name: ClassVar[str] = "recent_only"
    window_size: Annotated[int, Range(1)]

    @classmethod
    def at_budget(cls, budget: int, **fields: Any) -> BoundedPolicy:
        """The budget is the window."""
        return cls(window_size=budget, **fields)

    @property
    def regions(self) -> Regions:
        """Recents only."""
        return Regions(sinks=0, contested=0, recent=self.window_size)
