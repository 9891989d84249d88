"""A locked-down DuckDB over checked records, and the only way to run a query from `queries/`.

It reaches no file, loads no extension and lets no setting be changed: rows come to it as Arrow tables. Its tables are
`commits` (quality), `latency_commits`, `contenders`, `policies` and `environment` from the commit records, `pieces` and
`samples` from the rows of all cells, `published_*` from other people's numbers, the prepared queries, and from the
statistics `intervals`, `rival_intervals`, `control_intervals` and `round_intervals`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset

from analysis.numbers.rounds import round_intervals
from analysis.numbers.series import policies_table
from analysis.numbers.stats import intervals
from analysis.read.contract import CONTENDER, FIELDS, NOISE, texts
from analysis.read.records import Records

QUERIES = Path(__file__).parent.parent / "queries"
PUBLISHED = Path(__file__).parent.parent / "published"
NAMED = ("settings", "focus", "cells")  # what cells are, without their rows
PREPARED = ("prefixes", "documents", "latency_cells", "rounds")
RESULTS = ("perplexity", "rivals", "guessing", "answer", "differences", "noise", "latency", "pairs")
LIMITS: dict[str, Any] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": "1GB",
}
WITHIN, QUALITY_WITHIN, MEMORY = 5.0, 1.0, 10.0  # thresholds of the recommendations, in percent
# What is read of the rows of all cells.
READ: dict[str, dict[str, pa.DataType]] = {
    "quality": texts("cell") | {"position": pa.int32(), "nll_nats": pa.float32(), "correct": pa.bool_()},
    "latency": texts("cell", "policy", "phase") | {"round": pa.int32(), "seconds": pa.float64()},
}


def sql(name: str) -> str:
    """The text of `queries/<name>.sql`."""
    return (QUERIES / f"{name}.sql").read_text(encoding="utf-8").strip()


def rows(connection: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    """Run `queries/<name>.sql` and return its rows as dictionaries."""
    return connection.sql(sql(name)).to_arrow_table().to_pylist()


def open_database(
    records: Records, within: float, quality_within: float = QUALITY_WITHIN, memory: float = MEMORY
) -> duckdb.DuckDBPyConnection:
    """Load `records` into a locked DuckDB and prepare the tables of `queries/`.

    within: what a recommended policy's perplexity may be above full's, in percent; quality_within: the same where
    quality comes first; memory: the share of full's KV bytes where memory is limited, in percent.
    """
    connection = open_locked()
    load(connection, "commits", commits_table(records, "quality"))
    load(connection, "latency_commits", commits_table(records, "latency"))
    load(connection, "contenders", contenders_table(records))
    contenders = [one for commit in records.commits["latency"] for one in commit["fields"]["contenders"]]
    recorded = [*(commit["fields"] for commit in records.commits["quality"]), *contenders]
    load(connection, "policies", policies_table(recorded))
    load(connection, "environment", environment_table(records))
    for path in sorted(PUBLISHED.glob("*.csv")):
        load(connection, f"published_{path.stem}", read_published(path))
    for name, percent in (("within", within), ("quality_within", quality_within), ("memory", memory)):
        connection.execute(f"SET VARIABLE {name} = ?::DOUBLE", [percent])
    create(connection, NAMED)
    connection.register("tokens", rows_of(records, "quality"))
    create(connection, ["pieces", "sampled"])
    connection.unregister("tokens")
    load(connection, "samples", rows_of(records, "latency"))
    create(connection, PREPARED)
    documents = connection.sql("FROM documents ORDER BY setting, length, policy, document").to_arrow_table()
    load(connection, "intervals", intervals(documents.to_pylist()))
    rounds = connection.sql("FROM rounds ORDER BY cell, phase, label, round").to_arrow_table()
    load(connection, "round_intervals", round_intervals(rounds.to_pylist()))
    create(connection, RESULTS)
    load(connection, "rival_intervals", intervals(rows(connection, "rivals")))
    load(connection, "control_intervals", intervals(rows(connection, "controls")))
    return connection


def open_locked() -> duckdb.DuckDBPyConnection:
    """An empty database that reaches nothing outside itself, with no way to change that."""
    connection = duckdb.connect(config=LIMITS)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def rows_of(records: Records, kind: str) -> Any:
    """The rows of all cells of a kind, as they are read."""
    schema = pa.schema(READ[kind])
    files = [str(records.folder / commit["file"]) for commit in records.commits[kind]]
    return pyarrow.dataset.dataset(files, schema=schema, format="parquet") if files else schema.empty_table()


def create(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    """Keep the rows of these queries as tables of the same names."""
    for name in names:
        connection.execute(f"CREATE TABLE {name} AS {sql(name)}")


def load(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Copy an Arrow table into DuckDB under `name`."""
    connection.register("incoming", table)
    connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM incoming')
    connection.unregister("incoming")


def read_published(path: Path) -> pa.Table:
    """Other people's numbers from a CSV file; what is empty is null, in columns of text too."""
    return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True))


def commits_table(records: Records, kind: str) -> pa.Table:
    """One row per finished cell of a kind: the contract's fields, its key, and whether the sweep's plan names it."""
    noise = NOISE if kind == "latency" else {}
    planned = set(records.sweep.get("cells", []))
    found = []
    for commit in records.commits[kind]:
        own = {"cell": commit["cell"], "written_at": commit.get("written_at"), "planned": commit["cell"] in planned}
        found.append(commit["fields"] | {name: commit["fields"]["noise"].get(name) for name in noise} | own)
    fields = texts("cell", "written_at") | {"planned": pa.bool_()} | FIELDS[kind] | noise
    return pa.Table.from_pylist(found, schema=pa.schema(fields))


def contenders_table(records: Records) -> pa.Table:
    """One row per latency cell and contender."""
    latency = records.commits["latency"]
    found = [{"cell": commit["cell"], **one} for commit in latency for one in commit["fields"]["contenders"]]
    return pa.Table.from_pylist(found, schema=pa.schema(texts("cell") | CONTENDER))


def environment_table(records: Records) -> pa.Table:
    """One row per cell and environment entry, values as text."""
    found = [
        {"cell": commit["cell"], "name": name, "value": str(value)}
        for commit in (*records.commits["quality"], *records.commits["latency"])
        for name, value in (commit.get("environment") or {}).items()
    ]
    return pa.Table.from_pylist(found, schema=pa.schema(texts("cell", "name", "value")))
