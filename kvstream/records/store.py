"""The records folder: what a sweep leaves behind, and what a report reads.

    sweep.json                the sweep's name, question and cell keys
    <key>.<sha256>.parquet    a cell's rows, zstd; 16 hex digits of what the file holds are part of its name
    <key>.json                its commit record: names that file, its sha256 and row count, the cell's fields, the
                              environment
    <key>.failed.json         the error of a cell whose last attempt failed
    <key>.parts.json          of a long cell on its way: see `kvstream.records.long_cells`

A cell is finished once its commit record exists, and that is written last. A kill at any moment leaves finished cells
and, at worst, files that nobody names. So do two sweeps that write the same cell at once: as no file of rows replaces
another with other rows, whichever record is written last names a whole one. Every JSON file ends in a checksum over its
name and content, so a bit that flips anywhere is seen. Only the driver of a sweep writes here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvstream.grid.axes import Grid
from kvstream.grid.cells import SCHEMA, Cell
from kvstream.grid.code_version import LATENCY, QUALITY, code_digest
from kvstream.records.storage import storage_at

ROWS = re.compile(r"([0-9a-f]{16})(\.[0-9a-f]{16})?\.parquet")  # older sweeps named them <key>.parquet
NAMED = 16  # hex digits of a sha256 that are part of a file's name
READERS = 8  # files hashed at once
LEAST_ROW_BYTES = 8  # of a token, compressed: losses alone, which look random, take four of some eleven


class Records:
    """One records folder, created on first write."""

    def __init__(self, where: str | Path) -> None:
        self.storage = storage_at(where)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; ValueError, naming the holder, if another sweep writes to it.

        Object stores cannot be held. Where it is, files of rows that no record names are removed first.
        """
        with self.storage.held():
            if self.storage.one_writer:
                self._remove_strays()
            yield

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

    def require_writable(self) -> None:
        """Write a file and remove it; OSError where that is impossible."""
        self.storage.write(".probe", b"to see whether this can be written")
        self.storage.remove(".probe")

    def require_room(self, tokens: int) -> None:
        """ValueError if the disk certainly lacks room for the rows of so many tokens."""
        free, needed = self.storage.free_bytes(), tokens * LEAST_ROW_BYTES
        if free is not None and needed > free:
            raise ValueError(
                f"out: {self.storage.where!r} has {free / 1e6:,.1f} MB left, and this sweep will write at least "
                f"{needed / 1e6:,.1f} MB; make room there, or give another --out"
            )

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
        file, sha256 = self.write_named(key, "parquet", parquet(rows))
        count = sum(table.num_rows for table in rows)
        record = {
            "schema": SCHEMA,
            "cell": key,
            "file": file,
            "sha256": sha256,
            "rows": count,
            "fields": fields,
            "environment": environment,
            "seconds": seconds,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.write_json(f"{key}.json", record)
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
                # What is damaged stays, for `verify` to name; another sweep on a bucket may have removed one meanwhile.
                with suppress(ValueError, FileNotFoundError):
                    if self.read_json(name).get("fields", {}).get("code") not in today:
                        self.storage.remove(name)

    def committed(self, key: str) -> tuple[dict[str, Any], bytes]:
        """A cell's commit record and the file of its rows; ValueError if either is not what was written."""
        record = self.read_json(f"{key}.json")
        if record["schema"] != SCHEMA:
            raise ValueError(f"it has schema {record['schema']!r}, this kvstream reads {SCHEMA}; run the sweep again")
        file, sha256 = record["file"], record["sha256"]
        of_cell = ROWS.fullmatch(file) and file in (f"{key}.{sha256[:NAMED]}.parquet", f"{key}.parquet")
        if record["cell"] != key or not of_cell:
            raise ValueError(f"{key}.json is of {record['cell']}, {file}")
        return record, self.read_committed(file, sha256)

    def _is_whole(self, key: str) -> bool:
        try:
            return bool(self.committed(key))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _remove_strays(self) -> None:
        """Remove rows of cells that were killed before their record was written, or of records written anew."""
        names = self.storage.names()
        there, files = set(names), [(found[1], name) for name in names if (found := ROWS.fullmatch(name))]
        often = Counter(key for key, _ in files)
        for key, name in files:
            if f"{key}.json" not in there:
                self.storage.remove(name)
            elif often[key] > 1:
                with suppress(OSError, ValueError):  # what is damaged stays, for `verify` to name
                    if self.read_json(f"{key}.json")["file"] != name:
                        self.storage.remove(name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file; ValueError if it is not exactly what was written."""
        return unsealed(name, self.storage.read(name))

    def read_committed(self, name: str, sha256: str) -> bytes:
        """Read a file that a record names; ValueError if it is another."""
        data = self.storage.read(name)
        if sha256_of(data) != sha256:
            raise ValueError(f"{name} is not the file that was committed")
        return data

    def write_named(self, stem: str, ending: str, data: Any) -> tuple[str, str]:
        """Write a file whose name tells its content; returns that name and the sha256."""
        sha256 = sha256_of(data)
        self.storage.write(name := f"{stem}.{sha256[:NAMED]}.{ending}", data)
        return name, sha256

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file with its checksum."""
        self.storage.write(name, sealed(name, record))


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
