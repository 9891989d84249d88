"""Cells on their way: Ray tasks are submitted a bounded number at a time, and taken in whatever order they end.

With `cluster` the only module that knows Ray. A model's weights go to the object store once and every worker
of a node reads the same copy; cells come sorted by model, so the store holds one model at a time. The device and the
number of threads of a cell are decided here and travel with it, whatever a worker happens to see.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import ray

from kvstream.grid.cells import LatencyCell, QualityCell
from kvstream.grid.memory_needed import needed_bytes, side_by_side, text_bytes
from kvstream.sweep import worker
from kvstream.sweep.cluster import Node, Slots
from kvstream.sweep.interrupt import Interrupt, Lost
from kvstream.sweep.jobs import Job, by_texts, jobs_of, shareable
from kvstream.sweep.pacing import splits, together
from kvstream.sweep.results import Ledger
from kvstream.sweep.watch import Watch

NODE_ID = "ray.io/node-id"  # Ray's label of each machine
MAX_ATTEMPTS = 2  # for a worker that died; an error that the cell itself raised would only come again
PACE_S = 3.0  # for how long a pace is taken
CHECK_TOKENS = 512  # of a text, with which a model is checked before its first cell
WAIT_S = 1.0  # how long the driver waits at a time, so that it notices an interrupt
WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (
        ray.exceptions.OutOfMemoryError,
        "its machine ran out of memory, and Ray killed the cell; give fewer or shorter texts, smaller budgets, or more "
        "--threads, so that fewer cells run at once",
    ),
    (ray.exceptions.WorkerCrashedError, "the process that computed it was killed or crashed, or its machine was lost"),
    (ray.exceptions.NodeDiedError, "the machine that computed it was lost"),
    (ray.exceptions.TaskCancelledError, "no machine was left that could run it"),
    (ray.exceptions.ObjectLostError, "what it needs was lost with another machine"),
)


Work = TypeVar("Work")


@dataclass
class Sent(Generic[Work]):
    """Work that Ray has: on which machine, by its Ray id, if that is known, and whether that has begun it."""

    work: Work
    node: str | None = None
    begun: bool = False


class Unfit:
    """What is heard of work that was sent to a machine with another kvstream: it did nothing."""


@dataclass
class Fleet:
    """Runs cells of one model at a time on the nodes; what comes of them goes to the ledger."""

    slots: Slots
    nodes: list[Node]
    ledger: Ledger
    interrupt: Interrupt
    stored: dict[str, Any] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)  # models that kvstream was found to compute rightly
    refused: dict[str, BaseException] = field(default_factory=dict)  # models without any cell computed, and why

    def __post_init__(self) -> None:
        """Begin to watch the nodes."""
        self.watch = Watch(self.nodes, joining=self.slots.device == "cpu")
        self.code = worker.own_code()

    def evaluate(self, cells: list[QualityCell]) -> None:
        """Evaluate quality cells of one model side by side; raises Lost."""
        weights = self._weights(cells)
        if weights is None:
            return
        slots = self._paced(weights, cells)
        # A worker that has used one GPU cannot be given another; on CPUs workers are reused.
        on_gpu = int(slots.device != "cpu")
        asked: Any = {"num_cpus": slots.threads, "num_gpus": on_gpu, "max_calls": on_gpu}
        task: Any = ray.remote(max_retries=0, num_returns="streaming", **asked)(_telling("quality"))
        coming = self._coming(cells, weights, slots, asked)
        again: deque[Job] = deque()  # parts that follow, and what is tried once more
        running: dict[Any, Sent[Job]] = {}  # by Ray's stream of what the task tells
        avoided = self.watch.avoided
        while not self.interrupt.stopping:
            self.watch.feel()
            if self.watch.avoided != avoided:
                avoided = self.watch.avoided
                again.extend(self._by_itself(job) for job in self._recalled(running))
            while len(running) < 2 * slots.count and not self.interrupt.draining:
                job = again.popleft() if again else next(coming, None)
                if job is None:
                    break
                submit = task.options(**_memory(job), **self._elsewhere()).remote
                packed = _packed(worker.quality, stretch=job.stretch, shared=job.shared, threads=slots.threads)
                with self.watch.alive():
                    running[submit(self.code, packed, weights, begun=job.begun)] = Sent(job)
            if not running:
                break
            if self.watch.homeless(slots, _able(slots)):
                self.watch.lack(f"{slots.threads} CPUs")
            for stream, sent in running.items():
                if self.watch.homeless(stream, _able(slots, sent.work)):
                    ray.cancel(stream, force=True)  # it then is among those that failed
            for stream, told in self._heard(running):
                job = running.pop(stream).work
                self.watch.without(stream, True)  # else what it computed would be kept with it
                if isinstance(told, Unfit):
                    again.append(self._by_itself(job))
                elif isinstance(told, ray.exceptions.RayError):
                    again.extend(self._again(job, told))
                else:
                    results, environment = told
                    if next_part := self.ledger.evaluated(job, results, environment, slots.threads):
                        again.appendleft(next_part)
        self.watch.feel()  # buffers of Ray's store are released now, which needs that store
        for stream in running:
            ray.cancel(stream, force=True)

    def _heard(self, running: Mapping[Any, Sent[Any]]) -> Iterator[tuple[Any, Any]]:
        """Wait a second for tasks to tell something: their streams, each with what it told, a RayError or Unfit.

        A task ends with its machine, too. Ray says so itself where connections break; where a machine has just fallen
        silent, Ray waits for its answer for seven minutes after it gave the machine up.
        """
        streams = list(running)
        self._there(streams, 1, WAIT_S)
        ready = self._there(streams)
        self.watch.look()
        for stream in ready:
            sent = running[stream]
            told = self._told(stream)
            if sent.begun or isinstance(told, ray.exceptions.RayError):
                yield stream, told
                continue
            sent.begun = True
            sent.node, name, code = told
            if code != self.code:
                self.watch.shun(sent.node, f"{worker.of_another(name)} (there: {code})")
                yield stream, Unfit()
        for stream in set(streams).difference(ready):
            if running[stream].node in self.watch.gone:
                ray.cancel(stream, force=True)
                yield stream, ray.exceptions.NodeDiedError("it does not answer any more")

    def _told(self, stream: Any) -> Any:
        """What a task tells next, or the RayError in its place."""
        with self.watch.alive():
            try:
                return ray.get(next(stream))
            except ray.exceptions.RayError as error:
                return error

    def _recalled(self, running: dict[Any, Sent[Work]]) -> list[Work]:
        """Take back work of which nothing was heard: a machine to avoid may have been asked, and Ray waits for it."""
        taken = []
        ready = set(self._there(list(running)))
        for stream, sent in list(running.items()):
            if not sent.begun and stream not in ready:
                ray.cancel(stream, force=True)
                del running[stream]
                self.watch.without(stream, True)
                taken.append(sent.work)
        return taken

    def _by_itself(self, job: Job) -> Job:
        """Have a job compute itself what it would share with others, if that may be lost."""
        return replace(job, begun=None, shared=0) if job.shared and not self._there([job.begun]) else job

    def _there(self, references: list[Any], least: int | None = None, timeout_s: float = 0.0) -> list[Any]:
        """Which of these are there, by default at this moment, else after waiting for so many."""
        if not references:
            return []
        with self.watch.alive():
            return list(ray.wait(references, num_returns=least or len(references), timeout=timeout_s)[0])

    def _elsewhere(self) -> dict[str, Any]:
        """Ask Ray for any machine but those to avoid, which also puts a task into another queue than theirs."""
        avoided = ",".join(sorted(self.watch.avoided))
        return {"label_selector": {NODE_ID: f"!in({avoided})"}} if avoided else {}

    def _again(self, job: Job, error: Any) -> list[Job]:
        """What to try again of a job that failed; its failure is written down if that is nothing."""
        self.watch.look(at_once=True)
        cause = self._final(error, job.attempt)
        together = job.shared or len(job.cells) > 1  # then what a cell raised may be the matter of another
        if cause is None or (together and job.attempt < MAX_ATTEMPTS):
            return job.once_more()
        self.ledger.failed(job.cells[0], cause, job.attempt, job.length - job.start)
        return []

    def _coming(self, cells: list[QualityCell], weights: Any, slots: Slots, asked: dict[str, Any]) -> Iterator[Job]:
        """Yield the jobs, text by text; what several of them share is computed when the first of them comes."""
        task: Any = ray.remote(max_retries=MAX_ATTEMPTS - 1, **asked)(worker.first_tokens)
        at_once = 1  # a CPU is busy with one text
        if slots.device != "cpu":
            at_once = side_by_side(cells, min((node.memory for node in self.watch.nodes), default=0.0))
        for group, tokens in by_texts(jobs_of(cells, at_once)):
            begun, avoided = None, self.watch.avoided
            if tokens:
                first = group[0].stretch["token_ids_BN"][:, : tokens + 1]
                with self.watch.alive():
                    begun = task.options(**self._elsewhere()).remote(weights, first, slots.device, slots.threads)
            for job in group:
                if begun and avoided != self.watch.avoided and not self._there([begun]):
                    ray.cancel(begun, force=True)
                    begun, tokens = None, 0  # it may be lost with that machine: each computes them itself
                resumed = self.ledger.resumed(job)
                shared = 0 if resumed.start else min(tokens, shareable(job))
                yield replace(job, begun=begun, shared=shared) if shared else resumed

    def _paced(self, weights: Any, cells: list[QualityCell]) -> Slots:
        """Choose between few threads for many cells and many threads for few, by measuring, where that is worth it."""
        needed = max(map(needed_bytes, cells))
        roomy = [node for node in self.watch.nodes if node.memory >= needed] or self.watch.nodes
        if not roomy:  # all are lost; that is told once none comes back
            return self.slots
        node = max(roomy, key=lambda node: node.cores)
        candidates = [way for way in splits(self.slots, self.watch.nodes, cells) if way.threads <= node.cores]
        if len(candidates) < 2:
            return candidates[0] if candidates else self.slots
        self.ledger.reporter.say(f"measuring how many threads a cell of {cells[0].model.spec} should take")
        rates: dict[Slots, float] = {}
        for slots in candidates:
            task: Any = ray.remote(num_cpus=slots.threads, max_retries=0)(worker.pace)
            task = task.options(label_selector={NODE_ID: node.id})
            for seconds in (0.0, PACE_S):  # first only to start workers, so that then they run at the same time
                each = node.cores // slots.threads
                with self.watch.alive():
                    asked = [task.remote(weights, cells[0], slots.threads, seconds) for _ in range(each)]
                paces = self._all_of(asked, node)
            if self.interrupt.draining:
                return self.slots
            if paces and (rate := together(paces)):
                rates[slots] = rate * slots.count / len(paces)  # smaller nodes are taken to be like this one
        best = max(rates, key=lambda slots: rates[slots], default=self.slots)
        told = ", ".join(f"{slots.threads}: {rate:,.0f}" for slots, rate in rates.items())
        self.ledger.reporter.say(f"tokens/s by threads per cell: {told}; taking {best.threads}")
        return best

    def _all_of(self, references: list[Any], node: Node) -> list[Any]:
        """Wait for all of these on a node; empty if one failed, the node left, or nothing new is to start any more."""
        left = references
        while left and not self.interrupt.draining and node in self.watch.nodes:
            there = self._there(left, len(left), WAIT_S)
            left = [reference for reference in left if reference not in there]
            self.watch.look()
        for reference in left:
            ray.cancel(reference, force=True)
        with self.watch.alive():
            try:
                return [] if left else ray.get(references)
            except ray.exceptions.RayError:
                return []

    def time(self, cells: list[LatencyCell]) -> None:
        """Measure latency cells of one model, each alone on a node; raises Lost."""
        weights = self._weights(cells)
        if weights is None:
            return
        task: Any = ray.remote(max_calls=int(self.slots.device != "cpu"), max_retries=0)(_telling("latency"))
        waiting = deque((cell, 1) for cell in cells)
        running: dict[Any, Sent[tuple[LatencyCell, int, Node]]] = {}  # by Ray's stream of what the cell tells
        while not self.interrupt.stopping and (running or (waiting and not self.interrupt.draining)):
            while waiting and not self.interrupt.draining and (node := self._free_for(waiting[0][0], running.values())):
                cell, attempt = waiting.popleft()
                alone = task.options(
                    num_cpus=node.cores,
                    num_gpus=node.gpus,
                    label_selector={NODE_ID: node.id},
                    num_returns="streaming",
                )
                packed = _packed(worker.latency, cell=cell, threads=self._threads(node))
                with self.watch.alive():
                    running[alone.remote(self.code, packed, weights)] = Sent((cell, attempt, node), node.id)
            if not running:
                time.sleep(WAIT_S)
                self.watch.look()
            able = any(node.cores >= self._threads(node) for node in self.watch.nodes)
            if self.watch.without("machines", bool(running) or able):
                self.watch.lack("enough CPUs")
            for stream, told in self._heard(running) if running else ():
                if isinstance(told, ray.exceptions.RayError):
                    self.watch.look(at_once=True)
                cell, attempt, node = running[stream].work
                if isinstance(told, Unfit):
                    waiting.append((cell, attempt))
                elif isinstance(told, ray.exceptions.RayError):
                    if cause := self._final(told, attempt):
                        self.ledger.failed(cell, cause, attempt)
                    else:
                        waiting.append((cell, attempt + 1))
                elif isinstance(told, tuple):
                    measured, environment = told
                    self.ledger.timed(cell, measured, environment, self._threads(node))
                else:
                    self.ledger.told(cell, told)
                    continue
                del running[stream]
        self.watch.feel()  # as above
        for stream in running:
            ray.cancel(stream, force=True)

    def _free_for(self, cell: LatencyCell, running: Iterable[Sent[Any]]) -> Node | None:
        """Choose the smallest idle machine for a cell, or none, to wait for one that is large enough."""
        busy = {sent.node for sent in running}
        idle = [node for node in self.watch.nodes if node.id not in busy and node.cores >= self._threads(node)]
        able = [node for node in idle if needed_bytes(cell) <= node.memory]
        if able or busy:
            return min(able, key=lambda node: node.memory, default=None)
        return max(idle, key=lambda node: node.memory, default=None)

    def _threads(self, node: Node) -> int:
        return self.slots.asked_threads or node.cores

    def _weights(self, cells: Sequence[QualityCell | LatencyCell]) -> Any:
        """Put a model's weights into the object store and check it, or record why its cells fail and return None."""
        if self.interrupt.draining:
            return None
        spec = cells[0].model.spec
        told = spec in self.refused
        if not told and spec not in self.stored:
            self.ledger.reporter.say(f"loading {spec}")
            self.stored.clear()  # one model at a time
            try:
                weights = worker.weights_of(cells[0])
                with self.watch.alive():
                    self.stored[spec] = ray.put(weights)
                if spec not in self.checked:
                    self._check(cells[0])
            except Lost:
                raise
            except Exception as error:
                self.stored.clear()
                self.refused[spec] = error
        if spec in self.refused:
            self.ledger.refused(cells, self.refused[spec], told=told)
        return None if self.interrupt.draining else self.stored.get(spec)

    def _check(self, cell: QualityCell | LatencyCell) -> None:
        """Have a worker ask the model whether kvstream computes what it does; raises what speaks against it.

        Once for all its cells, as it takes a while; every worker then trusts it.
        """
        spec, slots = cell.model.spec, self.slots
        self.ledger.reporter.say(f"checking {spec}")
        ids_T = cell.document.token_ids[:CHECK_TOKENS] if isinstance(cell, QualityCell) else None
        on_gpu = int(slots.device != "cpu")
        asked: Any = {"num_cpus": slots.threads, "num_gpus": on_gpu, "max_calls": on_gpu}
        task: Any = ray.remote(max_retries=0, num_returns="streaming", **asked)(_telling("check"))
        packed = _packed(worker.check, token_ids_T=ids_T, device=slots.device, threads=slots.threads)
        attempt, running, avoided = 1, dict[Any, Sent[int]](), self.watch.avoided
        while spec not in self.checked and not self.interrupt.draining:
            self.watch.feel()
            if self.watch.avoided != avoided:
                avoided = self.watch.avoided
                self._recalled(running)
            if not running:
                with self.watch.alive():
                    stream = task.options(**self._elsewhere()).remote(self.code, packed, self.stored[spec])
                running[stream] = Sent(attempt)
            if self.watch.homeless(slots, _able(slots)):
                self.watch.lack(f"{slots.threads} CPUs")
            for stream, told in self._heard(running):
                del running[stream]
                if isinstance(told, ray.exceptions.RayError):
                    self.watch.look(at_once=True)
                    if cause := self._final(told, attempt):
                        raise cause
                    attempt += 1
                elif not isinstance(told, Unfit):
                    self.checked.add(spec)
        for stream in running:
            ray.cancel(stream, force=True)

    @staticmethod
    def _final(error: Any, attempt: int) -> BaseException | None:
        """Why a cell failed for good; None if its worker died for the first time, and it should be tried again."""
        cause = getattr(error, "cause", None)
        died = cause is None or isinstance(cause, ray.exceptions.RayError)
        return None if died and attempt < MAX_ATTEMPTS else _explained(cause or error)


