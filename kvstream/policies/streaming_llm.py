"""StreamingLLM: the first tokens, which soak up attention ("attention sinks"), and the most recent ones.

https://arxiv.org/abs/2309.17453
"""

from dataclasses import dataclass
from typing import ClassVar

from kvstream.policies.base import Axes, BoundedPolicy, Regions, whole


@dataclass(frozen=True)
class StreamingLLM(BoundedPolicy):
    """Keep the first `start_size` tokens of the text and the last `recent_size`."""

    name: ClassVar[str] = "streaming_llm"
    start_size: int
    recent_size: int

    def __post_init__(self) -> None:
        """Either size may be 0, but not both."""
        super().__post_init__()
        whole(self, "start_size", 0)
        whole(self, "recent_size", 0 if self.start_size else 1)

    @classmethod
    def at_budget(cls, budget: int, axes: Axes) -> list[BoundedPolicy]:
        """Each start_size, the rest of the budget recent."""
        for start_size in axes.start_sizes:
            if start_size >= budget:
                raise ValueError(
                    f"start_sizes: {start_size} leaves no recent token in a budget of {budget}; "
                    "give fewer sinks or a larger budget"
                )
        return [cls(start_size, budget - start_size) for start_size in axes.start_sizes]

    @property
    def regions(self) -> Regions:
        """Sinks and recents, nothing contested."""
        return Regions(sinks=self.start_size, contested=0, recent=self.recent_size)
