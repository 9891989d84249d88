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
        """Find where the cell can go on; None where nothing was left, ValueError naming the file of damage."""
        name = f"{self.key}.parts.json"
        try:
            data = (self.records.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = json.loads(data)
            parts, state = record["parts"], record["state"]
            for entry in (*parts, state):
                name = entry["file"]
                if sha256_of(self.records.folder / name) != entry["sha256"]:
                    raise ValueError
            begun = Begun(parts[-1]["tokens"], load_file(self.records.folder / name))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            raise ValueError(f"{name} is not the file that was committed") from None
        self.parts = parts
        return begun

    def add(self, evaluated: Evaluated, tokens: int, where: dict[str, Any]) -> None:
        """Commit a part that ends after `tokens` tokens, computed on `where`, with the state to go on from."""
        assert evaluated.state is not None, "the last part is committed with the cell"
        rows, state = f"{self.key}.{tokens}.part.parquet", f"{self.key}.{tokens}.state"
        self.records.write_rows(rows, [evaluated.rows])
        with self.records.replacing(state) as file:
            file.write(save({name: held.contiguous() for name, held in evaluated.state.items()}))
        part = {"file": rows, "tokens": tokens, "seconds": evaluated.seconds, "where": where}
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

    def places(self, last: dict[str, Any]) -> list[dict[str, Any]]:
        """Where the parts were computed, each place once, the last part's at the end."""
        found = [part["where"] for part in self.parts]
        return [place for n, place in enumerate(found) if place != last and place not in found[:n]] + [last]

    def clear(self) -> None:
        """Remove what a committed cell no longer needs."""
        for pattern in ("parts.json", "*.part.parquet", "*.state"):
            for file in self.records.folder.glob(f"{self.key}.{pattern}"):
                file.unlink()


def tidy(records: Records, finished: set[str], planned: set[str]) -> int:
    """Remove parts of cells that are finished; count the cells begun that are none of those planned."""
    begun = {path.name.partition(".")[0] for path in records.folder.glob("*.parts.json")}
    for key in begun & finished:
        Parts(records, key).clear()
    return len(begun - finished - planned)
