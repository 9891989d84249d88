"""What ends a sweep before its last cell: the loss of its machines, or a Ctrl-C, politely.

The first Ctrl-C lets running cells finish, the second stops them, a third what else takes its time. SIGTERM stops cells
at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class NothingLeft(Exception):
    """Nothing can be computed any more: why, and what to do."""


@dataclass
class Interrupt:
    """Counts the wishes to stop."""

    count: int = 0

    @property
    def draining(self) -> bool:
        """Whether nothing new should start."""
        return self.count > 0

    @property
    def stopping(self) -> bool:
        """Whether what runs should end too."""
        return self.count > 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over, and give them back."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.stopping:
            raise KeyboardInterrupt
        self.count += 1 if number == signal.SIGINT else 2
        what = "stopping" if self.stopping else "finishing the cells that run; once more to stop them"
        print(f"\n{signal.Signals(number).name}: {what}", file=sys.stderr, flush=True)
