"""Which machines live while cells run. Whether Ray's head and this machine do, Ray itself watches and tells."""

from __future__ import annotations

import sys
import time

from kvstream.grid.terminal import counted
from kvstream.sweep import cluster
from kvstream.sweep.interrupt import NothingLeft
from kvstream.sweep.pool import Node, Slots

PAUSE_S = 1.0  # between two looks
ALONE_S = 60.0  # for how long there may be no machine: another may join


class Watch:
    """Looks after the machines that have such slots; on CPUs also after those that come later."""

    def __init__(self, slots: Slots, nodes: list[Node]) -> None:
        self.slots = slots
        self.nodes = {node.id: node for node in nodes}  # those to use
        self._known = dict(self.nodes)
        self._left_out: set[str] = set()  # machines with another kvstream
        self._looked = self._had_nodes = time.monotonic()

    def look(self, *, at_once: bool = False) -> None:
        """Find out which machines live, once in so many seconds; raises NothingLeft if there was none for long."""
        now = time.monotonic()
        if not at_once and now - self._looked < PAUSE_S:
            return
        self._looked = now
        self.nodes = {node.id: self._known.get(node.id, node) for node in cluster.machines() if self._is_fit(node)}
        if self.nodes:
            self._had_nodes = now
        elif now - self._had_nodes > ALONE_S:
            same = " and the same kvstream as the driver" if self._left_out else ""
            todo = "install that on all machines, and repeat the sweep" if self._left_out else "repeat the sweep"
            cpus = counted(self.slots.threads, "CPU") if self.slots.threads else "CPUs"
            raise NothingLeft(f"no machine with {cpus} for a cell{same} is left; {todo}")

    def _is_fit(self, node: Node) -> bool:
        mine = node.id in self._known or self.slots.device == "cpu"
        return mine and node.id not in self._left_out and self.slots.on(node) > 0

    def leave_out(self, node: Node, why: str) -> None:
        """Say, once, why a machine gets nothing to compute."""
        if node.id not in self._left_out:
            print(f"\nleft out: {why}", file=sys.stderr, flush=True)
        self._left_out.add(node.id)
        self.nodes.pop(node.id, None)
