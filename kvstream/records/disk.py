"""Records in a folder on a disk. Each file appears whole or not at all, and one sweep at a time may write."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvstream.records.storage import unwritten

LOCK = ".lock"


class Folder:
    """A folder on a disk, created on first write."""

    one_writer = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    def names(self) -> list[str]:
        """Names of its files."""
        return sorted(os.listdir(self.folder)) if self.folder.is_dir() else []

    def read(self, name: str) -> bytes:
        """All of a file."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write to a temporary name, sync, rename, sync the folder: a kill leaves the old file or the new."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.folder / name)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise unwritten(self.where, name, error) from error

    def remove(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritten(self.where, name, error) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder by a lock of the kernel's, which ends with the process, however that ends."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that closing it does not try once more to write what a full disk has refused.
            lock = open(self.folder / LOCK, "a+b", buffering=0)  # noqa: SIM115  # closed below
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.where!r} ({error.strerror}); give another --out") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().decode(errors="replace").strip() or "another process"
                raise ValueError(
                    f"out: {self.where!r} is being written by {holder}; wait or give another --out"
                ) from None
            with suppress(OSError):  # on a full disk the lock holds all the same, only without a name
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            for left in self.folder.glob(".*.tmp"):  # by a writer that was killed: nobody else writes now
                left.unlink(missing_ok=True)
            yield
