"""The finished parts of a long cell, so that a sweep that is killed goes on from the last of them.

    <key>.parts.json                the parts so far: files, sha256, tokens and seconds
    <key>.<tokens>.part.parquet     rows up to that many tokens
    <key>.<tokens>.state            the cache after the last part, as safetensors

A part counts once parts.json names it, and that is written last. A part or a state that is not what it names is not
used: the cell starts again. When the cell is committed, all of these files go.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save

from kvstream.grid import SCHEMA
from kvstream.quality import Begun, Evaluated
from kvstream.records import Records, sha256_of


@dataclass
class Parts:
    """What is finished of one cell."""

    records: Records
    key: str
    parts: list[dict[str, Any]] = field(default_factory=list)

    def load(self) -> Begun | None:
        """Find where the cell can go on; None where nothing usable was left."""
        try:
            record = json.loads((self.records.folder / f"{self.key}.parts.json").read_bytes())
            parts, state = record["parts"], record["state"]
            for entry in (*parts, state):
                if sha256_of(self.records.folder / entry["file"]) != entry["sha256"]:
                    raise ValueError(entry["file"])
            begun = Begun(parts[-1]["tokens"], load_file(self.records.folder / state["file"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        self.parts = parts
        return begun

    def add(self, evaluated: Evaluated, tokens: int) -> None:
        """Commit a part that ends after `tokens` tokens, with the state to go on from."""
        assert evaluated.state is not None, "the last part is committed with the cell"
        rows, state = f"{self.key}.{tokens}.part.parquet", f"{self.key}.{tokens}.state"
        self.records.write_rows(rows, [evaluated.rows])
        with self.records.replacing(state) as file:
            file.write(save({name: held.contiguous() for name, held in evaluated.state.items()}))
        part = {"file": rows, "tokens": tokens, "seconds": evaluated.seconds}
        self.parts = [*self.parts, part | {"sha256": sha256_of(self.records.folder / rows)}]
        record = {
            "schema": SCHEMA,
            "cell": self.key,
            "parts": self.parts,
            "state": {"file": state, "sha256": sha256_of(self.records.folder / state)},
        }
        self.records.write_json(f"{self.key}.parts.json", record)
        for old in self.records.folder.glob(f"{self.key}.*.state"):
            if old.name != state:
                old.unlink()

    def joined(self, last: Evaluated) -> tuple[list[pa.Table], float]:
        """Rows of all parts, `last` included, and the seconds they took together."""
        files = [self.records.folder / part["file"] for part in self.parts]
        seconds = sum(part["seconds"] for part in self.parts)
        return [*map(pq.read_table, files), last.rows], seconds + last.seconds

    def clear(self) -> None:
        """Remove what a committed cell no longer needs."""
        for pattern in ("parts.json", "*.part.parquet", "*.state"):
            for file in self.records.folder.glob(f"{self.key}.{pattern}"):
                file.unlink()
