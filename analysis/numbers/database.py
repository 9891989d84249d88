"""A locked-down DuckDB over checked records, and the only way to run a query from `queries/`.

Two connections, so that none with queries to answer can reach a file. The reader sees the records folder and nothing
else, adds the rows of all cells up to `pieces` and copies `samples`, and is closed. The other has no access to files at
all: its tables are `commits` (quality), `latency_commits`, `contenders`, `policies` and `environment` from the commit
records, `published_*` from other people's numbers, those two, the prepared queries, and from the statistics
`intervals`, `rival_intervals` and `round_intervals`. Neither installs or loads an extension, or lets a setting be
changed.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv

from analysis.numbers.rounds import round_intervals
from analysis.numbers.series import policies_table
from analysis.numbers.stats import intervals
from analysis.read.contract import CONTENDER, FIELDS, LATER, NOISE
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
SAMPLES = "SELECT cell, policy, phase, round, seconds FROM samples"
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
    contenders = [one for commit in records.latency for one in commit["fields"]["contenders"]]
    load(connection, "policies", policies_table([*(commit["fields"] for commit in records.quality), *contenders]))
    load(connection, "environment", environment_table(records))
    for path in sorted(PUBLISHED.glob("*.csv")):
        load(connection, f"published_{path.stem}", read_published(path))
    for name, percent in (("within", within), ("quality_within", quality_within), ("memory", memory)):
        connection.execute(f"SET VARIABLE {name} = ?::DOUBLE", [percent])
    create(connection, NAMED)
    for name, table in read_rows(records, connection.sql("FROM cells").to_arrow_table()).items():
        load(connection, name, table)
    create(connection, PREPARED)
    documents = connection.sql("FROM documents ORDER BY setting, length, policy, document").to_arrow_table()
    load(connection, "intervals", intervals(documents.to_pylist()))
    rounds = connection.sql("FROM rounds ORDER BY cell, phase, label, round").to_arrow_table()
    load(connection, "round_intervals", round_intervals(rounds.to_pylist()))
    create(connection, RESULTS)
    load(connection, "rival_intervals", intervals(rows(connection, "rivals")))
    return connection


def read_rows(records: Records, cells: pa.Table) -> dict[str, pa.Table]:
    """`pieces` of the quality cells and `samples` of the latency cells, from their files."""
    files = {"tokens": records.files(records.quality), "samples": records.files(records.latency)}
    # DuckDB checks the pattern and the file it finds, so both spellings of the folder are allowed.
    with open_locked([str(records.folder.resolve()), literal_path(records.folder)]) as reader:
        load(reader, "cells", cells)
        for name, paths in files.items():
            reader.execute(f"SET VARIABLE {name} = ?", [[literal_path(path) for path in paths]])
        for name, paths in files.items():
            source = f"* FROM read_parquet(getvariable('{name}'))" if paths else f"{NO_ROWS[name]} LIMIT 0"
            reader.execute(f"CREATE VIEW {name} AS SELECT {source}")
        return {
            name: reader.sql(text).to_arrow_table() for name, text in (("pieces", sql("pieces")), ("samples", SAMPLES))
        }


def open_locked(folders: Sequence[str] = ()) -> duckdb.DuckDBPyConnection:
    """An empty database that reaches these folders of all that is outside it, with no way to change that."""
    connection = duckdb.connect(config=LIMITS)
    if folders:
        connection.execute("SET allowed_directories = ?", [list(folders)])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


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


def literal_path(path: Path) -> str:
    """An absolute path in which DuckDB's glob characters stand for themselves."""
    return re.sub(r"([*?\[])", r"[\1]", str(path.resolve()))


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
    return pa.Table.from_pylist(
        found, schema=pa.schema([*names, *FIELDS[kind].items(), *LATER.items(), *noise.items()])
    )


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
