"""What a place for records can do, whether it is a folder on a disk or a prefix in an object store.

It reads and writes whole files, by name. Knows nothing of records.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Storage(Protocol):
    """What both kinds of place can do. OSError, naming place and file, where reading or writing fails.

    where: what the user calls the place. one_writer: whether `held` keeps other sweeps out.
    """

    where: str
    one_writer: bool

    def names(self) -> list[str]:
        """Names of the files, sorted; empty if the place does not exist."""
        ...

    def read(self, name: str) -> bytes:
        """All of a file; FileNotFoundError if there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file; it is on disk when this returns."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Hold the place while a sweep writes to it; ValueError, naming the holder, if another process does."""
        ...


def unwritten(where: str, name: str, error: OSError) -> OSError:
    """Say in a user's words that a file could not be written or removed."""
    return OSError(
        f"out: cannot write {name} to {where!r} ({first_line(error)}); everything written before is kept: "
        "make room there, or mend what is wrong, and run the same command again"
    )


def first_line(error: Any) -> str:
    """The reason of an error, in a line."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
