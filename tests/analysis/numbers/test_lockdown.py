"""DuckDB reaches no file but committed rows, and nothing in records becomes SQL."""

import inspect
import re
from dataclasses import replace

import duckdb
import golden
import pyarrow.parquet as pq
import pytest
from golden import FULL, PLAIN, QUICK, Latency, P, built, database_of, streaming, write

from analysis.numbers import database
from analysis.read.records import read_records


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    records, _ = built("quick", tmp_path_factory)
    return records, database.open_database(read_records(records), 5.0)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "FROM '{records}/sweep.json'",
        "FROM '{records}/*.parquet'",
        "COPY (SELECT 1) TO '{records}/copied.csv'",
        "COPY (SELECT 1) TO '{records}/{cell}.parquet' (FORMAT parquet)",
        "EXPORT DATABASE '{records}/exported'",
        "ATTACH '{records}/attached.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '8GB'",
        "RESET lock_configuration",
        "PRAGMA threads = 1",
        "FROM variable_of_python",
    ],
)
def test_the_database_reaches_nothing_outside_itself(locked, statement):
    records, connection = locked
    before = {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    variable_of_python = pq.read_table(next(records.glob("*.parquet")))
    assert variable_of_python.num_rows
    cell = next(records.glob("*.parquet")).stem
    with pytest.raises(duckdb.Error):
        connection.execute(statement.format(records=records, cell=cell)).fetchall()
    assert before == {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    assert connection.sql("SELECT count(*) FROM perplexity").fetchall() != [(0,)]


def test_no_connection_is_opened_but_locked():
    """Beside its types, the whole report uses one function of DuckDB's, in the one place that locks what it opens."""
    used = [
        (path.name, name)
        for path in sorted((golden.ROOT / "analysis").rglob("*.py"))
        for name in re.findall(r"\bduckdb\.(\w+)|from duckdb", path.read_text())
        if name not in ("DuckDBPyConnection", "Error")
    ]
    assert used == [("database.py", "connect")]
    assert "duckdb.connect(" in inspect.getsource(database.open_locked)


HOSTILE = '\'; DROP TABLE main; -- "x" [1] *? {0} %s \u202e $1'


@pytest.mark.parametrize("name", ["it's, a;b", "[1]", "*", "what?", "'; DROP TABLE main; --", '"quoted" {0} %s'])
def test_a_folders_name_never_becomes_sql_or_a_pattern(tmp_path, name):
    plan = replace(QUICK, policies=QUICK.policies[:2], documents=("Job",), tokens=100, lengths=(100,))
    write(replace(plan, tokens=200, lengths=(200,)), tmp_path / "1")  # what a pattern such as [1] or * would find
    connection = database_of(plan, tmp_path / name)
    assert connection.sql("SELECT sum(n) FROM pieces").fetchall() == [(198,)]


def test_hostile_values_are_values(tmp_path):
    """Models, notes, texts, documents, policies, hardware and versions may hold anything; tables give it back."""
    policy = P(f"made_up({HOSTILE})", HOSTILE, 0.2, 50, 4, HOSTILE, HOSTILE, "")
    models = ((f"m {HOSTILE}", HOSTILE, 512),)
    plan = replace(
        PLAIN, policies=(FULL, streaming(4, 60, 0.1), policy), models=models, text=f"t {HOSTILE}",
        documents=(HOSTILE, "Job"), tokens=200, lengths=(100, 200), environment={"cpu": HOSTILE, HOSTILE: HOSTILE},
        latency=Latency(contexts=(100, 300), rounds=6),
    )  # fmt: skip
    connection = database_of(plan, tmp_path)
    assert set(connection.sql("SELECT model, text, document FROM cells").fetchall()) == {
        (models[0][0], plan.text, document) for document in plan.documents
    }
    assert connection.sql("SELECT count(*) FROM perplexity").fetchall() == [(6,)]
    assert set(connection.sql("SELECT policy FROM perplexity").fetchall()) == {(one.label,) for one in plan.policies}
    for path in database.QUERIES.glob("*.sql"):
        if path.stem not in database.OF_ROWS:  # whose rows are no longer there
            database.rows(connection, path.stem)