def _explained(error: BaseException) -> BaseException:
    """What happened to a cell in a sweep's words, before Ray's; an error that the cell itself raised is its own.

    Of Ray's words on a lack of memory no more than the first lines: others list the commands of all processes.
    """
    for kind, told in WORDS:
        if isinstance(error, kind):
            words = str(error).splitlines()[:2] if kind is ray.exceptions.OutOfMemoryError else [str(error)]
            return RuntimeError("\n".join([told, *words]))
    return error


def _able(slots: Slots, job: Job | None = None) -> Callable[[Node], bool]:
    """Which machines can run a job, or any at all."""
    gpus, memory = int(slots.device != "cpu"), _memory(job).get("memory", 0) if job else 0
    return lambda node: node.cores >= slots.threads and node.gpus >= gpus and node.memory >= memory


def _packed(work: Callable[..., Iterator[Any]], **arguments: Any) -> bytes:
    return ray.cloudpickle.dumps((work, arguments))


def _telling(name: str) -> Callable[..., Iterator[Any]]:
    """Make a task that tells where it begins and with which code, then does packed work if that is the driver's.

    It is sent as a whole, not as a name in kvstream, and what needs kvstream is packed: a machine may have none, or one
    that lacks a policy.
    """

    def telling(code: str, packed: bytes, weights: Any, **begun: Any) -> Iterator[Any]:
        try:
            from kvstream.sweep.worker import own_code

            found = own_code()
        except Exception as error:
            found = repr(error)
        yield ray.get_runtime_context().get_node_id(), platform.node(), found
        if found == code:
            work, arguments = ray.cloudpickle.loads(packed)
            yield from work(weights, **arguments, **begun)

    telling.__qualname__ = name  # by which Ray calls the task's process
    return telling


def _memory(job: Job) -> dict[str, int]:
    """Ask Ray for what a job on a CPU needs, in whole gigabytes: it keeps a queue for each kind of request.

    Rounded down, so that what was found to fit a node does.
    """
    gigabytes = int(sum(map(text_bytes, job.cells)) // 1e9)
    return {"memory": gigabytes * 10**9} if gigabytes and job.cells[0].device == "cpu" else {}
