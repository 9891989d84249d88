"""Full: never evicts. The reference that every other policy is paired with.

Beyond the context a model was trained on its perplexity grows by itself; such points are labelled in the report.
"""

from dataclasses import dataclass
from typing import ClassVar

from kvstream.policies.base import Policy


@dataclass(frozen=True)
class Full(Policy):
    """Keep every token."""

    name: ClassVar[str] = "full"
