"""What becomes of cells: their records, and a line of progress each. Only the driver writes. Knows no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.cells import Cell, QualityCell
from kvstream.grid.terminal import counted, visible
from kvstream.measure.latency import Measured
from kvstream.measure.quality import Evaluated
from kvstream.records.long_cells import Parts
from kvstream.records.store import Records
from kvstream.sweep.jobs import Job
from kvstream.sweep.pool import Done, Event, Told
from kvstream.sweep.progress import Reporter
from kvstream.sweep.work import Check, Recomputing, Work
from kvstream.sweep.worst_tokens import worst_tokens


@dataclass
class Results:
    """Writes to one records folder and tells what it wrote."""

    records: Records
    reporter: Reporter
    finished: int = 0  # cells
    _noted: set[str] = field(default_factory=set)  # lines that were told
    _parts: dict[str, Parts] = field(default_factory=dict)  # of long cells on their way

    def resumed(self, work: Work) -> Work:
        """Have a job on a long text go on where an earlier sweep stopped."""
        if not isinstance(work, Job) or work.start or work.length - 1 <= PART_TOKENS:
            return work
        [cell] = work.cells
        parts = self._parts[cell.key] = Parts(self.records, cell.key)
        try:
            begun = parts.load()
        except ValueError as error:
            self.reporter.part(f"{cell}: starts again, {error}", 0)
            return work
        if begun is None:
            return work
        self.reporter.drop(0, begun.tokens)
        self.reporter.part(f"{cell}: goes on after {begun.tokens:,} of {work.length:,} tokens", 0)
        return work.resumed(begun)

    def note(self, line: str) -> None:
        """Tell a line, once."""
        if line not in self._noted:
            self._noted.add(line)
            self.reporter.part(line, 0)

    def take(self, event: Event) -> None:
        """Write down what a worker finished, and tell how far it is and what it noted."""
        if isinstance(event, Done):
            for line in event.notes:
                self.note(line)
        if isinstance(event, Told):
            [cell] = event.work.cells
            self.reporter.inside(str(cell), event.progress.what, event.progress.share)
        elif isinstance(event, Done) and isinstance(event.work, Check):
            self.reporter.ready()
        elif isinstance(event, Done):
            threads, (result, environment) = {"threads": event.worker.threads}, event.result
            if isinstance(event.work, Job):
                for cell, evaluated in zip(event.work.cells, result):
                    self._evaluated(cell, event.work, evaluated, environment, threads)
            elif isinstance(event.work, Recomputing):
                self._recomputed(event.work.cells[0], result[0], environment, threads)
            else:
                self._timed(event.work.cells[0], result, environment, threads)

    def _evaluated(
        self, cell: QualityCell, job: Job, evaluated: Evaluated, environment: dict[str, Any], threads: dict[str, int]
    ) -> None:
        parts, computed = self._parts.get(cell.key), job.stop - job.start
        if not job.ends:
            assert parts is not None
            parts.add(evaluated, job.stop)
            line = f"{job.stop:,} of {job.length:,} tokens, {computed / evaluated.seconds:,.0f} tokens/s"
            if evaluated.peak_bytes is not None:
                line += f", {evaluated.peak_bytes / 1e6:,.0f} MB beyond the model"
            self.reporter.part(f"{cell}: {line}", computed)
            return
        rows, seconds = parts.all_with(evaluated) if parts else ([evaluated.rows], evaluated.seconds)
        fields, table = cell.fields | threads, pa.concat_tables(rows)
        if parts:
            fields |= {"parts": parts.costs(evaluated, job.stop)}
        if worst := worst_tokens(table, cell.document):
            fields |= {"worst": worst}
        if evaluated.attention_loss is not None:
            fields |= {"attention_loss": evaluated.attention_loss}
        self.records.commit(cell.key, fields, rows, seconds, environment)
        if parts:
            self._parts.pop(cell.key).clear()
        line = f"{cell}: {_score(table)}, {(cell.tokens - 1) / seconds:,.0f} tokens/s"
        self.reporter.cell(line, cell.tokens - job.start)
        self.finished += 1

    def _recomputed(
        self, cell: Cell, evaluated: Evaluated, environment: dict[str, Any], threads: dict[str, int]
    ) -> None:
        self.records.commit(cell.key, cell.fields | threads, [evaluated.rows], evaluated.seconds, environment)
        pace = f"{evaluated.rows.num_rows / evaluated.seconds:,.1f} tokens/s"
        self.reporter.cell(f"{cell}: {_score(evaluated.rows)}, {pace}", cell.tokens)
        self.finished += 1

    def _timed(self, cell: Cell, measured: Measured, environment: dict[str, Any], threads: dict[str, int]) -> None:
        fields = cell.fields | threads | {"contenders": measured.contenders, "noise": measured.noise}
        self.records.commit(cell.key, fields, [measured.rows], measured.seconds, environment)
        line = f"{cell}: {measured.rows.num_rows:,} samples in {measured.seconds:.0f} s"
        self.reporter.cell(line, cell.tokens)
        self.finished += 1

    def failed(self, work: Work, error: BaseException) -> None:
        """Write down that cells failed."""
        message = f"{type(error).__name__}: {error}"
        for cell in work.cells:
            self.records.fail(cell.key, cell.fields, message, work.attempt)
            self.reporter.cell(f"{cell}: FAILED, {message.splitlines()[0]}", cell.tokens - work.start)

    def refused(self, cells: Sequence[Cell], error: BaseException, *, told: bool) -> None:
        """Write down that no cell of a model can be computed, and say it in one line, unless it was told before."""
        message = f"{type(error).__name__}: {error}"
        for cell in cells:
            self.records.fail(cell.key, cell.fields, message, 1)
        self.reporter.drop(len(cells), sum(cell.tokens for cell in cells))
        if not told:
            reason = " ".join(str(error).split())
            self.reporter.part(visible(f"not run: no cell of {cells[0].model.spec}: {reason}"), 0)


def _score(rows: pa.Table) -> str:
    """Perplexity and mean KL over the tokens whose loss is a number, and how many are without one."""
    finite = rows.filter(pc.is_finite(rows["nll_nats"]))
    invalid = rows.num_rows - finite.num_rows
    ppl = f"PPL {np.exp(pc.mean(finite['nll_nats']).as_py()):.2f}" if finite.num_rows else "no PPL"
    kl_N = finite["kl_nats"].drop_null()
    if kl := pc.mean(kl_N.filter(pc.is_finite(kl_N))).as_py():
        ppl += f", KL {kl:.4f}"
    return f"{ppl}, NaN or infinite loss for {invalid:,} of {counted(rows.num_rows, 'token')}" if invalid else ppl
