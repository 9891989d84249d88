"""StreamingLLM: the first tokens, which soak up attention ("attention sinks"), and the most recent ones.

https://arxiv.org/abs/2309.17453
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from kvstream.policies.base import BoundedPolicy, Regions
from kvstream.policies.fields import Axis, Range, refuse


@dataclass(frozen=True)
class StreamingLLM(BoundedPolicy):
    """Keep the first `start_size` tokens of the text and the last `recent_size`."""

    name: ClassVar[str] = "streaming_llm"
    start_size: Annotated[int, Axis("start_sizes", (4,), "attention sinks"), Range(0)]
    recent_size: Annotated[int, Range(0)]

    def __post_init__(self) -> None:
        """Either size may be 0, but not both."""
        super().__post_init__()
        if not self.start_size and not self.recent_size:
            raise refuse(self, "recent_size", 0, "without sinks give at least 1")

    @classmethod
    def at_budget(cls, budget: int, **fields: Any) -> BoundedPolicy:
        """The rest of the budget is recent."""
        if (start_size := fields["start_size"]) >= budget:
            raise ValueError(
                f"start_sizes: {start_size} leaves no recent token in a budget of {budget}; "
                "give fewer sinks or a larger budget"
            )
        return cls(recent_size=budget - start_size, **fields)

    @property
    def regions(self) -> Regions:
        """Sinks and recents, nothing contested."""
        return Regions(sinks=self.start_size, contested=0, recent=self.recent_size)
