"""Every value of every table of the golden report, intervals included, against answers kept in `tables/`.

    python tests/analysis/numbers/test_golden_tables.py     keeps the tables anew after a change that is meant

What is kept was computed anew in plain Python and scipy, column by column, when it was first kept; `test_queries` and
`test_report_latency` hold the definitions.
"""

import math
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[up]) for up in (2, 3)]

from golden import GOLDEN, built, report_of

from analysis.report import TABLES

KEPT = Path(__file__).parent / "tables"


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_the_kept_one(name, tmp_path_factory):
    table = pq.read_table(built("golden", tmp_path_factory)[1] / "tables" / f"{name}.parquet")
    kept = pq.read_table(KEPT / f"{name}.parquet")
    assert table.schema.equals(kept.schema)
    assert table.num_rows == kept.num_rows
    for place, (row, expected) in enumerate(zip(table.to_pylist(), kept.to_pylist())):
        for column, value in expected.items():
            same = row[column] == value
            if isinstance(value, float) and isinstance(row[column], float):  # their last digits depend on the machine
                same = math.isclose(row[column], value, rel_tol=1e-9, abs_tol=1e-9)
            assert same, (name, place, column, row[column], value)


def test_no_table_is_forgotten():
    assert {path.stem for path in KEPT.glob("*.parquet")} == set(TABLES)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        report = report_of(GOLDEN, Path(place))
        shutil.rmtree(KEPT, ignore_errors=True)
        shutil.copytree(report / "tables", KEPT, ignore=shutil.ignore_patterns("*.csv"))
    print(f"wrote {len(list(KEPT.iterdir()))} tables to {KEPT}")
