"""A disk that fills up, writes that fail or are cut at any call: what was committed stays, and nothing half counts."""

import builtins
import errno
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from driving import arguments, digest, run

from kvstream.parts import Parts
from kvstream.quality import Evaluated
from kvstream.records import Records

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
BEFORE, AFTER = (pa.table({"cell": [KEY] * 3, "nll_nats": [start, start + 1, start + 2]}) for start in (1.0, 7.0))
# Of a file: its folder is made; it is opened, written, flushed, synced, closed, renamed; its folder is opened, synced.
FILE_CALLS = 9
COMMIT_CALLS = 2 * FILE_CALLS + 1  # and the failure that is none any more is removed
PART_CALLS = 3 * FILE_CALLS + 1  # and the state before


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk of one megabyte")
def test_a_full_disk_ends_a_sweep_that_goes_on_when_there_is_room(world, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        (disk / "filler").write_bytes(b"x" * (980 << 10))
        full = run(arguments(world, disk / "records"))
        assert full.returncode == 2
        told = full.stderr.strip().splitlines()[-1]
        assert told.startswith("error: out: cannot write ")
        assert "No space left on device" in told
        assert "run the same command again" in told
        assert "Traceback" not in full.stderr
        begun = digest(disk / "records")
        (disk / "filler").unlink()
        assert run(arguments(world, disk / "records")).returncode == 0
        whole = digest(disk / "records")
        assert begun.items() <= whole.items()
        assert run(arguments(world, tmp_path / "elsewhere")).returncode == 0
        assert whole == digest(tmp_path / "elsewhere")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Nth:
    """Has the n-th call that touches the disk do something else."""

    def __init__(self, monkeypatch, number, instead):
        self.calls, self.number, self.instead = 0, number, instead
        for place, name in ((os, "open"), (os, "fsync"), (Path, "mkdir"), (Path, "replace"), (Path, "unlink")):
            monkeypatch.setattr(place, name, self.counted(getattr(place, name)))
        monkeypatch.setattr(builtins, "open", self.opening(builtins.open))

    def count(self):
        self.calls += 1
        if self.calls == self.number:
            self.instead()

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
    """A file whose calls count; like any other it is closed even where closing fails."""

    def __init__(self, file, nth):
        self.file, self.nth, self.fileno = file, nth, file.fileno

    def write(self, data):
        self.nth.count()
        self.file.write(data)

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


def left_before(folder):
    """What a commit finds and removes: the record of a failure, the state after an earlier part."""
    Records(folder).fail(KEY, {}, "ValueError: no", 1)
    (folder / f"{OTHER}.256.state").touch()


def commit_anew(folder):
    Records(folder).commit(KEY, {"n": 2}, [AFTER], 0.5, {})


def add_part(folder):
    state = {"kept": torch.arange(3)}
    Parts(Records(folder), OTHER).add(Evaluated(AFTER, 0.5, state), 512, {})


@pytest.fixture
def folder(tmp_path):
    """A folder with one committed cell."""
    Records(tmp_path / "records").commit(KEY, {"n": 1}, [BEFORE], 0.5, {})
    return tmp_path / "records"


def is_sound(folder):
    """The cell is as it was before or as it is after, and a part is there whole or not at all; nothing in between."""
    records = Records(folder)
    if records.finished([KEY]):
        table = pa.parquet.read_table(folder / f"{KEY}.parquet")
        assert table.equals({1: BEFORE, 2: AFTER}[records.read_json(f"{KEY}.json")["fields"]["n"]])
    begun = Parts(records, OTHER).load()
    assert begun is None or begun.tokens == 512


@pytest.mark.parametrize(("write", "calls"), [(commit_anew, COMMIT_CALLS), (add_part, PART_CALLS)])
def test_a_write_may_fail_at_any_call(folder, monkeypatch, write, calls):
    for number in range(1, calls + 1):
        left_before(folder)
        with monkeypatch.context() as patch:
            Nth(patch, number, fail)
            with pytest.raises(OSError, match=r"out: cannot write .* \(Input/output error\)"):
                write(folder)
        is_sound(folder)
        assert not list(folder.glob(".*.tmp"))
    left_before(folder)
    with monkeypatch.context() as patch:
        counted = Nth(patch, 0, fail)
        write(folder)
    assert counted.calls == calls, "a call is not tried"
    is_sound(folder)
    assert Records(folder).finished([KEY])


@pytest.mark.parametrize(("write", "calls"), [(commit_anew, COMMIT_CALLS), (add_part, PART_CALLS)])
def test_a_kill_may_come_at_any_call(folder, monkeypatch, write, calls):
    for number in range(1, calls + 1):
        left_before(folder)
        if (child := os.fork()) == 0:
            try:
                Nth(monkeypatch, number, lambda: os._exit(9))
                write(folder)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        is_sound(folder)
    with Records(folder).locked():  # the next sweep
        assert not list(folder.glob(".*.tmp"))
    write(folder)
    is_sound(folder)


def test_a_folder_nobody_can_write_to_is_refused_at_once(world):
    refused = run(arguments(world, "/proc/records"))
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: out: cannot write to '/proc/records'")
