"""A locked-down DuckDB over checked records, and the only way to run a query from `queries/`.

The connection reads the given folder and nothing else. Tables from the commit records: `commits` (quality),
`latency_commits`, `contenders`, `environment`; `published_*` from other people's numbers; then the prepared queries and
`intervals`, `round_intervals` from the statistics. Raw rows: `tokens` (quality) and `samples` (latency).
"""

import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv

from analysis.records import CONTENDER, FIELDS, NOISE, Records
from analysis.rounds import round_intervals
from analysis.stats import intervals

QUERIES = Path(__file__).parent / "queries"
PUBLISHED = Path(__file__).parent / "published"
PREPARED = ("policies", "settings", "focus", "cells", "prefixes", "documents", "latency_cells", "rounds")
# What a folder without cells of a kind reads instead of their files.
NO_ROWS = {
    "tokens": "''::VARCHAR AS cell, 0::INTEGER AS position, 0::FLOAT AS nll_nats, false AS correct",
    "samples": "''::VARCHAR AS cell, ''::VARCHAR AS policy, ''::VARCHAR AS phase, 0::INTEGER AS round, "
    "0::DOUBLE AS seconds",
}


def sql(name: str) -> str:
    """The text of `queries/<name>.sql`."""
    return (QUERIES / f"{name}.sql").read_text(encoding="utf-8").strip()


def question(name: str) -> str:
    """The question a query answers: its first line, without the comment sign."""
    return sql(name).splitlines()[0].removeprefix("--").strip()


def rows(connection: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    """Run `queries/<name>.sql` and return its rows as dictionaries."""
    return connection.sql(sql(name)).to_arrow_table().to_pylist()


def open_database(records: Records, within: float) -> duckdb.DuckDBPyConnection:
    """Load `records` into DuckDB, lock it, prepare the tables of `queries/`; `within` is the answer's PPL tolerance."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    load(connection, "commits", commits_table(records, "quality"))
    load(connection, "latency_commits", commits_table(records, "latency"))
    load(connection, "contenders", contenders_table(records))
    load(connection, "environment", environment_table(records))
    for path in sorted(PUBLISHED.glob("*.csv")):
        load(connection, f"published_{path.stem}", pyarrow.csv.read_csv(path))
    connection.execute("SET VARIABLE within = ?::DOUBLE", [within])
    files = {"tokens": records.files(records.quality), "samples": records.files(records.latency)}
    for name, paths in files.items():
        connection.execute(f"SET VARIABLE {name}_files = ?", [[literal_path(path) for path in paths]])
    # DuckDB checks the pattern and the file it finds, so both spellings of the folder are allowed.
    allowed = ", ".join(quoted(name) for name in (str(records.folder.resolve()), literal_path(records.folder)))
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    for name, paths in files.items():
        source = (
            f"SELECT * FROM read_parquet(getvariable('{name}_files'))" if paths else f"SELECT {NO_ROWS[name]} LIMIT 0"
        )
        connection.execute(f"CREATE VIEW {name} AS {source}")
    for name in PREPARED:
        connection.execute(f"CREATE TABLE {name} AS {sql(name)}")
    documents = connection.sql("FROM documents ORDER BY setting, policy, length, document").to_arrow_table()
    load(connection, "intervals", intervals(documents.to_pylist()))
    rounds = connection.sql("FROM rounds ORDER BY cell, phase, label, round").to_arrow_table()
    load(connection, "round_intervals", round_intervals(rounds.to_pylist()))
    for name in ("main", "answer", "noise", "latency", "pairs"):
        connection.execute(f"CREATE TABLE {name} AS {sql(name)}")
    return connection


def load(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Copy an Arrow table into DuckDB under `name`."""
    connection.register("incoming", table)
    connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM incoming')
    connection.unregister("incoming")


def literal_path(path: Path) -> str:
    """An absolute path in which DuckDB's glob characters stand for themselves."""
    return re.sub(r"([*?\[])", r"[\1]", str(path.resolve()))


def quoted(text: str) -> str:
    """A SQL string literal; settings take no bound values."""
    return "'" + text.replace("'", "''") + "'"


def commits_table(records: Records, kind: str) -> pa.Table:
    """One row per finished cell of a kind: the contract's fields, its key, and whether the sweep's plan names it."""
    names = [("cell", pa.string()), ("written_at", pa.string()), ("planned", pa.bool_())]
    noise = NOISE if kind == "latency" else {}
    planned = set(records.sweep.get("cells", []))
    found = [
        {
            **commit["fields"],
            **{name: commit["fields"]["noise"].get(name) for name in noise},
            **{name: commit.get(name) for name in ("cell", "written_at")},
            "planned": commit["cell"] in planned,
        }
        for commit in (records.latency if kind == "latency" else records.quality)
    ]
    return pa.Table.from_pylist(found, schema=pa.schema([*names, *FIELDS[kind].items(), *noise.items()]))


def contenders_table(records: Records) -> pa.Table:
    """One row per latency cell and contender."""
    found = [{"cell": commit["cell"], **one} for commit in records.latency for one in commit["fields"]["contenders"]]
    return pa.Table.from_pylist(found, schema=pa.schema([("cell", pa.string()), *CONTENDER.items()]))


def environment_table(records: Records) -> pa.Table:
    """One row per cell and environment entry, values as text."""
    found = [
        {"cell": commit["cell"], "name": name, "value": str(value)}
        for commit in records.commits
        for name, value in (commit.get("environment") or {}).items()
    ]
    return pa.Table.from_pylist(found, schema=pa.schema([(name, pa.string()) for name in ("cell", "name", "value")]))
