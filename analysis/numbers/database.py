"""A locked-down DuckDB over checked records, and the only way to run a query from `queries/`.

It reaches no file but the rows that were committed, loads no extension and lets no setting be changed. Its tables are
`commits` (quality), `latency_commits`, `contenders`, `policies` and `environment` from the commit records, `samples`
and those of `OF_ROWS` from the rows of cells, `published_*` from other people's numbers, the prepared queries, and from
the statistics `intervals`, those of `PAIRED`, and `round_intervals`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv

from analysis.numbers.rounds import round_intervals
from analysis.numbers.series import policies_table
from analysis.numbers.stats import intervals
from analysis.read.contract import CONTENDER, FIELDS, NOISE, texts
from analysis.read.records import Records

QUERIES = Path(__file__).parent.parent / "queries"
PUBLISHED = Path(__file__).parent.parent / "published"
NAMED = ("settings", "focus", "cells", "texts", "compared_at", "compared")  # what cells are, without their rows
# The queries that read rows, `tokens`, and of which cells: no file is opened in vain.
OF_ROWS = {
    "repeated": "SELECT cell FROM texts",
    "pieces": "SELECT cell FROM cells",
    "sampled": "SELECT cell FROM cells WHERE (SELECT count(every) FROM cells) > 0",
    "answered": "SELECT cell FROM cells WHERE answers IS NOT NULL",
    "diverged": "SELECT cell FROM compared",
    "quantiles": "SELECT cell FROM compared",
    "worst": "SELECT cell FROM cells WHERE policy_name = 'full' AND (SELECT count(worst) FROM compared) > 0",
}
PREPARED = ("prefixes", "documents", "latency_cells", "rounds")
RESULTS = (
    "perplexity",
    "costs",
    "rivals",
    "guessing",
    "answer",
    "differences",
    "noise",
    "latency",
    "pairs",
    "stretches",
)
# Intervals over documents of what one policy loses against another, by the query that pairs them.
PAIRED = {
    "rivals": "rival_intervals",
    "controls": "control_intervals",
    "modes": "mode_intervals",
    "kl_rivals": "kl_rival_intervals",
    "stretches": "stretch_intervals",
    "grown": "growth_intervals",
}
LIMITS: dict[str, Any] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": "1GB",
}
WITHIN, QUALITY_WITHIN, MEMORY = 5.0, 1.0, 10.0  # thresholds of the recommendations, in percent
METRICS = ("ppl", "kl", "top1")  # of quality, by which they are made: see queries/costs.sql
# What is read of rows.
READ = {
    "quality": {"cell": "VARCHAR", "position": "INTEGER", "token": "INTEGER", "nll_nats": "FLOAT", "correct": "BOOLEAN"}
    | {"kl_nats": "FLOAT", "same_top": "BOOLEAN"},  # null in rows of before they were measured
    "latency": {"cell": "VARCHAR", "policy": "VARCHAR", "phase": "VARCHAR", "round": "INTEGER", "seconds": "DOUBLE"},
}


def sql(name: str) -> str:
    """The text of `queries/<name>.sql`."""
    return (QUERIES / f"{name}.sql").read_text(encoding="utf-8").strip()


def query(connection: duckdb.DuckDBPyConnection, name: str) -> pa.Table:
    """Run `queries/<name>.sql`. By way of a table, as DuckDB plans a query twice of which a relation is made."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE asked AS {sql(name)}")
    return connection.sql("FROM asked").to_arrow_table()


def rows(connection: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    """Run `queries/<name>.sql` and return its rows as dictionaries."""
    return query(connection, name).to_pylist()


def open_database(
    records: Records,
    within: float,
    quality_within: float = QUALITY_WITHIN,
    memory: float = MEMORY,
    metric: str = METRICS[0],
) -> duckdb.DuckDBPyConnection:
    """Load `records` into a locked DuckDB and prepare the tables of `queries/`.

    within: what a recommended policy may cost by the metric, one of METRICS, in percent or hundredths of a nat;
    quality_within: the same where quality comes first; memory: the share of full's KV bytes where memory is limited, in
    percent.
    """
    files = [rows_file(records, commit) for kind in READ for commit in records.commits[kind]]
    connection = open_locked(files)
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
    connection.execute("SET VARIABLE quality_metric = ?::VARCHAR", [metric])
    create(connection, NAMED)
    for name, which in OF_ROWS.items():
        cells = {cell for (cell,) in connection.sql(which).fetchall()}
        show_rows(connection, "tokens", records, "quality", cells)
        create(connection, [name])
    show_rows(connection, "samples", records, "latency")
    create(connection, PREPARED)
    documents = connection.sql("FROM documents ORDER BY setting, length, policy, document").to_arrow_table()
    load(connection, "intervals", intervals(documents.to_pylist()))
    rounds = connection.sql("FROM rounds ORDER BY cell, phase, label, round").to_arrow_table()
    load(connection, "round_intervals", round_intervals(rounds.to_pylist()))
    create(connection, RESULTS)
    for name, table in PAIRED.items():
        load(connection, table, intervals(rows(connection, name)))
    create(connection, ["divergence"])
    return connection


def open_locked(files: Iterable[str] = ()) -> duckdb.DuckDBPyConnection:
    """An empty database that reaches nothing outside itself but `files`, with no way to change that."""
    connection = duckdb.connect(config=LIMITS)
    connection.execute(f"SET allowed_paths = [{', '.join(map(quoted, files))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def show_rows(
    connection: duckdb.DuckDBPyConnection, name: str, records: Records, kind: str, cells: set[str] | None = None
) -> None:
    """Let `name` stand for the rows of these cells of a kind, or of all: they are read when a query asks for them.

    DuckDB reads them itself, since from Arrow every name of a cell is a string of its own, which makes joins slow.
    """
    wanted = [one for one in records.commits[kind] if cells is None or one["cell"] in cells]
    source, there = "(SELECT 0 LIMIT 0)", set()
    if wanted:
        files = ", ".join(quoted(rows_file(records, one)) for one in wanted)
        source = f"read_parquet([{files}], union_by_name = true)"
        there = {column for column, *_ in connection.sql(f"DESCRIBE FROM {source}").fetchall()}
    columns = ", ".join(f"{one if one in there else 'NULL'}::{its} AS {one}" for one, its in READ[kind].items())
    connection.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT {columns} FROM {source}")


def rows_file(records: Records, commit: dict[str, Any]) -> str:
    """Where a committed cell's rows are."""
    return str((records.folder / commit["file"]).resolve())


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


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
