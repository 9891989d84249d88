"""Is a records folder whole, and does a cell give the same rows again?

    python -m kvstream verify DIR          hashes and counts every record again
    python -m kvstream rerun DIR CELL      computes one quality cell again and compares

Nothing is written. Knows no Ray: `rerun` computes where it is started.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvstream.grid import SCHEMA, QualityCell
from kvstream.models import load_model, load_tokenizer, resolve
from kvstream.policies import parse_policy
from kvstream.records import sha256_of
from kvstream.text import load_documents

SAME_NATS = 1e-4  # between machines and thread numbers, whose roundings differ


@dataclass(frozen=True)
class Verdict:
    """What a folder holds: finished cells and their rows, and every problem in a sentence."""

    cells: int
    rows: int
    problems: list[str]


def verify(folder: Path) -> Verdict:
    """Check each record of `folder` and each cell that its sweep planned; ValueError where there is no sweep."""
    planned = _planned(folder)
    found = {path.stem: path for path in sorted(folder.glob("*.json")) if _is_key(path.stem)}
    problems, rows, cells = [], 0, 0
    for key in dict.fromkeys((*planned, *found)):
        if key not in found:
            problems.append(_unfinished(folder, key))
            continue
        try:
            rows += _checked(folder, key)
            cells += 1
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            problems.append(f"{key}: {error}")
    strays = [path.name for path in sorted(folder.glob("*.parquet")) if path.stem.partition(".")[0] not in found]
    on_their_way = {path.name.partition(".")[0] for path in folder.glob("*.parts.json")}
    problems += [f"{name}: no record names it" for name in strays if name.partition(".")[0] not in on_their_way]
    return Verdict(cells, rows, problems)


def _planned(folder: Path) -> list[str]:
    try:
        plan = json.loads((folder / "sweep.json").read_bytes())
        keys = plan["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"records: {str(folder)!r} holds no sweep ({error}); give the folder of a sweep's --out"
        ) from None
    if plan.get("schema") != SCHEMA:
        raise ValueError(f"records: {str(folder)!r} has schema {plan.get('schema')!r}, this kvstream reads {SCHEMA}")
    return keys


def _is_key(name: str) -> bool:
    return len(name) == 16 and not set(name) - set("0123456789abcdef")


def _unfinished(folder: Path, key: str) -> str:
    try:
        failed = json.loads((folder / f"{key}.failed.json").read_bytes())
        return f"{key}: failed, {str(failed['error']).splitlines()[0]}"
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return f"{key}: planned, but not finished; run the sweep again"


def _checked(folder: Path, key: str) -> int:
    """Rows of one cell, if its record, its file and its rows agree."""
    record = json.loads((folder / f"{key}.json").read_bytes())
    if record["cell"] != key or record["file"] != f"{key}.parquet":
        raise ValueError(f"its record is of {record['cell']}, {record['file']}")
    file = folder / record["file"]
    if sha256_of(file) != record["sha256"]:
        raise ValueError(f"{file.name} is not the file that was committed")
    table = pq.read_table(file)
    if table.num_rows != record["rows"]:
        raise ValueError(f"{file.name} has {table.num_rows:,} rows, {record['rows']:,} were committed")
    if table.num_rows and set(table["cell"].unique().to_pylist()) != {key}:
        raise ValueError(f"{file.name} holds rows of other cells")
    if record["fields"]["kind"] == "quality":
        expected = np.arange(1, record["fields"]["tokens"])
        if not np.array_equal(table["position"].to_numpy(), expected):
            raise ValueError(f"{file.name} does not hold each position from 1 to {len(expected):,} once")
    return table.num_rows


@dataclass(frozen=True)
class Rerun:
    """A cell computed again: how far its NLL is from the records' at most, in nats, and how many hits differ."""

    cell: str
    same_code: bool
    rows: int
    worst_nats: float
    other_hits: int

    @property
    def agrees(self) -> bool:
        """Whether what differs is rounding."""
        return self.worst_nats <= SAME_NATS


def rerun(folder: Path, key: str) -> Rerun:
    """Compute a finished quality cell of `folder` again; ValueError where that is impossible."""
    if not _is_key(key) or not (folder / f"{key}.json").is_file():
        raise ValueError(f"cell: {key!r} is not finished in {str(folder)!r}; give 16 hex digits, as in its file names")
    _checked(folder, key)
    record = json.loads((folder / f"{key}.json").read_bytes())
    fields = record["fields"]
    if fields["kind"] != "quality":
        raise ValueError(f"cell: {key!r} holds times, which never come again; give a quality cell")
    cell = _cell_of(fields)
    model, _ = load_model(fields["model"], dtype=fields["dtype"], device=fields["device"])
    again = _rows_of(cell, model)
    before = pq.read_table(folder / record["file"])
    if not before["token"].equals(again["token"]):
        raise ValueError(f"cell: {key!r} was computed on other tokens than {fields['text']!r} gives now")
    then, now = before["nll_nats"].to_numpy().astype(np.float64), again["nll_nats"].to_numpy()
    apart = np.where((then == now) | (np.isnan(then) & np.isnan(now)), 0.0, np.abs(then - now))
    hits = int((before["correct"].to_numpy() != again["correct"].to_numpy()).sum())
    return Rerun(str(cell), cell.key == key, len(apart), float(apart.max()), hits)


def _cell_of(fields: dict[str, Any]) -> QualityCell:
    info = resolve(fields["model"])
    [document] = load_documents(
        fields["text"], names=[fields["document"]], tokens=fields["tokens"], tokenizer=load_tokenizer(info)
    )
    about = fields["device"], fields["dtype"], parse_policy(fields["policy"])
    return QualityCell(info, *about, fields["text"], document, tuple(fields["lengths"]))


def _rows_of(cell: QualityCell, model: Any) -> pa.Table:
    """Rows of all parts of a cell, computed one after the other."""
    from kvstream.jobs import Job
    from kvstream.quality import Begun, evaluate

    job, tables = Job((cell,)), []
    while True:
        [result] = evaluate(model, begun=job.begun, **job.stretch)
        tables.append(result.rows)
        if result.state is None:
            return pa.concat_tables(tables)
        job = Job(job.cells, start=job.stop, begun=Begun(job.stop, result.state))
