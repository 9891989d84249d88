"""The records folder: what a sweep leaves behind, and what a report reads.

    sweep.json            the sweep's name, question and cell keys
    <key>.parquet         a cell's rows, zstd
    <key>.json            its commit record: sha256 and row count of that file, the cell's fields, the environment
    <key>.failed.json     the error of a cell whose last attempt failed
    <key>.parts.json      of a long cell on its way: see `kvstream.parts`

A cell is finished once its commit record exists, and that is written last: file to a temporary name, fsync, rename,
folder fsync, then the same for the commit record. A kill at any moment leaves finished cells and, at worst, files that
nobody names. Only the driver of a sweep writes here, and a lock keeps a second driver out.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvstream.grid import SCHEMA

LOCK = ".lock"


class Records:
    """One records folder, created on first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; ValueError, naming the holder, if another sweep writes to it.

        The lock is the kernel's: it ends with the process, however that ends.
        """
        self._create()
        try:
            lock = open(self.folder / LOCK, "a+")  # noqa: SIM115  # closed below
        except OSError as error:
            raise ValueError(
                f"out: cannot write to {str(self.folder)!r} ({error.strerror}); give another --out"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise ValueError(
                    f"out: {str(self.folder)!r} is being written by {holder}; wait or give another --out"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            yield

    def plan(self, name: str, question: str, lengths: Sequence[int], keys: list[str]) -> None:
        """Write down which cells the sweep consists of, and which prefixes of them to report."""
        self.write_json(
            "sweep.json",
            {"schema": SCHEMA, "name": name, "question": question, "lengths": list(lengths), "cells": keys},
        )

    def finished(self, keys: list[str]) -> set[str]:
        """Which of these cells are committed, with a file that is exactly the one committed."""
        return {key for key in keys if self._is_whole(key)}

    def commit(
        self, key: str, fields: dict[str, Any], rows: Sequence[pa.Table], seconds: float, environment: dict[str, Any]
    ) -> None:
        """Write a finished cell, whose rows may come in several tables."""
        name = f"{key}.parquet"
        self.write_rows(name, rows)
        record = {
            "schema": SCHEMA,
            "cell": key,
            "file": name,
            "sha256": sha256_of(self.folder / name),
            "rows": sum(table.num_rows for table in rows),
            "fields": fields,
            "environment": environment,
            "seconds": seconds,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.write_json(f"{key}.json", record)
        (self.folder / f"{key}.failed.json").unlink(missing_ok=True)

    def fail(self, key: str, fields: dict[str, Any], error: str, attempts: int) -> None:
        """Write down a failed cell, its error and how often it was tried; a later run tries it again."""
        record = {"schema": SCHEMA, "cell": key, "fields": fields, "error": error, "attempts": attempts}
        self.write_json(f"{key}.failed.json", record)

    def _is_whole(self, key: str) -> bool:
        try:
            record = json.loads((self.folder / f"{key}.json").read_bytes())
            return record["cell"] == key and sha256_of(self.folder / f"{key}.parquet") == record["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _create(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"out: cannot create {str(self.folder)!r} ({error.strerror}); give another --out"
            ) from None

    def write_rows(self, name: str, rows: Sequence[pa.Table]) -> None:
        """Write a Parquet file of tables with the same columns, whole or not at all."""
        with (
            self.replacing(name) as file,
            pq.ParquetWriter(file, rows[0].schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for table in rows:
                writer.write_table(table)

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        with self.replacing(name) as file:
            file.write(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode())

    @contextmanager
    def replacing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a temporary file that takes the place of `name` once it is written whole and on disk."""
        self._create()
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256_of(path: Path) -> str:
    """Digest of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
