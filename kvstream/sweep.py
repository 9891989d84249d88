"""Runs a grid on Ray: finished cells drop out, the others fan out as tasks, the driver alone writes records.

The only module that imports Ray. A model's weights go to the object store once and every worker of a node reads the
same copy; cells come sorted by model, so the store holds one model at a time. The device and the number of threads of
a cell are decided here and travel with it, whatever a worker happens to see.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kvstream.command import Options, parse_flags, refuse
from kvstream.grid import Grid, LatencyCell, QualityCell

if TYPE_CHECKING:
    from kvstream.interrupt import Interrupt
    from kvstream.latency import Measured
    from kvstream.progress import Reporter
    from kvstream.records import Records

MAX_ATTEMPTS = 2  # for a worker that died; an error that the cell itself raised would only come again
MAX_THREADS = 8  # per cell by default: beyond, matrix products of these sizes gain little
WAIT_S = 1.0  # how long the driver waits at a time, so that it notices an interrupt


def main(grid: Grid, manual: str, arguments: Sequence[str] | None = None) -> None:
    """Run a sweep from the command line and end the program: exit code 0, 1 if a cell failed, 2 for invalid input.

    manual: what `--help` shows, the sweep's docstring; its first paragraph is the question that records carry.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    grid, options = parse_flags(grid, manual, arguments)
    question = " ".join(manual.strip().partition("\n\n")[0].split())
    try:
        unfinished = run(grid, question, options)
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1 if unfinished else 0)


def run(grid: Grid, question: str, options: Options) -> int:
    """Measure what the records in `options.out` lack of `grid`; count the cells that failed or were not reached.

    Raises ValueError for whatever can be known to fail before a model is loaded.
    """
    from kvstream import plan
    from kvstream.records import Records

    sources = plan.prepare(grid)
    records = Records(options.out)

    def span(device: str) -> tuple[list[QualityCell], list[LatencyCell]]:
        axes = grid, sources, device, options.dtype
        return plan.quality_cells(*axes), plan.latency_cells(*axes, options.threads)

    if options.dry_run:
        quality, latency = span(_device_here() if options.device == "auto" else options.device)
        plan.describe(grid, question, [*quality, *latency], records)
        return 0
    with records.locked():
        nodes = connect()
        device = choose_device(options.device, options.dtype, nodes)
        nodes = fit_for(device, nodes)
        quality, latency = span(device)
        cells = [*quality, *latency]
        keys = [cell.key for cell in cells]
        finished = records.finished(keys)
        quality = [cell for cell in quality if cell.key not in finished]
        latency = [cell for cell in latency if cell.key not in finished]
        available = max(node.memory for node in nodes)
        refused = {cell: why for cell in latency if (why := plan.too_large(cell, available))}
        if len(refused) == len(cells):
            raise ValueError(next(iter(refused.values())))
        latency = [cell for cell in latency if cell not in refused]
        slots = divide(device, nodes, options.threads, len(quality))
        records.plan(grid.name, question, grid.lengths, keys)
        todo = len(quality) + len(latency)
        print(f"{grid.name}: {len(cells)} cells, {len(finished)} finished before, {todo} to do → {options.out}")
        for cell, why in refused.items():
            records.fail(cell.key, cell.fields, why, 0)
            print(f"not run: {why}", file=sys.stderr)
        return len(refused) + (_measure(quality, latency, slots, nodes, records) if todo else 0)


def _device_here() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its Ray id, CPU cores, GPUs, and bytes of memory that tasks may use."""

    id: str
    cores: int
    gpus: int
    memory: float


def connect() -> list[Node]:
    """Find a running Ray or start one, and look at its machines."""
    import ray

    try:
        if not ray.is_initialized():
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        where = os.environ.get("RAY_ADDRESS", "the address a local cluster left behind")
        raise ValueError(
            f"ray: no cluster answers at {where} ({str(error).splitlines()[0]}); run `ray stop` or unset RAY_ADDRESS"
        ) from None
    nodes = [
        Node(node["NodeID"], int(has.get("CPU", 0)), int(has.get("GPU", 0)), has.get("memory", 0))
        for node in ray.nodes()
        if node["Alive"] and (has := node["Resources"]) and has.get("CPU", 0) >= 1
    ]
    if not nodes:
        raise ValueError("ray: no node of the cluster has a CPU for tasks; add one, or start Ray with --num-cpus")
    cores, gpus = sum(node.cores for node in nodes), sum(node.gpus for node in nodes)
    print(f"Ray: {len(nodes)} node(s) with {cores} CPUs and {gpus} GPUs")
    return nodes


def choose_device(device: str, dtype: str, nodes: list[Node]) -> str:
    """Turn "auto" into the cluster's GPUs where it has any, else its CPUs; ValueError if no node has the device."""
    if device == "mps" and (sys.platform != "darwin" or dtype == "float64"):
        raise ValueError(f"device: 'mps' needs Apple silicon and computes no float64; use --device cpu (dtype {dtype})")
    gpus = any(node.gpus for node in nodes)
    if device == "auto":  # Ray counts Apple's GPU as one, too
        return "cpu" if not gpus else "mps" if sys.platform == "darwin" else "cuda"
    if device != "cpu" and not gpus:
        raise ValueError(f"device: {device!r} asked, but no node of the cluster has a GPU; use --device cpu")
    return device


