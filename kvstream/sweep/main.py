"""A sweep from the command line: finished cells drop out, the others go to the machines there are.

Whatever can be known to fail is said before a model is loaded, in one line.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kvstream.grid.axes import Grid
from kvstream.grid.flags import Options, parse_flags
from kvstream.grid.terminal import leave, refuse
from kvstream.sweep.interrupt import Interrupt, NothingLeft
from kvstream.sweep.question import question_of

if TYPE_CHECKING:
    from kvstream.sweep.preflight import Plan
    from kvstream.sweep.slots import Node, Slots


def main(grid: Grid, manual: str, arguments: Sequence[str] | None = None) -> None:
    """Run a sweep from the command line and end the program: exit code 0, 1 if a cell failed, 2 for invalid input.

    manual: what `--help` shows, the sweep's docstring; its first paragraph is the question that records carry, unless
    flags replaced an axis of the grid.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked, options = parse_flags(grid, manual, arguments)
        own = replace(asked, repeats=grid.repeats) == grid  # how often something is measured is not what is asked
        question = " ".join(manual.strip().partition("\n\n")[0].split()) if own else question_of(asked)
        unfinished = run(asked, question, options)
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        leave(130)
    except NothingLeft:
        # Its traceback holds buffers of Ray's store: to release them without that Ray would end the process here.
        leave(1, at_once=True)
    leave(1 if unfinished else 0)


def run(grid: Grid, question: str, options: Options) -> int:
    """Measure what the records in `options.out` lack of `grid`; count the cells that failed or were not reached.

    Where nothing is lacking, no Ray is started. Where this process uses a Ray already, that is used, and its workers
    stay for the next call. Raises ValueError for whatever can be known to fail before a model is loaded, and
    NothingLeft if Ray ends or has no machine left.
    """
    from kvstream.grid.planning import prepare
    from kvstream.records.store import Records
    from kvstream.sweep import cluster
    from kvstream.sweep.dry_run import describe
    from kvstream.sweep.preflight import Plan
    from kvstream.sweep.ray_address import answering

    cluster.refuse_lost(options.out)
    joined = cluster.joined()
    where = None if options.dry_run or joined else answering()
    if not (where or joined or options.dry_run):
        cluster.refuse_lacking(options.device, options.threads)
    plan = Plan(grid, question, options, prepare(grid), Records(options.out))
    auto = options.device == "auto"
    if options.dry_run:
        describe(grid, question, plan.span(cluster.device_here() if auto else options.device), plan.records)
        return 0
    with plan.records.locked():
        if not (auto and (where or joined)):  # else only the cluster knows the device
            plan.look(cluster.device_here() if auto else options.device)
        return _finish(plan, where)


def _finish(plan: Plan, where: str | None) -> int:
    """Measure what is missing on the Ray that answers at `where`, else on one of this machine; count what is left.

    Tells last how to look at the records.
    """
    if plan.cells and not plan.todo:
        plan.begin()
        unfinished = 0
    else:
        unfinished = _measure(plan, where)
    if unfinished < len(plan.cells):
        print(f"report: python analysis/report.py --records {shlex.quote(plan.options.out)}")
    return unfinished


def _measure(plan: Plan, where: str | None) -> int:
    """Find the machines, refuse what they cannot do, and compute the rest; counts what is left."""
    from kvstream.sweep import cluster

    options = plan.options
    plan.records.require_writable()
    nodes = cluster.connect(where)
    device = cluster.choose_device(options.device, options.dtype, nodes)
    nodes = cluster.fit_for(device, nodes, options.threads)
    plan.look(device)
    plan.refuse_too_large(nodes)
    slots = plan.divided(nodes)
    plan.begin()
    return len(plan.refused) + (_compute(plan, slots, nodes) if plan.todo else 0)


def _compute(plan: Plan, slots: Slots, nodes: list[Node]) -> int:
    """Compute the cells that are to do; counts those that failed or were not reached. Says why before NothingLeft."""
    from kvstream.sweep.driver import Driver
    from kvstream.sweep.progress import Reporter
    from kvstream.sweep.ray_pool import pool_for
    from kvstream.sweep.results import Results

    cells, lost = plan.todo, None
    results = Results(plan.records, Reporter(len(cells), sum(cell.tokens for cell in cells)))
    alone = replace(slots, threads=plan.options.threads, whole=True)
    try:
        with Interrupt() as interrupt, results.reporter:
            Driver(slots, alone, nodes, pool_for, results, interrupt).measure(cells)
    except NothingLeft as error:
        print(f"stopping: {error}", file=sys.stderr)
        lost = error
    if unfinished := len(cells) - results.finished:
        told = f"{unfinished} of {len(cells)} cells are not finished; the same command tries them again"
        print(told, file=sys.stderr)
    if lost:
        raise lost
    return unfinished
