"""KeyDiff: the key most like all the others leaves, per head.

https://arxiv.org/abs/2504.15364. At every step the unit vectors along all held keys are added up, those of the sinks,
the recent tokens and the new one included, and of the contested keys the one at the smallest angle to that sum leaves.
Keys are compared rotated to their index in the text, whatever positions queries see, so that scores do not depend on
the position mode. What RoPE turns of a key is held twice for that, which a sweep's KV memory, of keys and values
kept, does not count; `KVStreamCache.kv_bytes` does.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from kvstream.policies.base import ScoredBy
from kvstream.policies.fields import Axis, Range
from kvstream.policies.sinks_and_recents import SinksAndRecents


@dataclass(frozen=True)
class KeyDiff(SinksAndRecents):
    """Keep the first `start_size` and the last `recent_size` tokens, and of the others the keys that differ most."""

    name: ClassVar[str] = "keydiff"
    scorer: ClassVar[str] = "keydiff"
    scored_by: ClassVar[ScoredBy] = "similarity"
    start_size: Annotated[int, Axis("start_sizes", (0,), "attention sinks"), Range(0)] = 0
