"""Records in an object store: a real sweep against a local S3 server, uploads that fail, stores that do not answer."""

import sys
from collections import Counter

import pytest
from driving import ROOT, arguments, digest, run
from record_cases import KEY, Nth, Written, add_part, cell_is_sound, commit_anew, fail, left_before, part_is_sound

from kvstream.grid.cells import SCHEMA
from kvstream.records.storage import LOCK, Bucket, Folder, storage_at
from kvstream.records.store import Records

FILE_CALLS = 3  # it is opened, written, closed
COMMIT_CALLS = 2 * FILE_CALLS + 1  # and the failure that is none any more is removed
PART_CALLS = 3 * FILE_CALLS + 1  # and the state before
CUT_RECORD = {commit_anew: FILE_CALLS + 2, add_part: 2 * FILE_CALLS + 2}  # the call that writes the record


@pytest.mark.long
def test_a_sweep_into_a_bucket_has_the_rows_of_one_into_a_folder(bucket, start, world, tmp_path):
    few = ["--policies", "full,streaming_llm,fix_size_l2", "--budgets", "8", "--documents", "1", "--lengths", "400"]
    sweeps = []
    for out in (bucket, bucket, tmp_path / "local"):
        sweeps.append(start(arguments(world, out, *few)))
        assert sweeps[-1].ended() == 0, sweeps[-1].err()
    assert ", 0 to do" in sweeps[1].out()
    store = storage_at(bucket)
    (tmp_path / "home").mkdir()
    for name in store.names():
        (tmp_path / "home" / name).write_bytes(store.read(name))
    assert digest(tmp_path / "home") == digest(tmp_path / "local") != {}
    assert set(store.names()) == set(storage_at(tmp_path / "local").names()) - {LOCK}
    verified = run([sys.executable, "-m", "kvstream", "verify", bucket])
    assert verified.returncode == 0, verified.stderr
    assert "0 problems" in verified.stdout
    command = [sys.executable, str(ROOT / "analysis" / "report.py"), "--records", bucket]
    reported = run([*command, "--out", str(tmp_path / "report")])
    assert reported.returncode == 0, reported.stderr
    assert "streaming_llm" in (tmp_path / "report" / "index.html").read_text()
    said = "".join(sweep.out() + sweep.err() for sweep in sweeps)
    assert "canary-secret" not in said + verified.stdout + verified.stderr + reported.stdout + reported.stderr


def test_a_bucket_keeps_files_as_a_folder_does(bucket, tmp_path):
    for place in (Folder(tmp_path / "there"), Bucket(bucket)):
        assert place.names() == []
        with pytest.raises(FileNotFoundError):
            place.read("a.json")
        place.write("a.json", b"one")
        place.write("a.json", b"two")
        place.write("b", b"")
        assert (place.names(), place.read("a.json"), place.read("b")) == (["a.json", "b"], b"two", b"")
        place.remove("b")
        place.remove("b")
        assert place.names() == ["a.json"]


@pytest.mark.parametrize(
    ("times", "problem"), [(2, False), (1, True), pytest.param(100, False, marks=pytest.mark.long)]
)
def test_a_command_on_a_bucket_ends_with_its_own_exit_code(bucket, times, problem):
    """Threads of the store's client live on when all is said; the end must not depend on them."""
    Records(bucket).write_json("sweep.json", {"schema": SCHEMA, "cells": []})
    if problem:
        Bucket(bucket).write("stray.parquet", b"")
    ended = [run([sys.executable, "-m", "kvstream", "verify", bucket]) for _ in range(times)]
    assert Counter((each.returncode, each.stderr) for each in ended) == {(int(problem), ""): times}


def test_a_program_that_used_a_bucket_does_not_wait_for_its_client(bucket):
    """As if a thread of the client's never ended: what would be torn down is not."""
    script = (
        "import atexit; from kvstream.records.storage import Bucket; from kvstream.grid.terminal import leave\n"
        "from pyarrow import fs\n"
        "atexit.unregister(fs.ensure_s3_finalized); fs.ensure_s3_finalized = lambda: print('waits')\n"
        "atexit.register(fs.ensure_s3_finalized); atexit.register(print, 'asked for at the end')\n"
        f"Bucket({bucket!r}); leave(3)"
    )
    ended = run([sys.executable, "-c", script])
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "asked for at the end\n", "")


class Store(Nth):
    """A bucket whose n-th opening, writing, closing or deleting fails."""

    def __init__(self, real, number):
        super().__init__(number, fail)
        self.real, self.get_file_info, self.open_input_file = real, real.get_file_info, real.open_input_file

    def open_output_stream(self, path):
        self.count()
        return Written(self.real.open_output_stream(path), self)  # closing it makes an object, also a short one

    def delete_file(self, path):
        self.count()
        self.real.delete_file(path)


@pytest.mark.parametrize(("write", "calls"), [(commit_anew, COMMIT_CALLS), (add_part, PART_CALLS)])
def test_a_write_to_a_bucket_may_fail_at_any_call(bucket, monkeypatch, write, calls):
    records = Records(bucket)
    real = records.storage._store
    left_before(records)
    monkeypatch.setattr(records.storage, "_store", counted := Store(real, 0))
    write(records)
    assert counted.calls == calls, "a call is not tried"
    whole = records.storage.names()
    for number in range(1, calls + 1):
        monkeypatch.setattr(records.storage, "_store", real)
        left_before(records)
        monkeypatch.setattr(records.storage, "_store", Store(real, number))
        with pytest.raises(OSError, match=r"out: cannot write .* \(Input/output error\)"):
            write(records)
        sound = cell_is_sound if write is commit_anew else part_is_sound
        if number == CUT_RECORD[write]:  # it is short, so the cell is not finished, or starts again
            with pytest.raises(ValueError, match=r"json is not the file that was committed"):
                sound(records)
        else:
            sound(records)
        write(records)  # only the n-th call fails
        assert records.finished([KEY])
        assert records.storage.names() == whole


def refused(url):
    """What is said of an address that is none, in a line."""
    with pytest.raises(ValueError, match=r"^out: ") as error:
        Records(url)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_store_that_does_not_answer_is_one_clear_line(keys):
    """Its client tries again for some seconds."""
    url = "s3://records/x?scheme=http&endpoint_override=127.0.0.1:9"
    assert refused(url).startswith(f"out: {url!r} is no place for records (")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://AKIAX:with/slash+secret@records/x", "the address holds credentials"),
        ("s3://records/x?access_key=a&secret_key=b", "the address holds credentials"),
        ("abfss://records@account/x?client_secret=secret", "the address holds credentials"),
        ("gopher://records/x", "is no place for records"),
        ("S3://records/x", "is no place for records"),
        (
            "s3:/records/x",
            "would be a folder of that name; write s3://bucket/prefix, or ./s3:/records/x for the folder",
        ),
        ("gs:records", "is no address"),
        ("https:/records/x", "is no address"),
        ("", "names no folder"),
    ],
)
def test_an_address_that_is_none_is_refused(url, words):
    assert words in refused(url)
    assert "secret" not in refused(url)
