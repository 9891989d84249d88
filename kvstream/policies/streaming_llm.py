"""StreamingLLM: the first tokens, which soak up attention ("attention sinks"), and the most recent ones.

https://arxiv.org/abs/2309.17453
"""

from dataclasses import dataclass
from typing import ClassVar

from kvstream.policies.base import BoundedPolicy, Regions, whole


@dataclass(frozen=True)
class StreamingLLM(BoundedPolicy):
    """Keep the first `start_size` tokens of the text and the last `recent_size`."""

    name: ClassVar[str] = "streaming_llm"
    start_size: int
    recent_size: int

    def __post_init__(self) -> None:
        """Sinks may be none; without a recent token the newest key would never be kept."""
        super().__post_init__()
        whole(self, "start_size", 0)
        whole(self, "recent_size", 1)

    @property
    def regions(self) -> Regions:
        """Sinks and recents, nothing contested."""
        return Regions(sinks=self.start_size, contested=0, recent=self.recent_size)
