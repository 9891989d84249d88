"""Which machines live while cells run, and when nothing can be computed any more. Ray itself would wait for minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvstream.sweep import cluster
from kvstream.sweep.interrupt import NothingLeft
from kvstream.sweep.slots import Node, Slots

PAUSE_S = 1.0  # between two looks
SILENCE_S = 20.0  # for how long Ray's head may be silent: it may be started again, but after 60 s Ray ends the driver
ALONE_S = 60.0  # for how long there may be no machine: another may join
AGAIN = "repeat the sweep, after `ray start` if a Ray that you had started no longer runs"
ENDED = f"the Ray on this machine has ended; {AGAIN}"


class Watch:
    """Looks after the machines that have such slots; on CPUs also after those that come later."""

    def __init__(self, slots: Slots, nodes: list[Node]) -> None:
        self.nodes = nodes
        self._known = {node.id: node for node in nodes}
        self._left_out: set[str] = set()  # machines with another kvstream
        self._lifeline = cluster.Lifeline()
        self.begin(slots)

    def begin(self, slots: Slots) -> None:
        """Be patient anew."""
        self.slots = slots
        self._looked = self._head_heard = self._had_nodes = time.monotonic()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Use Ray's object store; raises NothingLeft if the Ray on this machine has ended, before or meanwhile."""
        self._feel()
        try:
            yield
        except OSError as error:  # a broken pipe, say
            self._feel()
            raise NothingLeft(f"the Ray on this machine does not answer any more ({error}); {AGAIN}") from error

    def look(self, *, at_once: bool = False) -> None:
        """Find out which machines live, once in so many seconds; raises NothingLeft if none can be used any more."""
        self._feel()
        now = time.monotonic()
        if not at_once and now - self._looked < PAUSE_S:
            return
        self._looked = now
        if why := cluster.silence():  # asked first, as Ray's own questions then wait for a minute
            if now - self._head_heard > SILENCE_S:
                raise NothingLeft(f"Ray's head does not answer any more ({why}); {AGAIN}")
            return
        self._head_heard = time.monotonic()
        living = cluster.machines()
        if cluster.here() not in {node.id for node in living}:
            raise NothingLeft(ENDED)
        self.nodes = [self._known.get(node.id, node) for node in living if self._is_fit(node)]
        if self.nodes:
            self._had_nodes = time.monotonic()
        elif time.monotonic() - self._had_nodes > ALONE_S:
            self._give_up()

    def _is_fit(self, node: Node) -> bool:
        mine = node.id in self._known or self.slots.device == "cpu"
        return mine and node.id not in self._left_out and bool(node.cores and self.slots.on(node))

    def leave_out(self, node: Node, why: str) -> None:
        """Say, once, why a machine gets nothing to compute."""
        if node.id not in self._left_out:
            print(f"\nleft out: {why}", file=sys.stderr, flush=True)
        self._left_out.add(node.id)
        self.nodes = [each for each in self.nodes if each.id != node.id]

    def same(self, nodes: Sequence[Node]) -> bool:
        """Whether these are its machines, and the Ray it watches the one that this process uses."""
        return self.same_ray() and set(self.nodes) == set(nodes)

    def same_ray(self) -> bool:
        """Whether the Ray that it watches still runs."""
        return not self._lifeline.broken()

    def _feel(self) -> None:
        if self._lifeline.broken():
            raise NothingLeft(ENDED)

    def _give_up(self) -> None:
        same = " and the same kvstream as the driver" if self._left_out else ""
        todo = "install that on all machines, and repeat the sweep" if self._left_out else AGAIN
        cpus = f"{self.slots.threads} CPUs" if self.slots.threads else "CPUs"
        raise NothingLeft(f"no machine with {cpus} for a cell{same} is left; {todo}")
