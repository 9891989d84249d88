"""Workers as the scheduler and the driver see them, and what is heard of them. Knows no Ray, as `ray_pool` does.

A worker does what it is sent one piece after another, in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kvstream.grid.cells import Cell
from kvstream.sweep.work import Work


@dataclass(frozen=True)
class WorkerInfo:
    """A worker: on which machine, with how many threads and how much memory.

    memory_of: whose memory that is, a machine's or a GPU's; workers with the same share it.
    """

    id: str
    node: str
    threads: int
    memory_bytes: float
    memory_of: str


@dataclass(frozen=True)
class Told:
    """A worker told how far it is."""

    worker: WorkerInfo
    work: Work
    progress: Any


@dataclass(frozen=True)
class Done:
    """A worker finished a piece of work, between two readings of its machine's monotonic clock."""

    worker: WorkerInfo
    work: Work
    result: Any
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Failed:
    """A piece of work raised an error; its worker lives."""

    worker: WorkerInfo
    work: Work
    error: BaseException


@dataclass(frozen=True)
class Lost:
    """A worker is no more, with all it had, and why: its process died, or its machine was lost or fell silent."""

    worker: WorkerInfo
    error: BaseException


Event = Told | Done | Failed | Lost


class Pool(Protocol):
    """Workers that compute with one model at a time."""

    def load(self, cell: Cell, say: Callable[[str], None]) -> None:
        """Have workers compute with this cell's model from now on; raises what speaks against it."""
        ...

    def idle(self) -> list[WorkerInfo]:
        """Those that may be sent something, those with nothing to do first, and only these while others start."""
        ...

    def starting(self) -> bool:
        """Whether more workers are to come."""
        ...

    def send(self, worker: WorkerInfo, work: Work) -> None:
        """Give a worker something to do, now or after what it has."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """What happened, as soon as anything has; empty if nothing does in so many seconds. Raises NothingLeft."""
        ...

    def close(self) -> None:
        """End all workers, whatever they do."""
        ...
