"""SnapKV while decoding: every so many steps those leave together to which the last queries attended least, per head.

https://arxiv.org/abs/2404.14469, which compresses a prompt once; this is its decoding variant. The attention of the
last `window` queries to each older token is added up (the mean of the query heads that share a kv-head, each query as
it attended when it came) and averaged over `kernel` neighbours in the cache, zeros past the ends, as public code pools.

`budget` is the most that is held between steps: after an eviction budget + 1 − every tokens stay, and the cache grows
again for `every` steps. Papers and public code name what stays; a comparison at equal memory needs what is held. A
sweep's defaults are shares of the budget: 32 and 128 of 256.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from kvstream.policies.base import BoundedPolicy, Regions, ScoredBy
from kvstream.policies.fields import Axis, Range, refuse


@dataclass(frozen=True)
class SnapKV(BoundedPolicy):
    """Keep the last `window` tokens, and every `every` steps of the others those that these attend to most."""

    name: ClassVar[str] = "snapkv"
    scored_by: ClassVar[ScoredBy] = "attention"
    attention_memory: ClassVar[float] = 1.0
    budget: Annotated[int, Range(1)]
    window: Annotated[int, Axis("windows", (0.125,), "newest tokens kept, whose queries score", True), Range(1)] = 32
    kernel: Annotated[int, Range(1, 2**20)] = 5
    every: Annotated[int, Axis("every", (0.5,), "steps from one eviction to the next", True), Range(1)] = 128

    def __post_init__(self) -> None:
        """Check that the window lies between two evictions, and that it and the growth leave room in the budget."""
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise refuse(self, "kernel", self.kernel, "give an odd number")
        if self.window > self.every:
            raise refuse(self, "window", self.window, f"give at most {self.every}, the steps between two evictions")
        if self.budget < self.window + self.every:
            remedy = f"give at least {self.window + self.every}, window + every, or less of these"
            raise refuse(self, "budget", self.budget, remedy)

    @property
    def regions(self) -> Regions:
        """Recents, and the rest contested."""
        return Regions(0, self.budget - self.window, self.window)

    @property
    def in_every_layer(self) -> int:
        """What a layer keeps of recent tokens, and grows by."""
        return self.window + self.every - 1

    def shed(self, regions: Regions) -> tuple[int, int]:
        """Together, every `every` steps."""
        return regions.budget + 1, regions.budget + 1 - self.every

    @property
    def queries_heard(self) -> int:
        """Those of the window."""
        return self.window

    @property
    def pooled(self) -> int:
        """As `kernel` says."""
        return self.kernel
