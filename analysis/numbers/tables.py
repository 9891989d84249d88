"""The tables behind the report as CSV, for people, and as Parquet, with their types. Full precision in both."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def write(folder: Path, name: str, rows: list[Row], schema: pa.Schema) -> None:
    """One table under its name; without rows the CSV is empty, the Parquet has its columns all the same."""
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        # Lines end with \r\n, so that a name with one of the two in it is quoted.
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
