"""Progress of a sweep: a bar with the time left in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LOG_S = 30.0


class Reporter:
    """Tells of each finished cell; a context manager. Work is measured in tokens, so the ETA is fair to long cells."""

    def __init__(self, cells: int, tokens: int) -> None:
        self.cells, self.tokens = cells, tokens
        self.done = self.done_tokens = 0
        self.started = self.last = self.said = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> Reporter:
        """Show the bar where there is a terminal."""
        if sys.stdout.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=Console())
            self.task = self.bar.add_task("starting", total=self.cells)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away, leaving its last state on the screen."""
        if self.bar:
            self.bar.stop()

    def ready(self) -> None:
        """Count time from now, unless something is done: workers have started, and that comes once."""
        if not self.done_tokens:
            self.started = time.monotonic()

    def cell(self, line: str, tokens: int) -> None:
        """Report one more cell as done, finished or failed, and with it so many tokens."""
        self.done += 1
        self.part(line, tokens)

    def drop(self, cells: int, tokens: int) -> None:
        """Count so many cells as done, and their tokens as none that take time."""
        self.done += cells
        self.tokens -= tokens

    def spare(self, line: str, tokens: int) -> None:
        """Tell that so many tokens need not be computed, as an earlier sweep has."""
        self.tokens -= tokens
        self.part(line, 0)

    def part(self, line: str, tokens: int) -> None:
        """Report so many more tokens of a cell as done."""
        self.done_tokens += tokens
        self.last = self.said = time.monotonic()
        left = _duration(self._seconds_left()) if self.done_tokens else "unknown time"
        if self.bar:
            self.bar.console.print(line, highlight=False, markup=False)
            self.bar.update(self.task, completed=self.done, description=f"{left} left")
        else:
            print(f"[{self.done}/{self.cells}, {left} left] {line}", flush=True)

    def say(self, line: str) -> None:
        """Say what is happening now."""
        if self.bar:
            self.bar.update(self.task, description=line)
        else:
            print(line, flush=True)

    def inside(self, cell: str, what: str, share: float) -> None:
        """Report how far a long cell is: at once in a terminal, every half minute in a log."""
        elapsed = time.monotonic() - self.last
        left = f"{_duration(elapsed * (1 - share) / share)} left" if share > 0 else "starting"
        if self.bar:
            self.say(f"{left}, {what}")
        elif time.monotonic() - self.said > LOG_S:
            self.said = time.monotonic()
            self.say(f"{cell}: {left}, {what}")

    def _seconds_left(self) -> float:
        elapsed = time.monotonic() - self.started
        return elapsed * (self.tokens - self.done_tokens) / max(self.done_tokens, 1)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
