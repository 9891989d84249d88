"""What a worker takes of a machine, and how many fit: one GPU each, some CPU cores, or the whole. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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


def divide(device: str, nodes: list[Node], threads: int | None, cells: int, needed: float = 0.0) -> Slots:
    """Divide the cluster among quality cells: one GPU each, or as many CPU cores that all are busy.

    threads: asked for, else chosen. needed: the bytes of the largest cell; a node that can hold it must have the cores.
    """
    if device != "cpu":
        return Slots(device, threads or 1)

    def fit(each: int) -> int:
        return sum(node.cores // each for node in nodes)

    most = max(node.cores for node in nodes if node.memory >= needed)
    return Slots(device, threads or next((each for each in range(most, 1, -1) if fit(each) >= cells), 1))
