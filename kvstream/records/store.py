"""The records folder: what a sweep leaves behind, and what a report reads.

    sweep.json            the sweep's name, question and cell keys
    <key>.parquet         a cell's rows, zstd
    <key>.json            its commit record: sha256 and row count of that file, the cell's fields, the environment
    <key>.failed.json     the error of a cell whose last attempt failed
    <key>.parts.json      of a long cell on its way: see `kvstream.records.long_cells`

A cell is finished once its commit record exists, and that is written last. A kill at any moment leaves finished cells
and, at worst, files that nobody names. Every JSON file ends in a checksum over its name and content, so a bit that
flips anywhere is seen. Only the driver of a sweep writes here. Where the folder lies, `kvstream.records.storage` knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvstream.grid.cells import LATENCY, QUALITY, SCHEMA, Cell, Grid, code_digest
from kvstream.records.storage import storage_at

READERS = 8  # files hashed at once


class Records:
    """One records folder, created on first write."""

    def __init__(self, where: str | Path) -> None:
        self.storage = storage_at(where)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for this process; ValueError, naming the holder, if another sweep writes to it."""
        return self.storage.held()

    def plan(self, grid: Grid, question: str, cells: Sequence[Cell]) -> None:
        """Write down which cells the sweep consists of, which prefixes of them to report, and under which names."""
        plan = {
            "schema": SCHEMA,
            "name": grid.name,
            "question": question,
            "lengths": list(grid.lengths),
            "text": grid.text,
            "models": {cell.model.identity: cell.model.spec for cell in cells},
            "cells": [cell.key for cell in cells],
        }
        self.write_json("sweep.json", plan)

    def finished(self, keys: list[str]) -> set[str]:
        """Which of these cells are committed, with a file that is exactly the one committed."""
        there = set(self.storage.names())
        asked = [key for key in keys if f"{key}.json" in there]
        with ThreadPoolExecutor(READERS) as readers:
            return {key for key, whole in zip(asked, readers.map(self._is_whole, asked)) if whole}

    def commit(
        self, key: str, fields: dict[str, Any], rows: Sequence[pa.Table], seconds: float, environment: dict[str, Any]
    ) -> None:
        """Write a finished cell, whose rows may come in several tables."""
        sha256 = self.write_rows(f"{key}.parquet", rows)
        count = sum(table.num_rows for table in rows)
        self.write_json(f"{key}.json", commit_record(key, fields, sha256, count, seconds, environment))
        self.storage.remove(f"{key}.failed.json")

    def fail(self, key: str, fields: dict[str, Any], error: str, attempts: int) -> None:
        """Write down a failed cell, its error and how often it was tried; a later run tries it again."""
        record = {"schema": SCHEMA, "cell": key, "fields": fields, "error": error, "attempts": attempts}
        self.write_json(f"{key}.failed.json", record)

    def forget_failures(self) -> None:
        """Remove failures of cells of other code than today's: what they asked has another key by now."""
        today = {code_digest(QUALITY), code_digest(LATENCY)}
        for name in self.storage.names():
            if name.endswith(".failed.json"):
                with suppress(ValueError):  # what is damaged stays, for `verify` to name
                    if self.read_json(name).get("fields", {}).get("code") not in today:
                        self.storage.remove(name)

    def _is_whole(self, key: str) -> bool:
        try:
            record = self.read_json(f"{key}.json")
            return record["cell"] == key and bool(self.read_committed(f"{key}.parquet", record["sha256"]))
        except (OSError, ValueError, KeyError):
            return False

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file; ValueError if it is not exactly what was written."""
        return unsealed(name, self.storage.read(name))

    def read_committed(self, name: str, sha256: str) -> bytes:
        """Read a file that a record names; ValueError if it is another."""
        data = self.storage.read(name)
        if sha256_of(data) != sha256:
            raise ValueError(f"{name} is not the file that was committed")
        return data

    def write_rows(self, name: str, rows: Sequence[pa.Table]) -> str:
        """Write a Parquet file of tables with the same columns, and return its sha256."""
        return self.write_bytes(name, parquet(rows))

    def write_bytes(self, name: str, data: Any) -> str:
        """Write a file and return its sha256."""
        self.storage.write(name, data)
        return sha256_of(data)

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file with its checksum."""
        self.storage.write(name, sealed(name, record))


def commit_record(
    key: str, fields: dict[str, Any], sha256: str, rows: int, seconds: float, environment: dict[str, Any]
) -> dict[str, Any]:
    """What is written down of a finished cell beside its rows."""
    return {
        "schema": SCHEMA,
        "cell": key,
        "file": f"{key}.parquet",
        "sha256": sha256,
        "rows": rows,
        "fields": fields,
        "environment": environment,
        "seconds": seconds,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parquet(rows: Sequence[pa.Table]) -> Any:
    """Tables with the same columns as the bytes of one Parquet file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows[0].schema, compression="zstd", write_page_checksum=True) as writer:
        for table in rows:
            writer.write_table(table)
    return sink.getvalue()


def sealed(name: str, record: dict[str, Any]) -> bytes:
    """A record as JSON; its last field, `checksum`, is the sha256 of the file's name and the same JSON without it."""
    return _json(record | {"checksum": sha256_of(name.encode() + b"\n" + _json(record))})


def unsealed(name: str, data: bytes) -> dict[str, Any]:
    """The record in a JSON file, without its checksum; ValueError, naming the file, if it is not what was written."""
    try:
        record = json.loads(data)
        del record["checksum"]
        if sealed(name, record) == data:
            return record
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{name} is not the file that was committed")


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode()


def sha256_of(data: Any) -> str:
    """Digest of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()
