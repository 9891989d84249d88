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
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kvstream.command import Options, parse_flags, refuse
from kvstream.grid import Cell, Grid

if TYPE_CHECKING:
    import numpy as np

    from kvstream.interrupt import Interrupt
    from kvstream.models import ModelInfo
    from kvstream.policies import Policy
    from kvstream.progress import Reporter
    from kvstream.quality import Evaluated
    from kvstream.records import Records
    from kvstream.text import Document

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
    except ValueError as error:
        refuse(error)
    sys.exit(1 if unfinished else 0)


def run(grid: Grid, question: str, options: Options) -> int:
    """Evaluate what the records in `options.out` lack of `grid`; count the cells that failed or were not reached.

    Raises ValueError for whatever can be known to fail before a model is loaded.
    """
    from kvstream.records import Records

    sources = prepare(grid)
    records = Records(options.out)
    if options.dry_run:
        device = _device_here() if options.device == "auto" else options.device
        _describe(grid, question, span(grid, sources, device, options.dtype), records)
        return 0
    with records.locked():
        device, cores = connect(options.device)
        cells = span(grid, sources, device, options.dtype)
        keys = [cell.key for cell in cells]
        records.plan(grid.name, question, keys)
        finished = records.finished(keys)
        missing = [cell for cell in cells if cell.key not in finished]
        print(f"{grid.name}: {len(cells)} cells, {len(finished)} finished before, {len(missing)} to do → {options.out}")
        return _evaluate(missing, divide(device, cores, options.threads, len(missing)), records) if missing else 0


def prepare(grid: Grid) -> list[tuple[ModelInfo, list[Document]]]:
    """Each model of the grid with its documents, tokenized. Loads no model; ValueError for what is missing or unfit."""
    from kvstream.models import load_tokenizer, resolve
    from kvstream.text import load_documents

    infos = [resolve(model) for model in grid.models]
    deepest = max((layer for policy in grid.policies for layer in getattr(policy, "skip_layers", ())), default=0)
    for info in infos:
        if not info.has_quality:
            raise ValueError(
                f"models: {info.spec!r} has random weights, so its perplexity means nothing; give a trained model"
            )
        if deepest >= info.num_layers:
            raise ValueError(
                f"skip_layers: {deepest} is not a layer of {info.spec!r}; give numbers from 0 to {info.num_layers - 1}"
            )
    return [
        (
            info,
            load_documents(
                grid.text, documents=grid.documents, tokens=grid.lengths[-1], tokenizer=load_tokenizer(info)
            ),
        )
        for info in infos
    ]


def span(grid: Grid, sources: list[tuple[ModelInfo, list[Document]]], device: str, dtype: str) -> list[Cell]:
    """Every cell of the grid, sorted by model and document."""
    return [
        Cell(info, policy, grid.text, document, grid.lengths, device, dtype)
        for info, documents in sources
        for document in documents
        for policy in grid.policies
    ]


def _describe(grid: Grid, question: str, cells: list[Cell], records: Records) -> None:
    """Print the cells and what they would cost."""
    finished = records.finished([cell.key for cell in cells])
    print(question)
    for cell in cells:
        print(f"  {cell.key}  {cell}  {cell.tokens:,} tokens{'  finished' if cell.key in finished else ''}")
    missing = [cell for cell in cells if cell.key not in finished]
    tokens = sum(cell.tokens for cell in missing)
    tflop = sum(cell.tokens * cell.model.flops_per_token for cell in missing) / 1e12
    print(f"{grid.name}: {len(cells)} cells, {len(finished)} finished, {len(missing)} to do")
    print(
        f"cost: {tokens:,} tokens, {tflop:,.1f} TFLOP beside attention; "
        f"at 50 GFLOP/s per CPU core, {tflop / 0.05 / 60:,.0f} core-minutes"
    )


def _device_here() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def connect(device: str) -> tuple[str, list[int]]:
    """Find a running Ray or start one: the device that cells will use, and how many of it each node has.

    "auto" takes GPUs where there are any. Raises ValueError if no node has the device.
    """
    import ray

    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = [int(node.get("CPU", 0)) for node in nodes], [int(node.get("GPU", 0)) for node in nodes]
    if device == "auto":  # Ray counts Apple's GPU as one, too
        device = "cpu" if not sum(gpus) else "mps" if sys.platform == "darwin" else "cuda"
    if device != "cpu" and not sum(gpus):
        raise ValueError(f"device: {device!r} asked, but no node of the cluster has a GPU; use --device cpu")
    print(f"Ray: {len(nodes)} node(s) with {sum(cores)} CPUs and {sum(gpus)} GPUs; cells run on {device}")
    return device, cores if device == "cpu" else gpus


@dataclass(frozen=True)
class Slots:
    """What one cell takes of the cluster, and how many cells fit at once."""

    device: str
    threads: int
    count: int


