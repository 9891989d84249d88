"""A sweep from the command line: finished cells drop out, the others fan out over the machines there are.

Whatever can be known to fail is said before a model is loaded, in one line.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from kvstream.command import Options, leave, parse_flags, refuse
from kvstream.grid import Cell, Grid, LatencyCell, QualityCell
from kvstream.interrupt import Interrupt, Lost

if TYPE_CHECKING:
    from kvstream.cluster import Node, Slots
    from kvstream.ledger import Ledger
    from kvstream.records import Records


def main(grid: Grid, manual: str, arguments: Sequence[str] | None = None) -> None:
    """Run a sweep from the command line and end the program: exit code 0, 1 if a cell failed, 2 for invalid input.

    manual: what `--help` shows, the sweep's docstring; its first paragraph is the question that records carry.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    question = " ".join(manual.strip().partition("\n\n")[0].split())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        grid, options = parse_flags(grid, manual, arguments)
        unfinished = run(grid, question, options)
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        leave(130)
    except Lost:
        # Its traceback holds buffers of Ray's store: to release them without that Ray would end the process here.
        leave(1, at_once=True)
    leave(1 if unfinished else 0)


def run(grid: Grid, question: str, options: Options) -> int:
    """Measure what the records in `options.out` lack of `grid`; count the cells that failed or were not reached.

    Raises ValueError for whatever can be known to fail before a model is loaded, and Lost if Ray ends or has no machine
    left.
    """
    from kvstream import cluster, plan
    from kvstream.address import answering
    from kvstream.parts import tidy
    from kvstream.records import Records

    cluster.refuse_lost(options.out)
    where = None if options.dry_run else answering()
    if not where and not options.dry_run:
        cluster.refuse_lacking(options.device, options.threads)
    sources = plan.prepare(grid)
    records = Records(options.out)

    def span(device: str) -> tuple[list[QualityCell], list[LatencyCell]]:
        axes = grid, sources, device, options.dtype
        return plan.quality_cells(*axes), plan.latency_cells(*axes, options.threads)

    if options.dry_run:
        quality, latency = span(cluster.device_here() if options.device == "auto" else options.device)
        plan.describe(grid, question, [*quality, *latency], records)
        return 0
    with records.locked():
        nodes = cluster.connect(where)
        device = cluster.choose_device(options.device, options.dtype, nodes)
        nodes = cluster.fit_for(device, nodes, options.threads)
        quality, latency = span(device)
        cells = [*quality, *latency]
        keys = [cell.key for cell in cells]
        finished = records.finished(keys)
        missing = [cell for cell in cells if cell.key not in finished]
        available = max(node.memory for node in nodes)
        refused = {cell: why for cell in missing if (why := plan.too_large(cell, available))}
        if len(refused) == len(keys):
            raise ValueError(next(iter(refused.values())))
        todo = [cell for cell in missing if cell not in refused]
        evaluated = [cell for cell in todo if isinstance(cell, QualityCell)]
        largest = max(map(plan.needed_bytes, evaluated), default=0.0)
        slots = cluster.divide(device, nodes, options.threads, len(evaluated), largest)
        records.plan(grid, question, cells)
        records.forget_failures()
        print(f"{grid.name}: {len(keys)} cells, {len(finished)} finished before, {len(todo)} to do → {options.out}")
        if others := tidy(records, finished, set(keys)):
            print(f"{others} long cells that other code or another grid has begun lie in {options.out}, unfinished")
        for cell, why in refused.items():
            records.fail(cell.key, cell.fields, why, 0)
            print(f"not run: {why}", file=sys.stderr)
        return len(refused) + (_measure(todo, slots, nodes, records) if todo else 0)


def _measure(cells: list[Cell], slots: Slots, nodes: list[Node], records: Records) -> int:
    """Quality cells first, side by side; then latency cells, alone. Counts those that failed or were not reached.

    Raises Lost, once its reason is said.
    """
    from kvstream.fleet import Fleet
    from kvstream.lastword import LastWord
    from kvstream.ledger import Ledger
    from kvstream.progress import Reporter
    from kvstream.watch import AGAIN

    reporter = Reporter(len(cells), sum(cell.tokens for cell in cells))
    ledger = Ledger(records, reporter)
    killed = f"stopping: the sweep was killed, or the Ray on this machine ended and took it along; {AGAIN}"
    with Interrupt() as interrupt, LastWord(killed):
        try:
            with reporter:
                fleet = Fleet(slots, nodes, ledger, interrupt)
                quality = [cell for cell in cells if isinstance(cell, QualityCell)]
                latency = [cell for cell in cells if isinstance(cell, LatencyCell)]
                for _, evaluated in groupby(quality, key=lambda cell: cell.model):
                    fleet.evaluate(list(evaluated))
                for _, timed in groupby(latency, key=lambda cell: cell.model):
                    fleet.time(list(timed))
        except Lost as lost:
            print(f"stopping: {lost}", file=sys.stderr)
            _unfinished(ledger, len(cells))
            raise
        return _unfinished(ledger, len(cells))


def _unfinished(ledger: Ledger, cells: int) -> int:
    """Count the cells that failed or were not reached, and tell so."""
    if unfinished := cells - ledger.finished:
        print(f"{unfinished} of {cells} cells are not finished; the same command tries them again", file=sys.stderr)
    return unfinished
