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
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from kvstream.grid.axes import Grid
from kvstream.grid.flags import Options, parse_flags
from kvstream.grid.terminal import counted, leave, refuse
from kvstream.sweep.interrupt import Interrupt, NothingLeft

if TYPE_CHECKING:
    from kvstream.sweep.pool import Node
    from kvstream.sweep.preflight import Plan


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
        unfinished = run(asked, " ".join(manual.strip().partition("\n\n")[0].split()) if own else "", options)
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        leave(130)
    leave(1 if unfinished else 0)


def run(grid: Grid, question: str, options: Options) -> int:
    """Measure what the records in `options.out` lack of `grid`; count the cells that failed or were not reached.

    question: what records carry as the question; if empty, the grid in words. Where nothing is lacking, no Ray is
    started. Where this process uses a Ray already, that is used, and its workers stay for the next call. Raises
    ValueError for whatever can be known to fail before a model is loaded.

    A dry run goes the same way up to there, writes nothing, and counts the cells that no machine can hold.
    """
    from kvstream.grid.planning import prepare
    from kvstream.records.store import Records
    from kvstream.sweep import cluster
    from kvstream.sweep.preflight import Plan, question_of

    cluster.refuse_lost(options.out)
    where = "this process's Ray" if cluster.uses_ray() else cluster.answering()
    plan = Plan(grid, question or question_of(grid), options, prepare(grid), Records(options.out))
    device = cluster.device_here() if options.device == "auto" and not where else options.device
    if device != "auto":  # else only the cluster knows it
        cluster.require_suited(device, options.dtype, compiled=grid.repeats.compiled)
    if options.dry_run:
        plan.records.storage.require_place()
    with nullcontext() if options.dry_run else plan.records.locked():
        if device != "auto":
            plan.look(device)
        nodes = [] if plan.cells and not plan.todo else _machines(plan, where)
        if options.dry_run:
            plan.describe()
            return len(plan.refused)
        plan.begin()
        unfinished = len(plan.refused) + (_compute(plan, nodes) if plan.todo else 0)
    if unfinished < len(plan.cells):
        print(f"report: python analysis/report.py --records {shlex.quote(options.out)}")
    return unfinished


def _machines(plan: Plan, where: str | None) -> list[Node]:
    """Find the machines, and refuse what they cannot do. A dry run starts no Ray, and waits for nobody's GPU."""
    from kvstream.sweep import cluster

    options = plan.options
    if not options.dry_run:
        plan.records.require_writable()
    nodes = [cluster.this_machine()] if options.dry_run and not where else cluster.connect(where)
    device = cluster.choose_device(options.device, options.dtype, nodes, compiled=plan.grid.repeats.compiled)
    nodes = cluster.fit_for(device, nodes, options.threads, wait=not (options.dry_run and where))
    plan.look(device)
    plan.refuse_too_large(nodes)
    plan.require_room()
    return nodes


def _compute(plan: Plan, nodes: list[Node]) -> int:
    """Compute the cells that are to do; counts, and tells, those that failed or were not reached."""
    from kvstream.sweep.driver import Driver
    from kvstream.sweep.progress import Reporter
    from kvstream.sweep.ray_pool import pool_for
    from kvstream.sweep.results import Results

    cells, slots, interrupt = plan.todo, plan.divided(nodes), Interrupt()
    results = Results(plan.records, Reporter(len(cells), sum(cell.tokens for cell in cells)))
    alone = replace(slots, threads=plan.options.threads, whole=True)
    try:
        with interrupt.listening(), results.reporter.bar:
            Driver(slots, alone, nodes, pool_for, results, interrupt).measure(cells)
    except NothingLeft as error:
        print(f"stopping: {error}", file=sys.stderr)
    if unfinished := len(cells) - results.finished:
        are, them = ("is", "it") if unfinished == 1 else ("are", "them")
        told = (
            f"{unfinished:,} of {counted(len(cells), 'cell')} {are} not finished; the same command tries {them} again"
        )
        print(told, file=sys.stderr)
    return unfinished
