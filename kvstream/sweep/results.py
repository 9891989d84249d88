"""What becomes of cells, whoever computed them: their records, a line of progress each, and what to do next.

Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.cells import Cell, LatencyCell
from kvstream.grid.visible import visible
from kvstream.measure.latency import Measured, Progress
from kvstream.measure.quality import Begun, Evaluated
from kvstream.records.long_cells import Parts
from kvstream.records.store import Records
from kvstream.sweep.jobs import Job
from kvstream.sweep.progress import Reporter


@dataclass
class Ledger:
    """Writes to one records folder and tells what it wrote."""

    records: Records
    reporter: Reporter
    finished: int = 0  # cells
    _parts: dict[str, Parts] = field(default_factory=dict)  # of long cells on their way

    def resumed(self, job: Job) -> Job:
        """Have a job on a long text go on where an earlier sweep stopped."""
        if job.length - 1 <= PART_TOKENS:
            return job
        [cell] = job.cells
        parts = self._parts[cell.key] = Parts(self.records, cell.key)
        try:
            begun = parts.load()
        except ValueError as error:
            self.reporter.part(f"{cell}: starts again, {error}", 0)
            return job
        if begun is None:
            return job
        self.reporter.spare(f"{cell}: goes on after {begun.tokens:,} of {job.length:,} tokens", begun.tokens)
        return replace(job, start=begun.tokens, begun=begun)

    def evaluated(self, job: Job, results: list[Evaluated], environment: dict[str, Any], threads: int) -> Job | None:
        """Write down what a job's part gave; returns the job of the next part, None after the last."""
        for cell, result in zip(job.cells, results):
            parts = self._parts.get(cell.key)
            if not job.ends:
                assert parts is not None
                parts.add(result, job.stop, environment | {"threads": threads})
                rate = (job.stop - job.start) / result.seconds
                line = f"{cell}: {job.stop:,} of {job.length:,} tokens, {rate:,.0f} tokens/s"
                self.reporter.part(line, job.stop - job.start)
                continue
            rows, seconds = parts.joined(result) if parts else ([result.rows], result.seconds)
            fields = cell.fields | {"threads": threads}
            if parts and len(places := parts.places(environment | {"threads": threads})) > 1:
                fields |= {"computed_on": places}  # a long cell may have been finished elsewhere than begun
            self.records.commit(cell.key, fields, rows, seconds, environment)
            if parts:
                parts.clear()
                del self._parts[cell.key]
            line = f"{cell}: {_score(pa.concat_tables(rows))}, {(cell.tokens - 1) / seconds:,.0f} tokens/s"
            self.reporter.cell(line, cell.tokens - job.start)
            self.finished += 1
        if job.ends:
            return None
        state = results[0].state
        assert state is not None, "a part that is not the last leaves a state"
        return Job(job.cells, start=job.stop, begun=Begun(job.stop, state))

    def timed(self, cell: LatencyCell, measured: Measured, environment: dict[str, Any], threads: int) -> None:
        """Write down a latency cell."""
        fields = cell.fields | {"threads": threads, "contenders": measured.contenders, "noise": measured.noise}
        self.records.commit(cell.key, fields, [measured.rows], measured.seconds, environment)
        line = f"{cell}: {measured.rows.num_rows:,} samples in {measured.seconds:.0f} s"
        self.reporter.cell(line, cell.tokens)
        self.finished += 1

    def told(self, cell: LatencyCell, progress: Progress) -> None:
        """Tell how far a latency cell is."""
        self.reporter.inside(str(cell), progress.what, progress.share)

    def failed(self, cell: Cell, error: BaseException, attempt: int, left: int | None = None) -> None:
        """Write down that a cell failed, with `left` of its tokens not computed, by default all."""
        message = f"{type(error).__name__}: {error}"
        self.records.fail(cell.key, cell.fields, message, attempt)
        self.reporter.cell(f"{cell}: FAILED, {message.splitlines()[0]}", cell.tokens if left is None else left)

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
    """Perplexity over the tokens whose loss is a number, and how many are without one."""
    finite = rows.filter(pc.is_finite(rows["nll_nats"]))
    invalid = rows.num_rows - finite.num_rows
    ppl = f"PPL {Evaluated(finite, 0.0).perplexity:.2f}" if finite.num_rows else "no PPL"
    return f"{ppl}, NaN or infinite loss for {invalid:,} of {rows.num_rows:,} tokens" if invalid else ppl
