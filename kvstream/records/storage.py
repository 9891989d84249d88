"""Where a records folder lies: on a disk, or in an object store. Reads and writes whole files, by name.

    ./records/mine        a folder
    s3://bucket/mine      a prefix of a bucket; also gs://, with the provider's own environment variables for
                          credentials
                          https://arrow.apache.org/docs/python/filesystems.html

A file appears whole or not at all, but for a bucket whose upload breaks off: see `Bucket.write`. One process at a time
may hold the place. Knows nothing of records.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from kvstream.inputs.hub import within

log = logging.getLogger(__name__)
T = TypeVar("T")
LOCK = ".lock"
CREDENTIALS = re.compile(r"^[^?]*@|[?&][^=&]*(key|secret|token|password)[^=&]*=", re.IGNORECASE)
ANSWER_S = 20.0  # a store that is silent for so long at the beginning is not there
BEAT_S = 10.0  # how often the holder of a bucket says that it lives
SILENT_BEATS = 3  # after which it does not
SETTLE_S = 1.0  # for how long whoever takes a bucket looks out for another who began at the same moment
opened: list[str] = []  # object stores that this process has a client of; see `abandon_clients`


class Room(NamedTuple):
    """Bytes that are free on a disk, and of the blocks that its files consist of."""

    free: int
    block: int


class Storage(Protocol):
    """What both kinds of place can do. OSError, naming place and file, where reading or writing fails."""

    where: str

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

    def room(self) -> Room | None:
        """What may still be written; None where nobody knows."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Hold the place; ValueError, naming the holder, if another process does."""
        ...


def storage_at(where: str | Path) -> Storage:
    """The folder or prefix that `where` names; ValueError if its scheme is unknown or it holds credentials."""
    if not (text := str(where)):
        raise ValueError("out: '' names no folder; give one, or leave the flag away")
    if not text.isprintable():
        raise ValueError(f"out: {text!r} holds characters that no folder should have; give another")
    if not re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        return Folder(Path(where))
    if CREDENTIALS.search(text):
        raise ValueError("out: the address holds credentials; give them in the environment, such as AWS_ACCESS_KEY_ID")
    return Bucket(text)


def abandon_clients() -> bool:
    """Have the program end without waiting for clients of object stores; False if it has none.

    What they wrote is there: only their threads live on, and ending those in order has aborted a program that had
    done all its work ("terminate called without an active exception"). So whoever asks must leave by `os._exit`.
    """
    if opened:
        from pyarrow import fs

        finalizer: Any = getattr(fs, "ensure_s3_finalized", None)
        if finalizer:  # some builds of pyarrow have no S3
            atexit.unregister(finalizer)
    return bool(opened)


