"""Sweeps for tests: in this process or as a user starts them, kills, and what a records folder holds in the end."""

import hashlib
import io
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent
QUICK = ROOT / "sweeps" / "quick.py"


def arguments(world, out, *more):
    """The command of a sweep over the tiny model and its three texts; `more` flags may replace those given here."""
    where = ["--models", str(world / "model"), "--text", str(world / "texts"), "--out", str(out), "--device", "cpu"]
    axes = ["--budgets", "8,32", "--lengths", "50,400", "--documents", "3", "--contexts", "none"]
    axes += ["--start-sizes", "1,4", "--strategies", "keep_low,random"]  # eleven policies, whatever the sweep has
    return [sys.executable, str(QUICK), *where, *axes, *more]


def labelled(world, out, policies, tokens, *more, texts="texts"):
    """The command of a sweep of whole labels over one text; one thread a cell, so that the same workers serve all."""
    where = ["--models", str(world / "model"), "--text", str(world / texts), "--out", str(out), "--device", "cpu"]
    axes = ["--policies", policies, "--lengths", str(tokens), "--documents", "1", "--contexts", "none"]
    return [sys.executable, str(QUICK), *where, *axes, "--threads", "1", *more]


def run(command, **options):
    """Run a command from the checkout, as a user would, and wait for it."""
    return subprocess.run(command, capture_output=True, text=True, timeout=400, **{"cwd": ROOT} | options)


@dataclass(frozen=True)
class Ended:
    """How a command ended that ran in this process, as `subprocess.run` tells it."""

    returncode: int
    stdout: str
    stderr: str


def here(act, *given) -> Ended:
    """Run a command's `main` in this process, which it ends with SystemExit."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
        try:
            code = act(*given)
        except SystemExit as ended:
            code = ended.code
    return Ended(code or 0, out.getvalue(), error.getvalue())


def sweep_here(command, grid=None, manual=None) -> Ended:
    """Run a sweep in this process, given as a command or as flags; with the fixture `ray_here`, on that Ray.

    grid, manual: what is swept if it is not sweeps/quick.py.
    """
    from kvstream.sweep.main import main

    if grid is None:
        quick = runpy.run_path(str(QUICK))
        grid, manual = quick["GRID"], quick["__doc__"]
    flags = command[2:] if command[:1] == [sys.executable] else command
    return here(main, grid, manual, flags)


def digest(out):
    """Digest of every finished cell's rows, whatever the files' bytes."""
    cells = {}
    for record in sorted(out.glob("????????????????.json")):
        table = pq.read_table(out / json.loads(record.read_text())["file"])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        cells[record.stem] = hashlib.sha256(sink.getvalue()).hexdigest()
    return cells
