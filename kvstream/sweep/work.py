"""What a worker is sent: a quality job (`jobs`), a latency cell, or a question about their model. Knows no Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvstream.grid.cells import Cell, RecomputeCell, TextCell
from kvstream.grid.memory_needed import needed_bytes, own_weights_bytes, text_bytes

CHECK_TOKENS = 512  # of a text, with which a model is checked


@dataclass(frozen=True, kw_only=True, eq=False)
class Work(ABC):
    """Cells of one model that a worker computes in one go, from token `start` on.

    attempt: how often it was tried, this time included.
    """

    cells: tuple[Cell, ...]
    attempt: int = 1
    start: int = 0

    @property
    def text(self) -> tuple[str, ...]:
        """The names of its documents; empty where work on one text has nothing in common."""
        return ()

    @property
    def joint(self) -> bool:
        """Whether an error in it may be the matter of another cell."""
        return False

    @property
    def memory_bytes(self) -> float:
        """What it needs beside what is on its machine already, if that is worth counting."""
        return 0.0

    @property
    @abstractmethod
    def call(self) -> tuple[str, dict[str, Any]]:
        """Which method of a `Worker` does it, and with what."""

    def once_more(self) -> Sequence[Work]:
        """What to try when it has failed."""
        return [replace(self, attempt=self.attempt + 1)]


class Check(Work):
    """Does kvstream compute what the model of these cells does? Asked with ordinary tokens, if there are any."""

    @property
    def memory_bytes(self) -> float:
        """The weights, so that a GPU is asked which can hold them."""
        return own_weights_bytes(self.cells[0])

    @property
    def call(self) -> tuple[str, dict[str, Any]]:
        """Ask."""
        first = self.cells[0]
        ids_T = first.document.token_ids[:CHECK_TOKENS] if isinstance(first, TextCell) else None
        return "check", {"token_ids_T": ids_T}


class Recomputing(Work):
    """A text of which a sample of tokens is told by windows that are run anew."""

    @property
    def memory_bytes(self) -> float:
        """What its windows need."""
        [cell] = self.cells
        assert isinstance(cell, RecomputeCell)
        return own_weights_bytes(cell) + text_bytes(cell)

    @property
    def call(self) -> tuple[str, dict[str, Any]]:
        """Run them."""
        [cell] = self.cells
        assert isinstance(cell, RecomputeCell)
        given = {"window": cell.window, "every": cell.every, "cell": cell.key, "document": cell.document.name}
        return "recompute", given | {"token_ids_T": cell.document.token_ids}


class Timing(Work):
    """A latency cell, alone on its machine."""

    @property
    def memory_bytes(self) -> float:
        """All that it needs."""
        return needed_bytes(self.cells[0])

    @property
    def call(self) -> tuple[str, dict[str, Any]]:
        """Measure it."""
        return "latency", {"cell": self.cells[0]}
