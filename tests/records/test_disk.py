"""A disk that fills up, writes that fail or are cut at any call: what was committed stays, and nothing half counts."""

import builtins
import os
import re
import resource
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from driving import arguments, digest, sweep_here
from record_cases import (
    AFTER,
    KEY,
    OTHER,
    Nth,
    Written,
    add_part,
    cell_is_sound,
    commit_anew,
    fail,
    left_before,
    part_is_sound,
    rows_of,
)

from kvstream.records.long_cells import Parts
from kvstream.records.store import Records, parquet

# Of a file: its folder is made; it is opened, written, flushed, synced, closed, renamed; its folder is opened, synced.
FILE_CALLS = 9
COMMIT_CALLS = 2 * FILE_CALLS + 1  # and the failure that is none any more is removed
PART_CALLS = 3 * FILE_CALLS + 1  # and the state before


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "records")


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
def test_a_full_disk_ends_a_sweep_that_goes_on_when_there_is_room(disk, ray_here, world, tmp_path, monkeypatch):
    out, filler = disk / "records", disk / "filler"
    real = Records.commit

    def fill():
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def commit(*given):
        real(*given)
        fill()  # by somebody else, meanwhile

    fill()  # to the last byte
    assert "Ray:" not in ends_in_one_line(arguments(world, out)).stdout, "nothing was begun for it"
    filler.unlink()
    with monkeypatch.context() as filling:
        filling.setattr(Records, "commit", commit)
        ends_in_one_line(arguments(world, out))
    begun = digest(out)
    assert begun
    filler.unlink()
    assert sweep_here(arguments(world, out)).returncode == 0
    whole = digest(out)
    assert begun.items() < whole.items()
    assert sweep_here(arguments(world, tmp_path / "elsewhere")).returncode == 0
    assert whole == digest(tmp_path / "elsewhere")


def ends_in_one_line(command):
    """Run a sweep that the full disk ends."""
    ended = sweep_here(command)
    assert ended.returncode == 2
    told = ended.stderr.strip().splitlines()[-1]
    assert told.startswith("error: out: cannot write ")
    assert "No space left on device" in told
    assert "run the same command again" in told
    assert "Traceback" not in ended.stderr
    return ended


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
        records.require_writable()
    with no_room(), pytest.raises(OSError, match=r"out: cannot write .*File too large"), records.locked():
        commit_anew(records)
    with records.locked():
        commit_anew(records)


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


def is_written(records, write):
    """What nothing disturbed is there, and can be gone on from."""
    assert records.finished([KEY])
    if write is commit_anew:
        record, rows = rows_of(records, KEY)
        assert record["fields"] == {"n": 2}
    else:
        part_is_sound(records)
        parts = Parts(records, OTHER)
        assert parts.load().tokens == 512
        [rows] = [pq.read_table(pa.BufferReader(data)) for data in parts.rows]
    assert rows.equals(AFTER)


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
        is_written(records, write)
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
        assert len(list(records.storage.folder.glob(f"{KEY}.*.parquet"))) == 1
        cell_is_sound(records)
    write(records)
    is_written(records, write)


def test_a_sweep_says_that_room_is_lacking_before_it_begins(ray_here, world, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=1000))
    swept = sweep_here(arguments(world, tmp_path / "records"))
    assert (swept.returncode, swept.stderr.count("\n")) == (2, 1), swept.stderr
    assert "make room there, or give" in swept.stderr
    assert "to do" not in swept.stdout
    assert not (tmp_path / "records" / "sweep.json").exists()


def test_a_disk_that_certainly_lacks_room_is_refused_in_one_line(records, monkeypatch):
    rows = pa.table({"nll_nats": np.random.default_rng(0).exponential(size=10_000).astype(np.float32)})
    assert len(parquet([rows])) > 3 * len(rows)  # losses alone take most of what is said to be the least
    with records.locked():
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=8_000_000))
        records.require_room(1_000_000)
        with pytest.raises(
            ValueError, match=r"^out: .* has 8\.0 MB left, .* at least 8\.0 MB; make room there, or give"
        ):
            records.require_room(1_000_001)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=0, free=0))
        records.require_room(10**9)  # a drive that counts nothing
