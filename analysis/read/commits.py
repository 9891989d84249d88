"""Read one commit record and check it, its Parquet file and its rows, before a number is taken from them.

The file must have the committed sha256, row count and columns, and hold every sample that the cell was asked for.
Knows JSON and Parquet, no SQL.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.read.contract import COLUMNS, FIELDS, IDENTITY, LATER, SCHEMA, SHA256, RecordsError, check_fields
from analysis.read.rows import latency_problem, quality_problem

# What is decoded to check a file; losses and hits are read once, by the queries.
CHECKED = {"quality": ["cell", "position"], "latency": list(COLUMNS["latency"])}


def read_json(path: Path) -> dict[str, Any]:
    """Parse one JSON object; ValueError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise RecordsError(f"{path.name}: not JSON ({problem}); delete it and run the sweep again") from None
    if not isinstance(value, dict):
        raise RecordsError(f"{path.name}: not a JSON object; delete it and run the sweep again")
    seal = value.pop("checksum", None)  # of the file's name and the same JSON without it
    written = f"{path.name}\n{json.dumps(value, indent=1, ensure_ascii=False)}"
    if seal != hashlib.sha256(written.encode(errors="surrogatepass")).hexdigest():
        raise RecordsError(f"checksum: {path.name} is not what was written; delete it and run the sweep again")
    return value


def try_commit(path: Path) -> dict[str, Any] | tuple[str, str]:
    """A checked commit record, or the name of one that does not count and why."""
    try:
        return read_commit(path)
    except (ValueError, OSError, pa.ArrowException) as problem:
        return path.name, str(problem)


def read_commit(path: Path) -> dict[str, Any]:
    """Read one commit record and check it and its Parquet file; ValueError with field, value and remedy."""
    commit = read_json(path)
    key = path.name.split(".")[0]
    if commit.get("schema") != SCHEMA:
        raise RecordsError(f"schema: {commit.get('schema')!r}, this report reads {SCHEMA}; use the matching version")
    sha256 = commit.get("sha256")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise RecordsError(f"sha256: {sha256!r}, not 64 hex digits; delete {path.name} and run the sweep again")
    files = f"{key}.{sha256[:16]}.parquet", f"{key}.parquet"
    for name, allowed in (("cell", (key,)), ("file", files)):
        if commit.get(name) not in allowed:
            raise RecordsError(
                f"{name}: {commit.get(name)!r}, not {allowed[0]!r}; delete {path.name} and run the sweep again"
            )
    fields = commit.get("fields")
    if not isinstance(fields, dict) or fields.get("kind") not in FIELDS:
        raise RecordsError(f"fields.kind: missing, or not one of {', '.join(FIELDS)}; run the sweep again")
    kind = fields["kind"]
    check_fields(fields, FIELDS[kind] | IDENTITY[kind])
    table = read_table(commit, path.parent / commit["file"], kind)
    problem = quality_problem(fields, table) if kind == "quality" else latency_problem(fields, table)
    if problem:
        raise RecordsError(f"{problem}; delete {path.name} and run the sweep again")
    return commit


def read_table(commit: dict[str, Any], path: Path, kind: str) -> pa.Table:
    """Check a commit record's Parquet file, its bytes, row count, columns and whose rows they are; read CHECKED."""
    remedy = f"delete {commit['cell']}.json and run the sweep again"
    if not path.is_file():
        raise RecordsError(f"file: {path.name} is missing; {remedy}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != commit["sha256"]:
        raise RecordsError(f"sha256: {path.name} is {digest[:12]}…, committed {commit['sha256'][:12]}…; {remedy}")
    file = pq.ParquetFile(pa.BufferReader(content))
    if file.metadata.num_rows != commit.get("rows"):
        raise RecordsError(f"rows: {path.name} has {file.metadata.num_rows}, committed {commit.get('rows')}; {remedy}")
    schema = file.schema_arrow
    for name, types in COLUMNS[kind].items():
        found = str(schema.field(name).type).split("<")[0] if name in schema.names else "missing"
        if found not in types:
            raise RecordsError(f"{name}: column of {path.name} is {found}, must be {types[0]}; {remedy}")
    for name, types in LATER.items():
        if name in schema.names and str(schema.field(name).type) not in types:
            raise RecordsError(
                f"{name}: column of {path.name} is {schema.field(name).type}, must be {types[0]}; {remedy}"
            )
    table = file.read(columns=CHECKED[kind], use_threads=False)
    if table["cell"].unique().to_pylist() != [commit["cell"]]:
        raise RecordsError(f"cell: {path.name} holds rows of another cell; {remedy}")
    return table
