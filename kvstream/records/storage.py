"""Where records lie: a folder on a disk, or a prefix in an object store (s3://bucket/prefix, also gs://).

Both read and write whole files, by name, and know nothing of records. `one_writer`: whether `held` keeps other sweeps
out. Credentials of object stores come from the provider's own variables.
https://arrow.apache.org/docs/python/filesystems.html
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from kvstream.engine.notes import first_line
from kvstream.grid.terminal import opened

LOCK = ".lock"
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
NEARLY = re.compile(r"(s3|gs):|[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # what begins like an address and is none
CREDENTIALS = re.compile(r"^[^?]*@|[?&][^=&]*(key|secret|token|password)[^=&]*=", re.IGNORECASE)


def storage_at(where: str | Path) -> Folder | Bucket:
    """The folder or prefix that `where` names; ValueError if its scheme is unknown or it holds credentials."""
    if not (text := str(where)):
        raise ValueError("out: '' names no folder; give one, or leave the flag away")
    if not text.isprintable():
        raise ValueError(f"out: {text!r} holds characters that no folder should have; give another")
    if not SCHEME.match(text):
        if NEARLY.match(text):
            raise ValueError(
                f"out: {text!r} is no address and would be a folder of that name; write s3://bucket/prefix, or "
                f"./{text} for the folder"
            )
        return Folder(Path(where))
    if CREDENTIALS.search(text):
        raise ValueError("out: the address holds credentials; give them in the environment, such as AWS_ACCESS_KEY_ID")
    return Bucket(text)


class Folder:
    """A folder on a disk, created on first write. A file appears whole or not at all; one sweep at a time may write."""

    one_writer = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    def names(self) -> list[str]:
        """Names of its files, sorted; none if it does not exist."""
        return sorted(os.listdir(self.folder)) if self.folder.is_dir() else []

    def read(self, name: str) -> bytes:
        """All of a file; FileNotFoundError if there is none."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write to a temporary name, sync, rename, sync the folder: a kill leaves the old file or the new."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        with _told(self.where, name):
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

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with _told(self.where, name):
            (self.folder / name).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """What its disk has left; None for those that count nothing, such as some network drives."""
        disk = shutil.disk_usage(self._there())
        return disk.free if disk.total else None

    def require_place(self) -> None:
        """Raise what `held` would if nothing can be written there, and leave nothing behind."""
        with self._made():
            if (there := self._there()).is_dir():
                tempfile.TemporaryFile(dir=there).close()
            else:
                self.folder.mkdir(parents=True, exist_ok=True)  # which fails: a file is in its way

    def _there(self) -> Path:
        """The folder, or what of the way to it there is."""
        for each in (self.folder, *self.folder.parents):
            with suppress(FileNotFoundError, NotADirectoryError):
                each.lstat()
                return each
        return Path()

    @contextmanager
    def _made(self) -> Iterator[None]:
        """Say in a user's words if the folder cannot be made, or nothing be written into it."""
        try:
            yield
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.where!r} ({error.strerror}); give another --out") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder by a lock of the kernel's, which ends with the process, however that ends.

        ValueError, naming the holder, if another process does.
        """
        with self._made():
            self.folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that closing it does not try once more to write what a full disk has refused.
            lock = open(self.folder / LOCK, "a+b", buffering=0)  # noqa: SIM115  # closed below
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


class Bucket:
    """A prefix in an object store. An object appears when its upload is complete, and replaces the one before.

    Object stores have no locks that pyarrow could ask for, and records need none: two sweeps that write the same cell
    at once give their files different names unless they hold the same rows, so neither spoils what the other's record
    names.
    """

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

    def free_bytes(self) -> None:
        """A store is as large as it is paid for."""

    def require_place(self) -> None:
        """It was asked for its names already; whether it takes files, only a file would tell."""

    def names(self) -> list[str]:
        """Names of the objects under the prefix, sorted, those of deeper levels aside."""
        from pyarrow import fs

        found = self._store.get_file_info(fs.FileSelector(self._prefix, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.is_file)

    def read(self, name: str) -> bytes:
        """All of an object; FileNotFoundError if there is none."""
        with self._store.open_input_file(f"{self._prefix}/{name}") as file:
            data: bytes = file.read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Upload an object. One whose upload broke off may be short: records come last, and have checksums."""
        with _told(self.where, name), self._store.open_output_stream(f"{self._prefix}/{name}") as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""
        with _told(self.where, name), suppress(FileNotFoundError):
            self._store.delete_file(f"{self._prefix}/{name}")

    def held(self) -> AbstractContextManager[None]:
        """Nobody holds it: two sweeps at once do some work twice, and harm nothing."""
        return nullcontext()


@contextmanager
def _told(where: str, name: str) -> Iterator[None]:
    """Say in a user's words if a file cannot be written or removed."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"out: cannot write {name} to {where!r} ({first_line(error)}); everything written before is kept: "
            "make room there, or mend what is wrong, and run the same command again"
        ) from error