class Folder:
    """A folder on a disk, created on first write."""

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
            raise _unwritten(self.where, name, error) from error

    def remove(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritten(self.where, name, error) from error

    def room(self) -> Room | None:
        """What its disk has left; None for those that count nothing, such as some network drives."""
        disk = os.statvfs(self.folder)
        return Room(disk.f_bavail * disk.f_frsize, disk.f_frsize) if disk.f_blocks else None

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
                holder = lock.read().decode(errors="replace").strip()
                raise _is_held(self.where, holder or "another process") from None
            with suppress(OSError):  # on a full disk the lock holds all the same, only without a name
                lock.truncate(0)
                lock.write(_me().encode())
            for left in self.folder.glob(".*.tmp"):  # by a writer that was killed: nobody else writes now
                left.unlink(missing_ok=True)
            yield


class Bucket:
    """A prefix in an object store. An object appears when its upload is complete."""

    def __init__(self, url: str) -> None:
        self.where = url
        self._usurper: str | None = None  # who took the place while we were silent for too long
        try:
            self._ask(self._find)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"out: {url!r} is no place for records ({_first(error)}); give a folder or s3://…"
            ) from None

    def _find(self) -> None:
        from pyarrow import fs

        opened.append(self.where)
        self._store, self._prefix = fs.FileSystem.from_uri(self.where)
        self.names()  # from_uri alone may ask nobody

    def names(self) -> list[str]:
        """Names of the objects under the prefix, those of deeper levels aside."""
        from pyarrow import fs

        found = self._store.get_file_info(fs.FileSelector(self._prefix, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.is_file)

    def read(self, name: str) -> bytes:
        """All of an object."""
        with self._store.open_input_file(self._path(name)) as file:
            data: bytes = file.read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Upload an object. One whose upload broke off may be short: records come last, and have checksums."""
        with self._changing(name):
            self._put(name, data)

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._changing(name), suppress(FileNotFoundError):
            self._store.delete_file(self._path(name))

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        try:
            if self._usurper:
                raise OSError(f"{self._usurper} has taken the place, as nothing was heard of us in time")
            yield
        except OSError as error:
            raise _unwritten(self.where, name, error) from error

    def _put(self, name: str, data: bytes) -> None:
        with self._store.open_output_stream(self._path(name)) as file:
            file.write(data)

    def room(self) -> None:
        """A store is as large as it is paid for."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the prefix by an object that its holder writes again every few seconds.

        Object stores have no locks that pyarrow could ask for. So whoever finds such an object watches whether it
        changes; if not, its writer is gone. Clocks are not compared.
        """
        mine, over = f"{_me()}, sweep {uuid.uuid4().hex[:8]}", threading.Event()
        try:
            self._take(mine)
        except OSError as error:
            raise ValueError(f"out: {self.where!r} cannot be written ({_first(error)}); give another --out") from None
        beats = threading.Thread(target=self._keep_beating, args=(mine, over), daemon=True)
        beats.start()
        try:
            yield
        finally:
            over.set()
            beats.join()
            if not self._usurper:
                with suppress(OSError):
                    self.remove(LOCK)

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _holder(self) -> str | None:
        try:
            return self.read(LOCK).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _take(self, mine: str) -> None:
        """Write our name where nobody's is, and see that it stays there; ValueError, naming the holder, if not.

        Of two that began at once the last to write stays, as each looks again when the other has written. If we write
        so late that the other may have looked before, it holds the place: it sees our name at its next beat and goes.
        """
        free_s = self._last_seen_free()
        self._ask(lambda: self._beat(mine, 0))
        if time.monotonic() - free_s <= SETTLE_S:
            time.sleep(SETTLE_S)
        else:
            log.warning("%s: slow to answer; seeing whether another sweep began at the same moment", self.where)
            time.sleep(SILENT_BEATS * BEAT_S)
        if _name_in(now := self._ask(self._holder) or "nobody, ") != mine:
            raise _is_held(self.where, _name_in(now))

    def _last_seen_free(self) -> float:
        """When we began to look and saw nobody, or nobody who lives; ValueError, naming the holder, if one does."""
        began_s, before = time.monotonic(), self._ask(self._holder)
        if not before:
            return began_s
        log.warning("%s: held by %s; seeing whether that still lives", self.where, _name_in(before))
        for _ in range(2 * SILENT_BEATS):
            time.sleep(BEAT_S / 2)
            began_s, now = time.monotonic(), self._ask(self._holder)
            if not now:
                break
            if now != before:
                raise _is_held(self.where, _name_in(before))
        return began_s

    def _beat(self, mine: str, beat: int) -> None:
        self._put(LOCK, f"{mine}, {beat}".encode())

    def _keep_beating(self, mine: str, over: threading.Event) -> None:
        beat = 0
        while not over.wait(BEAT_S):
            beat += 1
            with suppress(OSError):  # the next write of records meets the same error and tells it
                now = self._holder()
                if now and _name_in(now) != mine:
                    self._usurper = _name_in(now)
                    return
                self._beat(mine, beat)

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return within(ANSWER_S, question)
        except TimeoutError:
            raise OSError(f"no answer within {ANSWER_S:.0f} s") from None


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _name_in(lock: str) -> str:
    return lock.rpartition(", ")[0]


def _is_held(where: str, holder: str) -> ValueError:
    return ValueError(f"out: {where!r} is being written by {holder}; wait or give another --out")


def _unwritten(where: str, name: str, error: OSError) -> OSError:
    return OSError(
        f"out: cannot write {name} to {where!r} ({_first(error)}); everything written before is kept: "
        "make room there, or mend what is wrong, and run the same command again"
    )


def _first(error: Any) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