def fit_for(device: str, nodes: list[Node]) -> list[Node]:
    """Keep the nodes that have the device, with its memory in place of the machine's where it is a GPU."""
    if device == "cpu":
        return nodes
    import ray

    from kvstream.memory import gpu_bytes

    nodes = [node for node in nodes if node.gpus]
    ask = ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(gpu_bytes)
    asked = [ask.options(label_selector={"ray.io/node-id": node.id}).remote(device) for node in nodes]
    nodes = [replace(node, memory=memory) for node, memory in zip(nodes, ray.get(asked)) if memory]
    if not nodes:
        raise ValueError(
            f"device: {device!r} asked, and Ray counts GPUs, but torch finds none there; "
            "install a build of torch for them, or use --device cpu"
        )
    return nodes


@dataclass(frozen=True)
class Slots:
    """What one quality cell takes of the cluster, and how many fit at once.

    asked_threads: what the user asked for, which latency cells follow too; None gives them all cores of their node.
    """

    device: str
    threads: int
    count: int
    asked_threads: int | None = None


def divide(device: str, nodes: list[Node], threads: int | None, cells: int) -> Slots:
    """Divide the cluster among cells: one GPU each, or `threads` CPU cores, by default so that all cores are busy."""
    if device != "cpu":
        return Slots(device, threads or 1, sum(node.gpus for node in nodes), threads)
    largest = max(node.cores for node in nodes)
    if threads and threads > largest:
        raise ValueError(f"threads: {threads} asked, the largest node has {largest} CPUs; give no more than that")
    each = threads or max(1, min(MAX_THREADS, largest, sum(node.cores for node in nodes) // max(cells, 1)))
    return Slots(device, each, sum(node.cores // each for node in nodes), threads)


def _measure(
    quality: list[QualityCell], latency: list[LatencyCell], slots: Slots, nodes: list[Node], records: Records
) -> int:
    """Quality cells first, side by side; then latency cells, alone. Counts those that failed or were not reached."""
    from kvstream.interrupt import Interrupt
    from kvstream.progress import Reporter

    cells = [*quality, *latency]
    with Reporter(len(cells), sum(cell.tokens for cell in cells)) as reporter, Interrupt() as interrupt:
        fleet = Fleet(slots, nodes, records, reporter, interrupt)
        unfinished = sum(fleet.evaluate(list(group)) for _, group in groupby(quality, key=lambda cell: cell.model))
        unfinished += sum(fleet.time(list(group)) for _, group in groupby(latency, key=lambda cell: cell.model))
    if unfinished:
        print(
            f"{unfinished} of {len(cells)} cells are not finished; the same command tries them again", file=sys.stderr
        )
    return unfinished


@dataclass
class Fleet:
    """Cells on their way: submits a bounded number, takes what is ready in whatever order, writes it down."""

    slots: Slots
    nodes: list[Node]
    records: Records
    reporter: Reporter
    interrupt: Interrupt
    stored: dict[str, Any] = field(default_factory=dict)

    def evaluate(self, cells: list[QualityCell]) -> int:
        """Evaluate quality cells of one model side by side; count those that failed or were not reached."""
        import ray

        from kvstream import tasks

        weights = self._weights(cells)
        if weights is None:
            return len(cells)
        texts = {cell.document.name: ray.put(cell.document.token_ids) for cell in cells}
        # A worker that has used one GPU cannot be given another; on CPUs workers are reused.
        on_gpu = int(self.slots.device != "cpu")
        task = ray.remote(max_calls=on_gpu, max_retries=0)(tasks.quality)
        task = task.options(num_cpus=self.slots.threads, num_gpus=on_gpu)
        waiting = deque((cell, 1) for cell in cells)
        running: dict[Any, tuple[QualityCell, int]] = {}
        unfinished = 0
        while running or (waiting and not self.interrupt.draining):
            while waiting and len(running) < 2 * self.slots.count and not self.interrupt.draining:
                cell, attempt = waiting.popleft()
                running[task.remote(weights, texts[cell.document.name], cell, self.slots.threads)] = cell, attempt
            if self.interrupt.stopping:
                for reference in running:
                    ray.cancel(reference, force=True)
                return unfinished + len(running) + len(waiting)
            for reference in ray.wait(list(running), num_returns=1, timeout=WAIT_S)[0]:
                cell, attempt = running.pop(reference)
                try:
                    evaluated, environment = ray.get(reference)
                except ray.exceptions.RayError as error:
                    unfinished += self._failed(cell, error, attempt, waiting)
                else:
                    fields = cell.fields | {"threads": self.slots.threads}
                    self.records.commit(cell.key, fields, evaluated.rows, evaluated.seconds, environment)
                    rate = evaluated.rows.num_rows / evaluated.seconds
                    self.reporter.cell(f"{cell}: PPL {evaluated.perplexity:.2f}, {rate:,.0f} tokens/s", cell.tokens)
        return unfinished + len(waiting)

    def time(self, cells: list[LatencyCell]) -> int:
        """Measure latency cells of one model, each alone on a node; count those that failed or were not reached."""
        import ray

        from kvstream import tasks
        from kvstream.plan import needed_bytes

        weights = self._weights(cells)
        if weights is None:
            return len(cells)
        task = ray.remote(max_calls=int(self.slots.device != "cpu"), max_retries=0)(tasks.latency)
        idle = list(self.nodes)
        waiting = deque((cell, 1) for cell in cells)
        running: dict[Any, tuple[LatencyCell, int, Node]] = {}  # by Ray's stream of what the cell tells
        unfinished = 0
        while running or (waiting and not self.interrupt.draining):
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
                stream: Any = alone.remote(weights, cell, self.slots.asked_threads or node.cores)
                running[stream] = cell, attempt, node
            if self.interrupt.stopping:
                for stream in running:
                    ray.cancel(stream, force=True)
                return unfinished + len(running) + len(waiting)
            for stream in ray.wait(list(running), num_returns=1, timeout=WAIT_S)[0]:
                cell, attempt, node = running[stream]
                try:
                    told: Any = ray.get(next(stream))
                except ray.exceptions.RayError as error:
                    unfinished += self._failed(cell, error, attempt, waiting)
                else:
                    if not isinstance(told, tuple):
                        self.reporter.inside(str(cell), told.what, told.share)
                        continue
                    self._timed(cell, *told, threads=self.slots.asked_threads or node.cores)
                del running[stream]
                if any(alive["NodeID"] == node.id and alive["Alive"] for alive in ray.nodes()):
                    idle.append(node)
                elif not idle and not running:
                    unfinished += self._stranded(waiting)
        return unfinished + len(waiting)

    def _stranded(self, waiting: deque[tuple[Any, int]]) -> int:
        """Record the cells that no node is left for."""
        count = len(waiting)
        while waiting:
            cell, attempt = waiting.popleft()
            self._fail(cell, RuntimeError("no node is left to run this cell"), attempt)
        return count

    def _timed(self, cell: LatencyCell, measured: Measured, environment: dict[str, Any], *, threads: int) -> None:
        """Write a latency cell."""
        fields = cell.fields | {"threads": threads, "contenders": measured.contenders, "noise": measured.noise}
        self.records.commit(cell.key, fields, measured.rows, measured.seconds, environment)
        noise = f", noisy: {measured.noise['noisy']}" if measured.noise["noisy"] else ""
        self.reporter.cell(
            f"{cell}: {measured.rows.num_rows:,} samples in {measured.seconds:.0f} s{noise}", cell.tokens
        )

    def _weights(self, cells: Sequence[QualityCell | LatencyCell]) -> Any:
        """Put a model's weights into the object store, or record why its cells fail and return None."""
        import ray

        from kvstream import tasks

        if self.interrupt.draining:
            return None
        spec = cells[0].model.spec
        if spec in self.stored:
            return self.stored[spec]
        self.reporter.say(f"loading {spec}")
        self.stored.clear()  # one model at a time
        try:
            self.stored[spec] = ray.put(tasks.weights_of(cells[0]))
            return self.stored[spec]
        except Exception as error:
            for cell in cells:
                self._fail(cell, error, 1)
            return None

    def _failed(self, cell: Any, error: Any, attempt: int, waiting: deque[tuple[Any, int]]) -> int:
        """Try a cell again if its worker died for the first time, else record it; returns 1 if it failed for good."""
        cause = getattr(error, "cause", None)
        if cause is None and attempt < MAX_ATTEMPTS:
            waiting.append((cell, attempt + 1))
            return 0
        self._fail(cell, cause or error, attempt)
        return 1

    def _fail(self, cell: QualityCell | LatencyCell, error: BaseException, attempt: int) -> None:
        message = f"{type(error).__name__}: {error}"
        self.records.fail(cell.key, cell.fields, message, attempt)
        self.reporter.cell(f"{cell}: FAILED, {message.splitlines()[0]}", cell.tokens)
