"""Cells on their way: Ray tasks are submitted a bounded number at a time, and taken in whatever order they end.

With `kvstream.cluster` the only module that knows Ray. A model's weights go to the object store once and every worker
of a node reads the same copy; cells come sorted by model, so the store holds one model at a time. The device and the
number of threads of a cell are decided here and travel with it, whatever a worker happens to see.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from kvstream import tasks
from kvstream.cluster import Node, Slots
from kvstream.grid import LatencyCell, QualityCell
from kvstream.interrupt import Interrupt
from kvstream.jobs import Job, by_texts, jobs_of, shareable
from kvstream.ledger import Ledger
from kvstream.pacing import splits, together
from kvstream.plan import needed_bytes, side_by_side, text_bytes

MAX_ATTEMPTS = 2  # for a worker that died; an error that the cell itself raised would only come again
PACE_S = 3.0  # for how long a pace is taken
WAIT_S = 1.0  # how long the driver waits at a time, so that it notices an interrupt


@dataclass
class Fleet:
    """Runs cells of one model at a time on the nodes; what comes of them goes to the ledger."""

    slots: Slots
    nodes: list[Node]
    ledger: Ledger
    interrupt: Interrupt
    stored: dict[str, Any] = field(default_factory=dict)

    def evaluate(self, cells: list[QualityCell]) -> int:
        """Evaluate quality cells of one model side by side; count those that failed or were not reached."""
        weights = self._weights(cells)
        if weights is None:
            return len(cells)
        slots = self._paced(weights, cells)
        # A worker that has used one GPU cannot be given another; on CPUs workers are reused.
        on_gpu = int(slots.device != "cpu")
        asked: Any = {"num_cpus": slots.threads, "num_gpus": on_gpu, "max_calls": on_gpu}
        task: Any = ray.remote(max_retries=0, **asked)(tasks.quality)
        coming = self._coming(cells, weights, slots, asked)
        again: deque[Job] = deque()  # parts that follow, and what is tried once more
        running: dict[Any, Job] = {}
        finished = 0
        while not self.interrupt.stopping:
            while len(running) < 2 * slots.count and not self.interrupt.draining:
                job = again.popleft() if again else next(coming, None)
                if job is None:
                    break
                submit = task.options(**_memory(job)).remote
                running[submit(weights, job.stretch, job.begun, job.shared, slots.threads)] = job
            if not running:
                break
            for reference in ray.wait(list(running), num_returns=1, timeout=WAIT_S)[0]:
                job = running.pop(reference)
                try:
                    results, environment = ray.get(reference)
                except ray.exceptions.RayError as error:
                    cause = None if job.shared and job.attempt < MAX_ATTEMPTS else self._final(error, job.attempt)
                    if cause is None:
                        again.append(job.once_more())
                    elif len(job.cells) > 1:
                        again.extend(job.apart())
                    else:
                        self.ledger.failed(job.cells[0], cause, job.attempt, job.length - job.start)
                else:
                    if next_part := self.ledger.evaluated(job, results, environment, slots.threads):
                        again.appendleft(next_part)
                    else:
                        finished += len(job.cells)
        for reference in running:
            ray.cancel(reference, force=True)
        return len(cells) - finished

    def _coming(self, cells: list[QualityCell], weights: Any, slots: Slots, asked: dict[str, Any]) -> Iterator[Job]:
        """Yield the jobs, text by text; what several of them share is computed when the first of them comes."""
        task: Any = ray.remote(max_retries=MAX_ATTEMPTS - 1, **asked)(tasks.first_tokens)
        at_once = 1  # a CPU is busy with one text
        if slots.device != "cpu":
            at_once = side_by_side(cells, min(node.memory for node in self.nodes))
        for group, tokens in by_texts(jobs_of(cells, at_once)):
            begun = None
            if tokens:
                first = group[0].stretch["token_ids_BN"][:, : tokens + 1]
                begun = task.remote(weights, first, slots.device, slots.threads)
            for job in group:
                resumed = self.ledger.resumed(job)
                shared = 0 if resumed.start else min(tokens, shareable(job))
                yield replace(job, begun=begun, shared=shared) if shared else resumed

    def _paced(self, weights: Any, cells: list[QualityCell]) -> Slots:
        """Choose between few threads for many cells and many threads for few, by measuring, where that is worth it."""
        node = max(self.nodes, key=lambda node: node.cores)
        candidates = splits(self.slots, self.nodes, cells)
        if len(candidates) < 2:
            return candidates[0]
        self.ledger.reporter.say(f"measuring how many threads a cell of {cells[0].model.spec} should take")
        rates: dict[Slots, float] = {}
        for slots in candidates:
            task: Any = ray.remote(num_cpus=slots.threads, max_retries=0)(tasks.pace)
            task = task.options(label_selector={"ray.io/node-id": node.id})
            for seconds in (0.0, PACE_S):  # first only to start workers, so that then they run at the same time
                each = node.cores // slots.threads
                asked = [task.remote(weights, cells[0], slots.threads, seconds) for _ in range(each)]
                paces = self._all_of(asked)
            if self.interrupt.draining:
                return self.slots
            if paces and (rate := together(paces)):
                rates[slots] = rate * slots.count / len(paces)  # smaller nodes are taken to be like this one
        best = max(rates, key=lambda slots: rates[slots], default=self.slots)
        told = ", ".join(f"{slots.threads}: {rate:,.0f}" for slots, rate in rates.items())
        self.ledger.reporter.say(f"tokens/s by threads per cell: {told}; taking {best.threads}")
        return best

    def _all_of(self, references: list[Any]) -> list[Any]:
        """Wait for all of these; empty if one of them failed, or if nothing new is to start any more."""
        left = references
        while left and not self.interrupt.draining:
            left = ray.wait(left, num_returns=len(left), timeout=WAIT_S)[1]
        try:
            return [] if left else ray.get(references)
        except ray.exceptions.RayError:
            return []
        finally:
            for reference in left:
                ray.cancel(reference, force=True)

    def time(self, cells: list[LatencyCell]) -> int:
        """Measure latency cells of one model, each alone on a node; count those that failed or were not reached."""
        weights = self._weights(cells)
        if weights is None:
            return len(cells)
        task: Any = ray.remote(max_calls=int(self.slots.device != "cpu"), max_retries=0)(tasks.latency)
        idle = list(self.nodes)
        waiting = deque((cell, 1) for cell in cells)
        running: dict[Any, tuple[LatencyCell, int, Node]] = {}  # by Ray's stream of what the cell tells
        finished = 0
        while not self.interrupt.stopping:
            while waiting and idle and not self.interrupt.draining:
                cell, attempt = waiting.popleft()
                able = [node for node in idle if needed_bytes(cell) <= node.memory]
                if not able and running:  # wait for a larger node
                    waiting.appendleft((cell, attempt))
                    break
                node = min(able, key=lambda node: node.memory) if able else max(idle, key=lambda node: node.memory)
                idle.remove(node)
                alone = task.options(
                    num_cpus=node.cores,
                    num_gpus=node.gpus,
                    label_selector={"ray.io/node-id": node.id},
                    num_returns="streaming",
                )
                running[alone.remote(weights, cell, self._threads(node))] = cell, attempt, node
            if not running:
                break
            ready: list[Any] = ray.wait(list(running), num_returns=1, timeout=WAIT_S)[0]
            for stream in ready:
                cell, attempt, node = running[stream]
                try:
                    told: Any = ray.get(next(stream))
                except ray.exceptions.RayError as error:
                    if cause := self._final(error, attempt):
                        self.ledger.failed(cell, cause, attempt)
                    else:
                        waiting.append((cell, attempt + 1))
                else:
                    if not isinstance(told, tuple):
                        self.ledger.told(cell, told)
                        continue
                    measured, environment = told
                    self.ledger.timed(cell, measured, environment, self._threads(node))
                    finished += 1
                del running[stream]
                if any(alive["NodeID"] == node.id and alive["Alive"] for alive in ray.nodes()):
                    idle.append(node)
        for stream in running:
            ray.cancel(stream, force=True)
        for cell, attempt in waiting if not idle and not running else ():
            self.ledger.failed(
                cell, RuntimeError("no node is left to run this cell; start nodes again and repeat the sweep"), attempt
            )
        return len(cells) - finished

    def _threads(self, node: Node) -> int:
        return self.slots.asked_threads or node.cores

    def _weights(self, cells: Sequence[QualityCell | LatencyCell]) -> Any:
        """Put a model's weights into the object store, or record why its cells fail and return None."""
        if self.interrupt.draining:
            return None
        spec = cells[0].model.spec
        if spec in self.stored:
            return self.stored[spec]
        self.ledger.reporter.say(f"loading {spec}")
        self.stored.clear()  # one model at a time
        try:
            self.stored[spec] = ray.put(tasks.weights_of(cells[0]))
            return self.stored[spec]
        except Exception as error:
            for cell in cells:
                self.ledger.failed(cell, error, 1)
            return None

    @staticmethod
    def _final(error: Any, attempt: int) -> BaseException | None:
        """Why a cell failed for good; None if its worker died for the first time, and it should be tried again."""
        cause = getattr(error, "cause", None)
        died = cause is None or isinstance(cause, ray.exceptions.RayError)
        return None if died and attempt < MAX_ATTEMPTS else cause or error


def _memory(job: Job) -> dict[str, int]:
    """Ask Ray for what a job on a CPU needs, in whole gigabytes: it keeps a queue for each kind of request.

    Rounded down, so that what was found to fit a node does.
    """
    gigabytes = int(sum(map(text_bytes, job.cells)) // 1e9)
    return {"memory": gigabytes * 10**9} if gigabytes and job.cells[0].device == "cpu" else {}
