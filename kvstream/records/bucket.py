"""Records in an object store: s3://bucket/prefix, also gs://, with the provider's own variables for credentials.

https://arrow.apache.org/docs/python/filesystems.html

Object stores have no locks that pyarrow could ask for, and records need none: two sweeps that write the same cell at
once give their files different names unless they hold the same rows, so neither spoils what the other's record names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from kvstream.grid.terminal import opened
from kvstream.records.storage import first_line, unwritten


class Bucket:
    """A prefix in an object store. An object appears when its upload is complete, and replaces the one before."""

    one_writer = False

    def __init__(self, url: str) -> None:
        from pyarrow import fs

        self.where = url
        opened.append(url)
        try:
            self._store, self._prefix = fs.FileSystem.from_uri(url)
            self.names()  # from_uri alone may ask nobody
        except (ValueError, OSError) as error:
            why = first_line(error)
            raise ValueError(f"out: {url!r} is no place for records ({why}); give a folder or s3://…") from None

    def names(self) -> list[str]:
        """Names of the objects under the prefix, those of deeper levels aside."""
        from pyarrow import fs

        found = self._store.get_file_info(fs.FileSelector(self._prefix, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.is_file)

    def read(self, name: str) -> bytes:
        """All of an object."""
        with self._store.open_input_file(f"{self._prefix}/{name}") as file:
            data: bytes = file.read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Upload an object. One whose upload broke off may be short: records come last, and have checksums."""
        with self._changing(name), self._store.open_output_stream(f"{self._prefix}/{name}") as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._changing(name), suppress(FileNotFoundError):
            self._store.delete_file(f"{self._prefix}/{name}")

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritten(self.where, name, error) from error

    def held(self) -> AbstractContextManager[None]:
        """Nobody holds it: two sweeps at once do some work twice, and harm nothing."""
        return nullcontext()
