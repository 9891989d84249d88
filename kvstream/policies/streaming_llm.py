"""StreamingLLM: the first tokens, which soak up attention ("attention sinks"), and the most recent ones.

https://arxiv.org/abs/2309.17453
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from kvstream.policies.base import BoundedPolicy, Regions
from kvstream.policies.fields import Axis, Range


@dataclass(frozen=True)
class StreamingLLM(BoundedPolicy):
    """Keep the first `start_size` tokens of the text and the last `recent_size`; one may be 0."""

    name: ClassVar[str] = "streaming_llm"
    scorer: ClassVar[str] = "none"
    start_size: Annotated[int, Axis("start_sizes", (4,), "attention sinks"), Range(0)]
    recent_size: Annotated[int, Range(0)]

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
