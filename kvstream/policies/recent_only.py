"""RecentOnly: a sliding window, the baseline that shows what losing the attention sinks costs.

"Window attention" in https://arxiv.org/abs/2309.17453
"""

from dataclasses import dataclass
from typing import ClassVar

from kvstream.policies.base import Axes, BoundedPolicy, Regions, whole


@dataclass(frozen=True)
class RecentOnly(BoundedPolicy):
    """Keep the last `window_size` tokens."""

    name: ClassVar[str] = "recent_only"
    window_size: int

    def __post_init__(self) -> None:
        """A window holds at least one token."""
        super().__post_init__()
        whole(self, "window_size", 1)

    @classmethod
    def at_budget(cls, budget: int, axes: Axes) -> list[BoundedPolicy]:  # noqa: ARG003
        """The budget is the window."""
        return [cls(budget)]

    @property
    def regions(self) -> Regions:
        """Recents only."""
        return Regions(sinks=0, contested=0, recent=self.window_size)