def divide(device: str, per_node: list[int], threads: int | None, cells: int) -> Slots:
    """Divide the cluster among cells: one GPU each, or `threads` CPU cores, by default so that all cores are busy."""
    if device != "cpu":
        return Slots(device, 1, sum(per_node))
    threads = threads or max(1, min(MAX_THREADS, max(per_node), sum(per_node) // cells))
    if threads > max(per_node):
        raise ValueError(f"threads: {threads} asked, the largest node has {max(per_node)} CPUs; give no more than that")
    return Slots(device, threads, sum(cores // threads for cores in per_node))


def _evaluate(cells: list[Cell], slots: Slots, records: Records) -> int:
    """Fan the cells out, model by model, and write what comes back; count those that failed or were not reached."""
    from kvstream.interrupt import Interrupt
    from kvstream.progress import Reporter

    with Reporter(len(cells), sum(cell.tokens for cell in cells)) as reporter, Interrupt() as interrupt:
        fleet = Fleet(slots, records, reporter, interrupt)
        unfinished = sum(fleet.evaluate(list(group)) for _, group in groupby(cells, key=lambda cell: cell.model))
    if unfinished:
        print(
            f"{unfinished} of {len(cells)} cells are not finished; the same command tries them again", file=sys.stderr
        )
    return unfinished


@dataclass
class Fleet:
    """Cells on their way: submits a bounded number, takes what is ready in whatever order, writes it down."""

    slots: Slots
    records: Records
    reporter: Reporter
    interrupt: Interrupt

    def evaluate(self, cells: list[Cell]) -> int:
        """Evaluate the cells of one model; count those that failed or were not reached."""
        import ray

        if self.interrupt.draining:
            return len(cells)
        try:
            weights = ray.put(_weights(cells[0]))
        except ValueError as error:
            return sum(self._fail(cell, error, 1) for cell in cells)
        texts = {cell.document.name: ray.put(cell.document.token_ids) for cell in cells}
        task = ray.remote(max_calls=0, max_retries=0)(evaluate_cell)
        waiting = deque((cell, 1) for cell in cells)
        running: dict[Any, tuple[Cell, int]] = {}
        unfinished = 0
        while running or (waiting and not self.interrupt.draining):
            while waiting and len(running) < 2 * self.slots.count and not self.interrupt.draining:
                cell, attempt = waiting.popleft()
                submit = task.options(num_cpus=self.slots.threads, num_gpus=int(self.slots.device != "cpu"))
                reference = submit.remote(
                    weights, texts[cell.document.name], cell.policy, cell.key, cell.document.name, self.slots
                )
                running[reference] = cell, attempt
            if self.interrupt.stopping:
                for reference in running:
                    ray.cancel(reference, force=True)
                return unfinished + len(running) + len(waiting)
            for reference in ray.wait(list(running), num_returns=1, timeout=WAIT_S)[0]:
                cell, attempt = running.pop(reference)
                try:
                    self._finish(cell, *ray.get(reference))
                except ray.exceptions.RayTaskError as error:
                    unfinished += self._fail(cell, error.cause, attempt)
                except ray.exceptions.RayError as error:
                    if attempt < MAX_ATTEMPTS:
                        waiting.append((cell, attempt + 1))
                    else:
                        unfinished += self._fail(cell, error, attempt)
        return unfinished + len(waiting)

    def _finish(self, cell: Cell, evaluated: Evaluated, environment: dict[str, Any]) -> None:
        fields = cell.fields | {"threads": self.slots.threads}
        self.records.commit(cell.key, fields, evaluated.rows, evaluated.seconds, environment)
        rate = evaluated.rows.num_rows / evaluated.seconds
        line = f"{cell}: PPL {evaluated.perplexity:.2f}, {rate:,.0f} tokens/s"
        self.reporter.cell(line, cell.tokens)

    def _fail(self, cell: Cell, error: BaseException, attempt: int) -> int:
        message = f"{type(error).__name__}: {error}"
        self.records.fail(cell.key, cell.fields, message, attempt)
        self.reporter.cell(f"{cell}: FAILED, {message.splitlines()[0]}", cell.tokens)
        return 1


def _weights(cell: Cell) -> tuple[Any, dict[str, np.ndarray]]:
    """The configuration and weights of a cell's model, as arrays that workers can share."""
    from kvstream.models import load_model
    from kvstream.weights import to_arrays

    model, _ = load_model(cell.model.spec, dtype=cell.dtype)
    return to_arrays(model)


def evaluate_cell(
    weights: tuple[Any, dict[str, np.ndarray]],
    token_ids: np.ndarray,
    policy: Policy,
    key: str,
    document: str,
    slots: Slots,
) -> tuple[Evaluated, dict[str, Any]]:
    """One cell, in a Ray worker: its rows, and where they were computed."""
    import torch

    from kvstream.environment import environment
    from kvstream.quality import evaluate
    from kvstream.weights import from_arrays

    torch.set_num_threads(
        slots.threads
    )  # a reused worker keeps the last cell's, a Ray launcher's OMP_NUM_THREADS says 1
    model = from_arrays(*weights, device=slots.device)
    return evaluate(model, token_ids, policy, cell=key, document=document, device=slots.device), environment()  # type: ignore[arg-type]
