"""Which machines live while cells run, and when nothing can be computed any more.

Ray itself lets a task that no machine can run wait for ever.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kvstream.sweep import cluster
from kvstream.sweep.cluster import Node
from kvstream.sweep.interrupt import Lost

PAUSE_S = 1.0  # between two looks
ENDING_S = 5.0  # within which a Ray that ends has closed all its sockets
SILENCE_S = 20.0  # for how long Ray's head may be silent: it may be started again, but after 60 s Ray ends the driver
ALONE_S = 60.0  # for how long a cell may be without a machine that could run it
AGAIN = "repeat the sweep, after `ray start` if a Ray that you had started no longer runs"
ENDED = f"the Ray on this machine has ended; {AGAIN}"


@dataclass
class Watch:
    """Looks after the machines while cells run."""

    nodes: list[Node]  # that live; on CPUs also those that came later
    joining: bool
    gone: set[str] = field(default_factory=set)  # Ray ids of machines that lived and do not: none comes back as itself
    unfit: set[str] = field(default_factory=set)  # Ray ids of machines with another kvstream
    _looked: float = field(default_factory=time.monotonic)
    _since: dict[Any, float] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _lifeline: cluster.Lifeline = field(default_factory=cluster.Lifeline)

    @property
    def avoided(self) -> set[str]:
        """Ray ids of machines that nothing should be asked of."""
        return self.gone | self.unfit

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Use Ray's object store; raises Lost if the Ray on this machine has ended, before or meanwhile."""
        self.feel()
        try:
            yield
        except OSError as error:  # a broken pipe, say
            end = time.monotonic() + ENDING_S
            while time.monotonic() < end:
                self.feel()
                time.sleep(0.1)
            raise Lost(f"the Ray on this machine does not answer any more ({error}); {AGAIN}") from error

    def feel(self) -> None:
        """Raise Lost if the Ray on this machine has ended."""
        if self._lifeline.broken():
            raise Lost(ENDED)

    def look(self, *, at_once: bool = False) -> None:
        """Find out which machines live, once in so many seconds; raises Lost if nothing can be computed any more."""
        self.feel()
        if not at_once and time.monotonic() - self._looked < PAUSE_S:
            return
        self._looked = time.monotonic()
        if why := cluster.silence():  # asked first, as Ray's own questions then wait for a minute
            if self.without("head", False, SILENCE_S):
                raise Lost(f"Ray's head does not answer any more ({why}); {AGAIN}")
            return
        self.without("head", True)
        known = {node.id: node for node in self.nodes}
        living = cluster.machines()
        alive = {node.id for node in living}
        self._seen |= known.keys() | alive
        self.gone = self._seen - alive
        fit = [node for node in living if node.id not in self.unfit]
        self.nodes = [known.get(node.id, node) for node in fit if node.id in known or (self.joining and node.cores)]
        if cluster.here() not in alive:
            raise Lost(ENDED)

    def without(self, what: Any, there: bool, patience_s: float | None = None) -> bool:
        """Whether something has not been there for too long."""
        if there:
            self._since.pop(what, None)
            return False
        now = time.monotonic()
        return now - self._since.setdefault(what, now) > (ALONE_S if patience_s is None else patience_s)

    def homeless(self, task: Any, can_run: Callable[[Node], bool]) -> bool:
        """Whether for too long no machine has been able to run a task."""
        return self.without(task, any(map(can_run, self.nodes)))

    def shun(self, node: str, why: object) -> None:
        """Say, once, why a machine gets nothing to compute any more."""
        if node not in self.unfit:
            print(f"\nleft out: {why}", file=sys.stderr, flush=True)
        self.unfit.add(node)
        self.nodes = [each for each in self.nodes if each.id != node]

    def lack(self, cores: str) -> NoReturn:
        """Raise Lost, as no machine is left that could go on."""
        same = " and the same kvstream as the driver" if self.unfit else ""
        todo = "install that on all machines, and repeat the sweep" if self.unfit else AGAIN
        raise Lost(f"no machine with {cores} for a cell{same} is left; {todo}")
