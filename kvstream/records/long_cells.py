"""The finished parts of a long cell, so that a sweep that is killed goes on from the last of them.

    <key>.parts.json                         the parts so far: files, sha256, tokens, seconds and memory
    <key>.<tokens>.<sha256>.part.parquet     rows of the part that ends after so many tokens
    <key>.<tokens>.<sha256>.state            the cache after the last part, as safetensors

A part counts once parts.json names it, and that is written last. A part or a state that is not what it names is not
used: the cell starts again. When the cell is committed, all of these files go. They only serve to go on: what a sweep
has computed or loaded it also holds, so another sweep that removes them costs it nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvstream.grid.cells import SCHEMA
from kvstream.records.store import Records, parquet

if TYPE_CHECKING:  # else whoever only looks at records would wait for torch
    from kvstream.measure.quality import Evaluated
    from kvstream.measure.scores import Begun


@dataclass
class Parts:
    """What is finished of one cell."""

    records: Records
    key: str
    parts: list[dict[str, Any]] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)  # of each part, as in its file

    def load(self) -> Begun | None:
        """Find where the cell can go on; None where nothing was left, ValueError naming the file of damage."""
        name = f"{self.key}.parts.json"
        if name not in self.records.storage.names():
            return None
        files = []
        try:  # another sweep on the bucket may have finished the cell meanwhile
            record = self.records.read_json(name)
            for entry in (*record["parts"], record["state"]):
                name = entry["file"]
                files.append(self.records.read_committed(name, entry["sha256"]))
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error})") from None
        from safetensors.torch import load

        from kvstream.measure.scores import Begun

        *self.rows, state = files
        self.parts = record["parts"]
        return Begun(self.parts[-1]["tokens"], load(state))

    def add(self, evaluated: Evaluated, tokens: int) -> None:
        """Commit a part that ends after `tokens` tokens, with the state to go on from."""
        from safetensors.torch import save

        assert evaluated.state is not None, "the last part is committed with the cell"
        rows, stem = parquet([evaluated.rows]), f"{self.key}.{tokens}"
        file, sha256 = self.records.write_named(stem, "part.parquet", rows)
        part = {"file": file, "sha256": sha256} | cost(evaluated, tokens)
        self.parts, self.rows = [*self.parts, part], [*self.rows, rows]
        data = save({name: held.contiguous() for name, held in evaluated.state.items()})
        state, sha256 = self.records.write_named(stem, "state", data)
        held = {"file": state, "sha256": sha256}
        record = {"schema": SCHEMA, "cell": self.key, "parts": self.parts, "state": held}
        self.records.write_json(f"{self.key}.parts.json", record)
        self._remove(lambda name: name.endswith(".state") and name != state)

    def all_with(self, last: Evaluated) -> tuple[list[pa.Table], float]:
        """Rows of all parts, `last` included, and the seconds they took together."""
        seconds = sum(part["seconds"] for part in self.parts)
        tables = [pq.read_table(pa.BufferReader(rows)) for rows in self.rows]
        return [*tables, last.rows], seconds + last.seconds

    def costs(self, last: Evaluated, tokens: int) -> list[dict[str, Any]]:
        """What each part cost, `last` included, which ends after `tokens` tokens."""
        return [{name: part.get(name) for name in COST} for part in self.parts] + [cost(last, tokens)]

    def clear(self) -> None:
        """Remove what a committed cell no longer needs."""
        self._remove(lambda name: name.endswith((".parts.json", ".part.parquet", ".state")))

    def _remove(self, unwanted: Callable[[str], bool]) -> None:
        for name in self.records.storage.names():
            if name.startswith(f"{self.key}.") and unwanted(name):
                self.records.storage.remove(name)


COST = ("tokens", "seconds", "peak_bytes")


def cost(part: Evaluated, tokens: int) -> dict[str, Any]:
    """What a part that ends after `tokens` tokens took: seconds, and bytes beyond those held before it."""
    return dict(zip(COST, (tokens, part.seconds, part.peak_bytes), strict=True))


def tidy(records: Records, finished: set[str], planned: set[str]) -> int:
    """Remove parts of cells that are finished; count the cells begun that are none of those planned."""
    begun = {name.partition(".")[0] for name in records.storage.names() if name.endswith(".parts.json")}
    for key in begun & finished:
        Parts(records, key).clear()
    return len(begun - finished - planned)
