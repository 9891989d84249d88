"""Machines and workers as the scheduler and the driver see them, and what is heard of workers. Knows no Ray.

A worker does what it is sent one piece after another, in that order; `ray_pool` has workers on Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kvstream.grid.cells import Cell
from kvstream.sweep.work import Work


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its Ray id, CPU cores, GPUs, and bytes of memory that tasks may use."""

    id: str
    cores: int
    gpus: int
    memory: float


@dataclass(frozen=True)
class Slots:
    """What a worker takes of a machine.

    threads: its CPU cores, None for all that its machine has; where the device is a GPU it has one of these, too.
    whole: it is alone on its machine, as for latency, however many threads it computes with.
    """

    device: str
    threads: int | None
    whole: bool = False

    def threads_on(self, node: Node) -> int:
        """With how many threads it computes there."""
        return self.threads or node.cores

    def on(self, node: Node) -> int:
        """How many workers a machine has room for."""
        room = node.cores // self.threads_on(node)
        if self.whole:
            return min(room, 1)
        return room if self.device == "cpu" else min(room, node.gpus)

    def takes(self, node: Node) -> dict[str, Any]:
        """What Ray is asked for."""
        if self.whole:
            return {"num_cpus": node.cores, "num_gpus": node.gpus}
        return {"num_cpus": self.threads_on(node), "num_gpus": int(self.device != "cpu")}


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
    """A worker finished a piece of work, between two readings of its machine's monotonic clock.

    notes: what it found out about its machine, a line each.
    """

    worker: WorkerInfo
    work: Work
    result: Any
    began_s: float
    ended_s: float
    notes: tuple[str, ...] = ()


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

    def idle(self) -> list[WorkerInfo]:
        """Those that may be sent something, those with nothing to do first, and only these while others start."""

    def starting(self) -> bool:
        """Whether more workers are to come."""

    def send(self, worker: WorkerInfo, work: Work) -> None:
        """Give a worker something to do, now or after what it has."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened, as soon as anything has; empty if nothing does in so many seconds. Raises NothingLeft."""

    def close(self) -> None:
        """End all workers, whatever they do."""
