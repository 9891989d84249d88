"""Workers as Ray actors: one per GPU, per CPU slot or, for latency, per machine. With `cluster` all that knows Ray.

An actor is pinned to its machine and lives on from cell to cell, and from sweep to sweep in one process. It has two
calls queued at most, so it begins the next when one ends, without asking the driver. Ray's object store holds one model
at a time, of which each machine gets one copy. A machine is told apart by the actor's own report: one without kvstream,
or with another, computes nothing.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from kvstream.grid.cells import Cell
from kvstream.sweep.cluster import NODE_ID
from kvstream.sweep.pool import Done, Event, Failed, Lost, Node, Slots, Told, WorkerInfo
from kvstream.sweep.watch import Watch
from kvstream.sweep.work import Work
from kvstream.sweep.worker import Finished, own_code, weights_of

STARTS = 3  # that may fail on a machine before it is left out
OTHER_CODE = (
    "code: kvstream on {} is not the one of the sweep's driver; install the same on all machines, and change it on "
    "none while a sweep runs"
)
DIED = "the process that computed it was killed or crashed, or its machine was lost"
NO_MEMORY = (
    "its machine ran out of memory, and Ray killed the cell; give fewer or shorter texts, smaller budgets, or more "
    "--threads, so that fewer cells run at once"
)


def actor_class(name: str) -> Any:
    """Make the class of actors, whose processes are called so. Sent whole: a machine may have no kvstream."""

    class Actor:
        def __init__(self, device: str) -> None:
            self.model, self.code = "", ""
            try:
                from kvstream.sweep.worker import Worker, own_code, own_gpu

                if device == "cuda":
                    device = own_gpu(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
                self.code, self.worker = own_code(), Worker(device)
            except Exception as error:
                self.code = repr(error)

        def report(self) -> tuple[str, str]:
            return platform.node(), self.code

        def do(self, call: Any, threads: int, model: str, weights: list[Any], own: bool) -> Iterator[Any]:
            if model != self.model:
                self.model = ""
                self.worker.load(ray.get(weights[0]), own=own)
                self.model = model
            yield from self.worker.do(call, threads)

    Actor.__name__ = Actor.__qualname__ = name
    return ray.remote(max_restarts=0, max_task_retries=0)(Actor)


@dataclass
class Hired:
    """An actor, on which machine, what it was sent, oldest first, and its report until that is there."""

    id: str
    node: Node
    actor: Any
    report: Any
    sent: dict[Any, Work] = field(default_factory=dict)  # by Ray's stream of what it tells


class RayPool:
    """Actors in all slots of the machines that are fit for them; a `pool.Pool`."""

    def __init__(self, slots: Slots, nodes: list[Node]) -> None:
        self.slots, self.watch = slots, Watch(slots, nodes)
        self.ray = ray.get_runtime_context().get_node_id()
        self.model = ""  # what workers compute with
        self.weights: Any = None  # where Ray has it
        self._code = own_code()
        self._actor = actor_class("latency" if slots.whole else "quality")
        self._hired: dict[str, Hired] = {}
        self._starts = 0
        self._failed_starts: Counter[str] = Counter()  # by machine

    def serves(self, slots: Slots, nodes: list[Node]) -> bool:
        """Whether its workers are those that would be hired anew."""
        idle = not any(hired.sent for hired in self._hired.values())
        return idle and slots == self.slots and self.watch.nodes == {node.id: node for node in nodes}

    def load(self, cell: Cell, say: Callable[[str], None]) -> None:
        """Start workers that are missing, and put another model into Ray's store in place of the one before."""
        self._hire()
        model = f"{cell.model.identity} {cell.dtype}"
        if model != self.model:
            say(f"loading {cell.model.spec}")
            self.model, self.weights = "", None  # the one before goes first
            self.model, self.weights = model, ray.put(weights_of(cell))

    def idle(self) -> list[WorkerInfo]:
        """Of those with as much to do, small machines come first: what needs a large one waits for that."""
        ready = [hired for hired in self._hired.values() if not hired.report and hired.node.id in self.watch.nodes]
        if self.starting():
            ready = [hired for hired in ready if not hired.sent]
        ready.sort(key=lambda hired: (len(hired.sent), hired.node.memory))
        return [self._info(hired) for hired in ready]

    def starting(self) -> bool:
        """Whether some actors have not reported yet."""
        return any(hired.report for hired in self._hired.values())

    def send(self, worker: WorkerInfo, work: Work) -> None:
        """Queue work on an actor. Latency is measured on a model in memory of its own, as a server's is."""
        hired = self._hired[worker.id]
        do = hired.actor.do.options(num_returns="streaming")
        hired.sent[do.remote(work.call, worker.threads, self.model, [self.weights], self.slots.whole)] = work

    def wait(self, seconds: float) -> list[Event]:
        """What happened, a lost machine first; whoever was lost is being replaced by then."""
        self.watch.look()
        gone = [hired for hired in self._hired.values() if hired.node.id not in self.watch.nodes]
        # Ray itself waits for minutes for the answer of a machine that has fallen silent.
        silent = ray.exceptions.NodeDiedError("it does not answer any more")
        events: list[Event] = [self._lose(hired, silent) for hired in gone]
        self._hire()
        of = {each: hired for hired in self._hired.values() for each in (hired.report, *hired.sent) if each}
        if not of:
            time.sleep(seconds)
            return events
        ray.wait(list(of), timeout=0.0 if events else seconds)
        for reference in ray.wait(list(of), num_returns=len(of), timeout=0)[0]:
            hired = of[reference]
            if reference == hired.report:
                self._take_on(hired)
            elif hired.id in self._hired:
                events.append(self._heard(hired, reference))
        self._hire()
        return events

    def close(self) -> None:
        """End all actors, whatever they do."""
        for hired in self._hired.values():
            ray.kill(hired.actor)
        self._hired.clear()

    def _hire(self) -> None:
        """Start the actors that are missing."""
        for node in self.watch.nodes.values():
            there = sum(hired.node.id == node.id for hired in self._hired.values())
            for _ in range(there, self.slots.on(node)):
                self._starts += 1
                pinned = {"label_selector": {NODE_ID: node.id}}
                actor = self._actor.options(**self.slots.takes(node), **pinned).remote(self.slots.device)
                hired = Hired(f"{node.id}/{self._starts}", node, actor, actor.report.remote())
                self._hired[hired.id] = hired

    def _take_on(self, hired: Hired) -> None:
        """Take an actor into service, or its machine out of it."""
        try:
            machine, code = ray.get(hired.report)
        except ray.exceptions.RayError as error:
            self._lose(hired, error)
            self.watch.look(at_once=True)
            self._failed_starts[hired.node.id] += 1
            if self._failed_starts[hired.node.id] >= STARTS:
                self.watch.leave_out(hired.node, f"no worker starts on it ({_explained(error)})")
            return
        hired.report = None
        del self._failed_starts[hired.node.id]
        if code != self._code:
            self.watch.leave_out(hired.node, f"{OTHER_CODE.format(machine)} (there: {code})")

    def _heard(self, hired: Hired, stream: Any) -> Event:
        """What an actor tells next of some work."""
        worker, work = self._info(hired), hired.sent[stream]
        try:
            told = ray.get(next(stream))
        except ray.exceptions.RayError as error:
            self.watch.look(at_once=True)
            cause = getattr(error, "cause", None)  # what the work raised
            if cause is None or isinstance(cause, ray.exceptions.RayError):
                return self._lose(hired, cause or error)
            del hired.sent[stream]
            return Failed(worker, work, cause)
        if not isinstance(told, Finished):
            return Told(worker, work, told)
        del hired.sent[stream]
        return Done(worker, work, *told)

    def _lose(self, hired: Hired, error: BaseException) -> Lost:
        ray.kill(hired.actor)
        del self._hired[hired.id]
        return Lost(self._info(hired), _explained(error))

    def _info(self, hired: Hired) -> WorkerInfo:
        node = hired.node
        memory_of = node.id if self.slots.device == "cpu" else hired.id
        return WorkerInfo(hired.id, node.id, self.slots.threads_on(node), node.memory, memory_of)


def _explained(error: BaseException) -> BaseException:
    """What happened to a worker in a sweep's words, before Ray's."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return RuntimeError("\n".join([NO_MEMORY, *str(error).splitlines()[:2]]))  # others list all processes
    return RuntimeError(f"{DIED}\n{error}")


_kept: RayPool | None = None  # of the last sweep of this process: its workers have all imported what they need


def pool_for(slots: Slots, nodes: list[Node]) -> RayPool:
    """Workers for these slots: those of the sweep before where they will do, else new ones in their place."""
    global _kept
    here = ray.get_runtime_context().get_node_id()
    before = _kept if _kept and _kept.ray == here else None  # else that Ray has ended, and they with it
    if before and before.serves(slots, nodes):
        return before
    _kept = RayPool(slots, nodes)
    if before:
        _kept.model, _kept.weights = before.model, before.weights
        before.close()
    return _kept
