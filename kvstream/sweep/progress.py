"""Progress of a sweep: a bar in a terminal, plain lines in a log, and the time left in both, which `rich` estimates."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_S = 30.0


class Reporter:
    """Tells of each finished cell. Work is measured in tokens, so the time left is fair to long cells."""

    def __init__(self, cells: int, tokens: float) -> None:
        self.cells, self.done = cells, 0
        self.said = time.monotonic()
        # By long cell: since when, and from which share on, it is timed.
        self.begun: dict[str, tuple[float, float]] = {}
        self.terminal = sys.stdout.isatty()
        count, what = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("fields[cells]", "description"))
        columns = BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn(), what
        console = Console(markup=False, emoji=False, highlight=False)
        self.bar = Progress(*columns, console=console, disable=not self.terminal, speed_estimate_period=math.inf)
        self.bar.add_task("starting", total=tokens, cells=f"0/{cells}")
        [self.task] = self.bar.tasks

    def ready(self) -> None:
        """Count time from now, unless something is done: workers have started, and that comes once."""
        if not self.task.completed:
            self.bar.reset(self.task.id)
            self.bar.advance(self.task.id, 0)

    def cell(self, line: str, tokens: int) -> None:
        """Report one more cell as done, finished or failed, and with it so many tokens."""
        self.done += 1
        self.part(line, tokens)

    def drop(self, cells: int, tokens: int) -> None:
        """Count so many cells as done, and so many tokens as none that take time."""
        self.done += cells
        self.task.total = (self.task.total or 0) - tokens

    def part(self, line: str, tokens: int) -> None:
        """Report so many more tokens of a cell as done."""
        self.said = time.monotonic()
        if tokens:
            self.bar.advance(self.task.id, tokens)
        count, left = f"{self.done}/{self.cells}", self.task.time_remaining
        if self.terminal:
            self.bar.update(self.task.id, cells=count, description="")
            self.bar.console.print(line)
        else:
            print(f"[{count}, {'unknown time' if left is None else timedelta(seconds=left)} left] {line}", flush=True)

    def say(self, line: str) -> None:
        """Say what is happening now."""
        if self.terminal:
            self.bar.update(self.task.id, description=line)
        else:
            print(line, flush=True)

    def inside(self, cell: str, what: str, share: float) -> None:
        """Report how far a long cell is: at once in a terminal, every half minute in a log.

        What comes before the first of its share is done, as a warm-up, tells nothing of the pace of the rest.
        """
        now = time.monotonic()
        if share <= self.begun.get(cell, (now, share))[1]:  # its first share, or it is tried again
            self.begun[cell] = now, share
        since, first = self.begun[cell]
        pace = (now - since) / (share - first) if share > first else 0.0
        left = f"{timedelta(seconds=round(pace * (1 - share)))} left" if pace else "starting"
        if self.terminal:
            self.say(f"{left}, {what}")
        elif now - self.said > LOG_S:
            self.said = now
            self.say(f"{cell}: {left}, {what}")
