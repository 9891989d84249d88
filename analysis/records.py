"""Read a records folder and check every file against its commit record before a number is taken from it.

A cell counts only when its Parquet file has the committed sha256, row count and columns, and scores each position once.
Everything else is named in `Records.excluded`; nothing drops out in silence. Knows JSON and Parquet, no SQL.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = 1
COMMIT = re.compile(r"[0-9a-f]{16}\.json")
FAILED = re.compile(r"[0-9a-f]{16}\.failed\.json")
COLUMNS: dict[str, tuple[str, ...]] = {
    "cell": ("string", "large_string", "dictionary"),
    "document": ("string", "large_string", "dictionary"),
    "position": ("int32",),
    "token": ("int32",),
    "nll_nats": ("float",),
    "correct": ("bool",),
}
FIELDS: dict[str, pa.DataType] = {
    "model": pa.string(),
    "model_note": pa.string(),
    "trained_context": pa.int64(),
    "policy": pa.string(),
    "policy_name": pa.string(),
    "strategy": pa.string(),
    "position_mode": pa.string(),
    "budget": pa.int64(),
    "start_size": pa.int64(),
    "skip_layers": pa.string(),
    "text": pa.string(),
    "document": pa.string(),
    "tokens": pa.int64(),
    "lengths": pa.list_(pa.int64()),
    "device": pa.string(),
    "dtype": pa.string(),
    "kv_bytes": pa.int64(),
    "kv_bytes_full": pa.int64(),
}
NULLABLE = {"model_note", "strategy", "position_mode", "budget", "start_size"}


class RecordsError(ValueError):
    """A records folder that cannot be reported on; the message names what is wrong and what to do."""


@dataclass(frozen=True)
class Records:
    """What a records folder holds: checked commit records, and by name whatever is failed, missing or excluded."""

    folder: Path
    commits: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    missing: list[str]
    excluded: list[tuple[str, str]]
    sweep: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """The Parquet files to read, one per checked commit record, in that order."""
        return [self.folder / commit["file"] for commit in self.commits]


def read_records(folder: Path) -> Records:
    """Read and check `folder`; RecordsError when there is no folder or not one usable quality cell in it."""
    if not folder.is_dir():
        raise RecordsError(f"--records: no folder '{folder}'; run `make run`, or pass a folder written by a sweep")
    names = sorted(entry.name for entry in folder.iterdir())
    commits, excluded = [], []
    for name in filter(COMMIT.fullmatch, names):
        try:
            commit = read_commit(folder / name)
        except (ValueError, OSError, pa.ArrowException) as problem:
            excluded.append((name, str(problem)))
            continue
        if commit["fields"]["kind"] == "quality":
            commits.append(commit)
    if not commits:
        found = "; ".join(f"{name}: {why}" for name, why in excluded[:1]) or "no finished cell"
        raise RecordsError(f"--records: nothing to report in '{folder}' ({found}); run `make run` or a sweep again")
    committed = {name.split(".")[0] for name in filter(COMMIT.fullmatch, names)}
    failed = [
        read_json(folder / name) for name in filter(FAILED.fullmatch, names) if name.split(".")[0] not in committed
    ]
    sweep = read_json(folder / "sweep.json") if "sweep.json" in names else {}
    known = committed | {record.get("cell") for record in failed}
    missing = [key for key in sweep.get("cells", []) if key not in known]
    return Records(folder, commits, failed, missing, excluded, sweep)


def read_json(path: Path) -> dict[str, Any]:
    """Parse one JSON object; ValueError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise RecordsError(f"{path.name}: not JSON ({problem}); delete it and run the sweep again") from None
    if not isinstance(value, dict):
        raise RecordsError(f"{path.name}: not a JSON object; delete it and run the sweep again")
    return value


def read_commit(path: Path) -> dict[str, Any]:
    """Read one commit record and check it and its Parquet file; ValueError with field, value and remedy."""
    commit = read_json(path)
    key = path.name.split(".")[0]
    if commit.get("schema") != SCHEMA:
        raise RecordsError(f"schema: {commit.get('schema')!r}, this report reads {SCHEMA}; use the matching version")
    for name, expected in (("cell", key), ("file", f"{key}.parquet")):
        if commit.get(name) != expected:
            raise RecordsError(
                f"{name}: {commit.get(name)!r}, not {expected!r}; delete {path.name} and run the sweep again"
            )
    fields = commit.get("fields")
    if not isinstance(fields, dict) or "kind" not in fields:
        raise RecordsError(f"fields.kind: missing; delete {path.name} and run the sweep again")
    if fields["kind"] == "quality":
        check_fields(fields)
        check_rows(commit, path.parent / commit["file"])
    return commit


def check_fields(fields: dict[str, Any]) -> None:
    """Check that each field of the contract is there and of its type."""
    for name, kind in FIELDS.items():
        value = fields.get(name)
        if value is None and (name not in NULLABLE or name not in fields):
            raise RecordsError(f"fields.{name}: missing; run the sweep again with the current version")
        try:
            pa.scalar(value, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise RecordsError(f"fields.{name}: {value!r} is no {kind}; run the sweep again") from None
    if max(fields["lengths"], default=None) != fields["tokens"]:
        raise RecordsError(f"fields.lengths: {fields['lengths']} does not end at tokens={fields['tokens']}")


def check_rows(commit: dict[str, Any], path: Path) -> None:
    """Check the Parquet file of a commit record: bytes, row count, columns, and each position exactly once."""
    remedy = f"delete {path.stem}.json and run the sweep again"
    if not path.is_file():
        raise RecordsError(f"file: {path.name} is missing; {remedy}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != commit.get("sha256"):
        raise RecordsError(
            f"sha256: {path.name} is {digest[:12]}…, committed {str(commit.get('sha256'))[:12]}…; {remedy}"
        )
    table = pq.read_table(pa.BufferReader(content))
    tokens = commit["fields"]["tokens"]
    if not table.num_rows == commit.get("rows") == tokens - 1:
        raise RecordsError(
            f"rows: {path.name} has {table.num_rows}, committed {commit.get('rows')}, tokens {tokens}; {remedy}"
        )
    for name, kinds in COLUMNS.items():
        kind = str(table.schema.field(name).type).split("<")[0] if name in table.column_names else "missing"
        if kind not in kinds:
            raise RecordsError(f"{name}: column of {path.name} is {kind}, must be {kinds[0]}; {remedy}")
    if table["cell"].unique().to_pylist() != [commit["cell"]]:
        raise RecordsError(f"cell: {path.name} holds rows of another cell; {remedy}")
    if not np.array_equal(np.sort(table["position"].to_numpy()), np.arange(1, tokens)):
        raise RecordsError(f"position: {path.name} does not score 1…{tokens - 1} once each; {remedy}")
