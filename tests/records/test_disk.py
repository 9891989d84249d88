"""A disk that fills up, writes that fail or are cut at any call: what was committed stays, and nothing half counts."""

import builtins
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apart import until
from driving import arguments, digest, run

from kvstream.measure.quality import Evaluated
from kvstream.records import disk_space
from kvstream.records.long_cells import Parts
from kvstream.records.storage import Folder
from kvstream.records.store import Records

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
BEFORE, AFTER = (pa.table({"cell": [KEY] * 3, "nll_nats": [start, start + 1, start + 2]}) for start in (1.0, 7.0))
# Of a file: its folder is made; it is opened, written, flushed, synced, closed, renamed; its folder is opened, synced.
FILE_CALLS = 9
COMMIT_CALLS = 2 * FILE_CALLS + 1  # and the failure that is none any more is removed
PART_CALLS = 3 * FILE_CALLS + 1  # and the state before


@pytest.fixture
def disk(tmp_path):
    """A disk of one megabyte. Only root may mount it, and in many containers root may not either."""
    (disk := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    if re.search("permission denied|superuser|not permitted", mounted.stderr):
        pytest.skip(f"nothing may be mounted here: {mounted.stderr.splitlines()[0]}")
    assert mounted.returncode == 0, mounted.stderr
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
def test_a_full_disk_ends_a_sweep_that_goes_on_when_there_is_room(disk, start, world, tmp_path):
    out, filler = disk / "records", disk / "filler"
    (disk / "filler").write_bytes(b"x" * (1 << 20))  # to the last byte
    full = start(arguments(world, out))
    assert full.ended() == 2
    is_told(full.err())
    assert "Ray:" not in full.out(), "nothing was begun for it"
    filler.unlink()
    filling = start(arguments(world, out))
    until(lambda: list(out.glob("*.parquet")), 120, "a cell")
    with suppress(OSError), open(filler, "wb", buffering=0) as file:  # by somebody else, meanwhile
        while True:
            file.write(b"x" * 4096)
    assert filling.ended() == 2
    is_told(filling.err())
    begun = digest(out)
    filler.unlink()
    assert start(arguments(world, out)).ended() == 0
    whole = digest(out)
    assert begun.items() <= whole.items()
    assert start(arguments(world, tmp_path / "elsewhere")).ended() == 0
    assert whole == digest(tmp_path / "elsewhere")


def is_told(err):
    told = err.strip().splitlines()[-1]
    assert told.startswith("error: out: cannot write ")
    assert "No space left on device" in told
    assert "run the same command again" in told
    assert "Traceback" not in err


def test_too_little_room_is_said_before_anything_is_computed(world, tmp_path):
    """A disk with one megabyte left, and a sweep that will write more than that."""
    out = tmp_path / "records"
    script = (
        "import sys; sys.path.insert(0, 'sweeps'); from kvstream import storage, sweep; import quick\n"
        "storage.Folder.room = lambda self: storage.Room(100_000, 4096)\n"
        f"sweep.main(quick.GRID, quick.__doc__, {arguments(world, out)[2:]!r})"
    )
    refused = run([sys.executable, "-c", script])
    assert refused.returncode == 2
    assert re.fullmatch(
        rf"error: out: '{out}' has 0\.1 MB left, and this sweep will write about 0\.[45] MB; "
        r"make room there, or give another --out\n",
        refused.stderr,
    ), refused.stderr
    assert "loading" not in refused.stdout
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_the_room_on_a_disk_is_the_systems_own_count(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    assert 0.9 * free < Folder(tmp_path).room().free < 1.1 * free
    counts_nothing = os.statvfs_result((4096, 4096, *[0] * 8))
    monkeypatch.setattr(os, "statvfs", lambda path: counts_nothing)
    assert Folder(tmp_path).room() is None
    disk_space.require_room(Records(tmp_path), [], 1)


@contextmanager
def no_room():
    """No file may grow, as on a disk that is full to the last byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_is_held_without_a_byte_of_room(records):
    with no_room(), records.locked():  # a sweep that has nothing to write
        pass
    with no_room(), pytest.raises(OSError, match=r"out: cannot write .*File too large"), records.locked():
        disk_space.require_writable(records)
    with no_room(), pytest.raises(OSError, match=r"out: cannot write .*File too large"), records.locked():
        commit_anew(records)
    with records.locked():
        commit_anew(records)


class Nth:
    """Has the n-th of the calls that it counts do something else."""

    def __init__(self, number, instead):
        self.calls, self.number, self.instead = 0, number, instead

    def count(self):
        self.calls += 1
        if self.calls == self.number:
            self.instead()


class NthOnDisk(Nth):
    """Counts the calls that touch the records' folder."""

    def __init__(self, monkeypatch, number, instead):
        super().__init__(number, instead)
        for place, name in ((os, "open"), (os, "fsync"), (Path, "mkdir"), (Path, "replace"), (Path, "unlink")):
            monkeypatch.setattr(place, name, self.counted(getattr(place, name)))
        monkeypatch.setattr(builtins, "open", self.opening(builtins.open))

    def counted(self, real):
        def call(place, *arguments, **options):
            tidying = real.__name__ == "unlink" and ".tmp" in str(place)
            if not tidying and (isinstance(place, int) or "records" in str(place)):
                self.count()
            return real(place, *arguments, **options)

        return call

    def opening(self, real):
        def call(path, *arguments, **options):
            if "records" not in str(path):
                return real(path, *arguments, **options)
            self.count()
            return Written(real(path, *arguments, **options), self)

        return call


class Written:
    """A file whose calls count. What fails has written half; and it is closed all the same, like any other."""

    def __init__(self, file, nth):
        self.file, self.nth, self.fileno = file, nth, file.fileno

    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.nth.count()
        self.file.write(data[half:])

    def flush(self):
        self.nth.count()
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.file.close()
        if kind is None:
            self.nth.count()


def fail():
    raise OSError(errno.EIO, "Input/output error")


def left_before(records):
    """What a write finds: a finished cell, the record of a failure, the state after an earlier part."""
    records.commit(KEY, {"n": 1}, [BEFORE], 0.5, {})
    records.fail(KEY, {}, "ValueError: no", 1)
    Parts(records, OTHER).clear()
    records.storage.write(f"{OTHER}.256.state", b"")


def commit_anew(records):
    records.commit(KEY, {"n": 2}, [AFTER], 0.5, {})


def add_part(records):
    Parts(records, OTHER).add(Evaluated(AFTER, 0.5, {"kept": torch.arange(3)}), 512, {})


def cell_is_sound(records):
    """It is as it was before, or as it is after, or in between: that is seen, so it is not finished."""
    if records.finished([KEY]):
        record = records.read_json(f"{KEY}.json")
        rows = pq.read_table(pa.BufferReader(records.read_committed(f"{KEY}.parquet", record["sha256"])))
        assert rows.equals({1: BEFORE, 2: AFTER}[record["fields"]["n"]])
    else:
        with pytest.raises(ValueError, match="is not the file that was committed"):
            records.read_committed(f"{KEY}.parquet", records.read_json(f"{KEY}.json")["sha256"])


def part_is_sound(records):
    """It is there whole or not at all."""
    begun = Parts(records, OTHER).load()
    assert begun is None or (begun.tokens == 512 and begun.state["kept"].equal(torch.arange(3)))


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "records")


@pytest.mark.parametrize(("write", "calls"), [(commit_anew, COMMIT_CALLS), (add_part, PART_CALLS)])
def test_a_write_may_fail_at_any_call(records, monkeypatch, write, calls):
    left_before(records)
    with monkeypatch.context() as patch:
        counted = NthOnDisk(patch, 0, fail)
        write(records)
    assert counted.calls == calls, "a call is not tried"
    whole = records.storage.names()
    for number in range(1, calls + 1):
        left_before(records)
        with monkeypatch.context() as patch:
            NthOnDisk(patch, number, fail)
            with pytest.raises(OSError, match=r"out: cannot write .* \(Input/output error\)"):
                write(records)
        cell_is_sound(records)
        part_is_sound(records)
        assert not list(records.storage.folder.glob(".*.tmp"))
        write(records)
        assert records.finished([KEY])
        assert records.storage.names() == whole


@pytest.mark.parametrize(("write", "calls"), [(commit_anew, COMMIT_CALLS), (add_part, PART_CALLS)])
def test_a_kill_may_come_at_any_call(records, monkeypatch, write, calls):
    for number in range(1, calls + 1):
        left_before(records)
        if (child := os.fork()) == 0:
            try:
                NthOnDisk(monkeypatch, number, lambda: os._exit(9))
                write(records)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        cell_is_sound(records)
        part_is_sound(records)
    with records.locked():  # the next sweep
        assert not list(records.storage.folder.glob(".*.tmp"))
    write(records)
    assert records.finished([KEY])


def test_a_folder_nobody_can_write_to_is_refused_at_once(world):
    refused = run(arguments(world, "/proc/records"))
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: out: cannot write to '/proc/records'")
