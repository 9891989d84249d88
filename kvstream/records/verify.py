"""Is a records folder whole? `kvstream verify DIR` hashes and counts every record again. Nothing is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvstream.engine.notes import first_line
from kvstream.grid.cells import SCHEMA
from kvstream.records.long_cells import Parts
from kvstream.records.storage import LOCK
from kvstream.records.store import ROWS, Records

KEY = re.compile("[0-9a-f]{16}")


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
    found, failed, begun = (_keys(names, ending) for ending in (".json", ".failed.json", ".parts.json"))
    problems, rows, named = [], 0, dict[str, str]()
    for key in dict.fromkeys((*planned, *sorted(found | failed | begun))):
        try:
            if key in found:
                named[key], table = checked_rows(records, key)
                rows += table.num_rows
            elif key in failed:
                problems.append(f"{key}: failed, {first_line(records.read_json(f'{key}.failed.json')['error'])}")
            elif key in planned:
                problems.append(f"{key}: planned, but not finished; run the sweep again")
            if key in begun:
                Parts(records, key).load()
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            problems.append(f"{key}: {error}")
    left = "no record names it; remove it, unless a sweep is running: one that was stopped, or two at once, leave such"
    problems += [f"{name}: {left}" for name in names if _is_stray(name, found, begun, named)]
    return Verdict(len(named), rows, problems)


def checked_rows(records: Records, key: str) -> tuple[str, pa.Table]:
    """The file and the rows of one cell; ValueError unless its record, its file and its rows agree."""
    record, data = records.committed(key)
    name = record["file"]
    table = pq.read_table(pa.BufferReader(data))
    if table.num_rows != record["rows"]:
        raise ValueError(f"{name} has {table.num_rows:,} rows, {record['rows']:,} were committed")
    if table.num_rows and set(table["cell"].unique().to_pylist()) != {key}:
        raise ValueError(f"{name} holds rows of other cells")
    if record["fields"]["kind"] == "quality":
        every = record["fields"].get("every", 1)
        expected = np.arange(every, record["fields"]["tokens"], every)
        if not np.array_equal(table["position"].to_numpy(), expected):
            steps = f" in steps of {every}" if every > 1 else ""
            raise ValueError(
                f"{name} does not hold each position from {every} to {record['fields']['tokens'] - 1:,}{steps} once"
            )
    return name, table


def _planned(records: Records) -> list[str]:
    where = records.storage.where
    try:
        plan = records.read_json("sweep.json")
    except ValueError as error:
        raise ValueError(f"records: {where!r} is damaged ({error}); run the sweep again") from None
    except OSError as error:
        why = "no sweep.json is there" if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"records: {where!r} holds no sweep ({why}); give the folder of a sweep's --out") from None
    if plan["schema"] != SCHEMA:
        raise ValueError(f"records: {where!r} has schema {plan['schema']!r}, this kvstream reads {SCHEMA}")
    keys: list[str] = plan["cells"]
    return keys


def _keys(names: list[str], ending: str) -> set[str]:
    return {key for name in names if KEY.fullmatch(key := name.removesuffix(ending)) and key != name}


def _is_stray(name: str, found: set[str], begun: set[str], named: dict[str, str]) -> bool:
    """Whether neither a record nor the sweep itself accounts for a file; named: the rows of each sound cell."""
    key, _, kind = name.partition(".")
    if not KEY.fullmatch(key):
        return name not in ("sweep.json", LOCK)
    if ROWS.fullmatch(name):
        return key not in found or named.get(key, name) != name
    if kind.endswith((".part.parquet", ".state")):
        return key not in begun
    return kind not in ("json", "failed.json", "parts.json")
