"""Is a records folder whole, and does a cell give the same rows again?

    kvstream verify DIR          hashes and counts every record again
    kvstream rerun DIR CELL      computes one quality cell again and compares

Nothing is written. Knows no Ray: `rerun` computes where it is started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvstream.grid.cells import SCHEMA, QualityCell
from kvstream.inputs.documents import load_documents
from kvstream.inputs.models import load_model, load_tokenizer, resolve
from kvstream.policies import parse_policy
from kvstream.records.long_cells import Parts
from kvstream.records.storage import LOCK
from kvstream.records.store import Records

AS_NOISE = 4.0  # times what rounding alone changes: other machines and numbers of threads round in other ways


@dataclass(frozen=True)
class Verdict:
    """What a folder holds: finished cells and their rows, and every problem in a sentence."""

    cells: int
    rows: int
    problems: list[str]


def verify(records: Records) -> Verdict:
    """Check each record and each cell that the sweep planned; ValueError where there is no sweep."""
    planned = _planned(records)
    names = records.storage.names()
    found = {name.removesuffix(".json") for name in names if _is_key(name.removesuffix(".json"))}
    failed = {name.partition(".")[0] for name in names if name.endswith(".failed.json")}
    begun = {name.partition(".")[0] for name in names if name.endswith(".parts.json")}
    problems, rows, cells = [], 0, 0
    for key in dict.fromkeys((*planned, *sorted(found | failed | begun))):
        try:
            if key in found:
                rows += _checked(records, key).num_rows
                cells += 1
            elif key in failed:
                problems.append(f"{key}: failed, {_line(records.read_json(f'{key}.failed.json')['error'])}")
            elif key in planned:
                problems.append(f"{key}: planned, but not finished; run the sweep again")
            if key in begun:
                Parts(records, key).load()
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            problems.append(f"{key}: {error}")
    problems += [f"{name}: no record names it" for name in names if _is_stray(name, found, begun)]
    return Verdict(cells, rows, problems)


def _planned(records: Records) -> list[str]:
    where = records.storage.where
    try:
        plan = records.read_json("sweep.json")
    except ValueError as error:
        raise ValueError(f"records: {where!r} is damaged ({error}); run the sweep again") from None
    except OSError as error:
        raise ValueError(f"records: {where!r} holds no sweep ({error}); give the folder of a sweep's --out") from None
    if plan["schema"] != SCHEMA:
        raise ValueError(f"records: {where!r} has schema {plan['schema']!r}, this kvstream reads {SCHEMA}")
    keys: list[str] = plan["cells"]
    return keys


def _is_key(name: str) -> bool:
    return len(name) == 16 and not set(name) - set("0123456789abcdef")


def _is_stray(name: str, found: set[str], begun: set[str]) -> bool:
    """Whether neither a record nor the sweep itself accounts for a file."""
    key, _, kind = name.partition(".")
    if kind in ("json", "failed.json", "parts.json") or name.startswith("."):
        return not (_is_key(key) or name in ("sweep.json", LOCK))
    if kind == "parquet":
        return key not in found
    return key not in begun or not kind.endswith((".part.parquet", ".state"))


def _line(error: object) -> str:
    return (str(error).splitlines() or ["without a word"])[0]


def _checked(records: Records, key: str) -> pa.Table:
    """Rows of one cell, if its record, its file and its rows agree."""
    record = records.read_json(f"{key}.json")
    if record["schema"] != SCHEMA:
        raise ValueError(f"it has schema {record['schema']!r}, this kvstream reads {SCHEMA}; run the sweep again")
    name = f"{key}.parquet"
    if record["cell"] != key or record["file"] != name:
        raise ValueError(f"its record is of {record['cell']}, {record['file']}")
    table = pq.read_table(pa.BufferReader(records.read_committed(name, record["sha256"])))
    if table.num_rows != record["rows"]:
        raise ValueError(f"{name} has {table.num_rows:,} rows, {record['rows']:,} were committed")
    if table.num_rows and set(table["cell"].unique().to_pylist()) != {key}:
        raise ValueError(f"{name} holds rows of other cells")
    if record["fields"]["kind"] == "quality":
        expected = np.arange(1, record["fields"]["tokens"])
        if not np.array_equal(table["position"].to_numpy(), expected):
            raise ValueError(f"{name} does not hold each position from 1 to {len(expected):,} once")
    return table


@dataclass(frozen=True)
class Rerun:
    """A cell computed again: how far its NLL is from the records' at most and on average, in nats, what the model's own
    rounding makes of it on average, and how many hits differ."""

    cell: str
    same_code: bool
    rows: int
    worst_nats: float
    mean_nats: float
    rounding_nats: float
    other_hits: int

    @property
    def agrees(self) -> bool:
        """Whether what differs is rounding."""
        return not self.worst_nats or self.mean_nats <= AS_NOISE * self.rounding_nats  # NaN, where the model gives NaN


def rerun(records: Records, key: str) -> Rerun:
    """Compute a finished quality cell again; ValueError where that is impossible."""
    if not _is_key(key) or f"{key}.json" not in records.storage.names():
        where = records.storage.where
        raise ValueError(f"cell: {key!r} is not finished in {where!r}; give 16 hex digits, as in its file names")
    before = _checked(records, key)
    fields = records.read_json(f"{key}.json")["fields"]
    if fields["kind"] != "quality":
        raise ValueError(f"cell: {key!r} holds times, which never come again; give a quality cell")
    import torch  # for which neither `verify` nor a misspelt cell waits

    from kvstream.engine import model_check

    cell = _cell_of(fields)
    model, _ = load_model(fields["model"], dtype=fields["dtype"], device=fields["device"])
    ids_T = torch.as_tensor(cell.document.token_ids).long()
    model_check.check(model, ids_T)
    again = _rows_of(cell, model)
    if not before["token"].equals(again["token"]):
        raise ValueError(f"cell: {key!r} was computed on other tokens than {fields['text']!r} gives now")
    then, now = before["nll_nats"].to_numpy().astype(np.float64), again["nll_nats"].to_numpy()
    apart = np.where((then == now) | (np.isnan(then) & np.isnan(now)), 0.0, np.abs(then - now))
    hits = int((before["correct"].to_numpy() != again["correct"].to_numpy()).sum())
    differs = float(apart.max()), float(apart.mean()), model_check.rounding_nats(model, ids_T)
    return Rerun(str(cell), cell.key == key, len(apart), *differs, hits)


def _cell_of(fields: dict[str, Any]) -> QualityCell:
    info = resolve(fields["model"])
    how = {"bos": "on" if fields.get("bos") else "off", "join_rows": fields.get("join_rows", False)}
    [document] = load_documents(
        fields["text"], names=[fields["document"]], tokens=fields["tokens"], tokenizer=load_tokenizer(info), **how
    )
    about = fields["device"], fields["dtype"], parse_policy(fields["policy"])
    return QualityCell(info, *about, fields["text"], document, tuple(fields["lengths"]))


def _rows_of(cell: QualityCell, model: Any) -> pa.Table:
    """Rows of all parts of a cell, computed one after the other."""
    from kvstream.measure.quality import Begun, evaluate
    from kvstream.sweep.jobs import Job

    job, tables = Job((cell,)), []
    while True:
        [result] = evaluate(model, begun=job.begun, **job.stretch)
        tables.append(result.rows)
        if result.state is None:
            return pa.concat_tables(tables)
        job = Job(job.cells, start=job.stop, begun=Begun(job.stop, result.state))
