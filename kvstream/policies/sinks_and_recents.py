"""What policies share that protect sinks and recent tokens, and differ in who of the others leaves."""

from dataclasses import dataclass
from typing import Annotated

from kvstream.policies.base import BoundedPolicy, Regions
from kvstream.policies.fields import Axis, Range


@dataclass(frozen=True)
class SinksAndRecents(BoundedPolicy):
    """Keep the first `start_size` and the last `recent_size` tokens, and some of those between."""

    budget: Annotated[int, Range(1)]
    recent_size: Annotated[int, Axis("recents", (0.5,), "newest tokens kept, or a share of the budget", True), Range(0)]
    start_size: Annotated[int, Axis("start_sizes", (4,), "attention sinks"), Range(0)] = 4

    @property
    def regions(self) -> Regions:
        """Sinks, recents, and what they leave of the budget."""
        return Regions(self.start_size, self.budget - self.start_size - self.recent_size, self.recent_size)
