"""What ends a sweep before its last cell: the loss of its machines, or a Ctrl-C, politely.

The first Ctrl-C lets running cells finish, the second stops them, a third what else takes its time. SIGTERM stops cells
at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class NothingLeft(Exception):
    """Nothing can be computed any more: why, and what to do."""


class Interrupt:
    """Counts the wish to stop while it is entered: `draining` after the first, `stopping` after the second."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    @property
    def draining(self) -> bool:
        """Whether nothing new should start."""
        return self.count > 0

    @property
    def stopping(self) -> bool:
        """Whether what runs should end too."""
        return self.count > 1

    def __enter__(self) -> Interrupt:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.stopping:
            raise KeyboardInterrupt
        self.count += 1 if number == signal.SIGINT else 2
        what = "stopping" if self.stopping else "finishing the cells that run; once more to stop them"
        print(f"\n{signal.Signals(number).name}: {what}", file=sys.stderr, flush=True)


@contextmanager
def put_off() -> Iterator[None]:
    """Put a Ctrl-C off until the end of what must not be torn in two; a second one is not."""
    before, came = signal.getsignal(signal.SIGINT), False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            signal.default_int_handler(number, frame)
        came = True

    signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
