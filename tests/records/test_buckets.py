"""Records in an object store: a real sweep against a local S3 server, locks without locks, uploads that fail."""

import os
import socket
import sys
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from driving import ROOT, arguments, digest, run
from test_disk import KEY, Nth, Written, add_part, cell_is_sound, commit_anew, fail, left_before, part_is_sound

from kvstream.grid.cells import SCHEMA
from kvstream.records import storage
from kvstream.records.storage import Bucket, Folder, storage_at
from kvstream.records.store import Records

KEYS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "canary-secret", "AWS_EC2_METADATA_DISABLED": "true"}
FILE_CALLS = 3  # it is opened, written, closed
COMMIT_CALLS = 2 * FILE_CALLS + 1  # and the failure that is none any more is removed
PART_CALLS = 3 * FILE_CALLS + 1  # and the state before
CUT_PARTS_CALL = 2 * FILE_CALLS + 2  # the writing of the third, the part's record


@pytest.fixture(scope="module")
def bucket():
    """The URL of an empty bucket in an S3 server on this machine; the parts of it are `{}`."""
    moto = pytest.importorskip("moto.server")
    from pyarrow import fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(KEYS)
    admin = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
    admin.create_dir("records")
    yield f"s3://records/{{}}?scheme=http&endpoint_override={host}:{port}"
    server.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def quick_beats(monkeypatch):
    monkeypatch.setattr(storage, "BEAT_S", 0.2)


@pytest.mark.long
def test_a_sweep_into_a_bucket_has_the_rows_of_one_into_a_folder(bucket, start, world, tmp_path):
    url = bucket.format("deep/mine")
    few = ["--policies", "full,streaming_llm", "--budgets", "8", "--documents", "1", "--lengths", "400"]
    sweeps = []
    for out in (url, url, tmp_path / "local"):
        sweeps.append(start(arguments(world, out, *few)))
        assert sweeps[-1].ended() == 0, sweeps[-1].err()
    assert ", 0 to do" in sweeps[1].out()
    store = storage_at(url)
    (tmp_path / "home").mkdir()
    for name in store.names():
        (tmp_path / "home" / name).write_bytes(store.read(name))
    assert digest(tmp_path / "home") == digest(tmp_path / "local") != {}
    assert set(store.names()) == set(storage_at(tmp_path / "local").names()) - {storage.LOCK}
    verified = run([sys.executable, "-m", "kvstream", "verify", url])
    assert verified.returncode == 0, verified.stderr
    assert "0 problems" in verified.stdout
    report = [sys.executable, str(ROOT / "analysis" / "report.py"), "--records", url, "--out", str(tmp_path / "report")]
    reported = run(report)
    assert reported.returncode == 0, reported.stderr
    assert "streaming_llm" in (tmp_path / "report" / "index.html").read_text()
    said = "".join(sweep.out() + sweep.err() for sweep in sweeps)
    assert "canary-secret" not in said + verified.stdout + verified.stderr + reported.stdout + reported.stderr


def test_a_bucket_keeps_files_as_a_folder_does(bucket, tmp_path):
    for place in (Folder(tmp_path / "there"), Bucket(bucket.format("same"))):
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


def end_codes(url, times):
    """Exit codes of so many `kvstream verify`, and how often each was seen."""
    ended = [run([sys.executable, "-m", "kvstream", "verify", url]) for _ in range(times)]
    return Counter((each.returncode, each.stderr) for each in ended)


@pytest.mark.parametrize(
    ("times", "problem"), [(5, False), (5, True), pytest.param(100, False, marks=pytest.mark.long)]
)
def test_a_command_on_a_bucket_ends_with_its_own_exit_code(bucket, times, problem):
    """Threads of the store's client live on when all is said; the end must not depend on them."""
    url = bucket.format(f"ends/{times}/{problem}")
    store = Bucket(url)
    Records(url).write_json("sweep.json", {"schema": SCHEMA, "cells": []})
    if problem:
        store.write("stray.parquet", b"")
    assert end_codes(url, times) == {(int(problem), ""): times}


def test_a_program_that_used_a_bucket_does_not_wait_for_its_client(bucket):
    """As if a thread of the client's never ended: what would be torn down is not."""
    script = (
        "import atexit; from kvstream import storage; from kvstream.grid.exits import leave; from pyarrow import fs\n"
        "atexit.unregister(fs.ensure_s3_finalized); fs.ensure_s3_finalized = lambda: print('waits')\n"
        "atexit.register(fs.ensure_s3_finalized); atexit.register(print, 'asked for at the end')\n"
        f"storage.Bucket({bucket.format('ends/alone')!r}); leave(3)"
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
    records = Records(bucket.format(f"failing/{write.__name__}"))
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
        cell_is_sound(records)
        if (write, number) == (add_part, CUT_PARTS_CALL):  # its record is short, so the cell starts again
            with pytest.raises(ValueError, match=r"parts\.json is not the file that was committed"):
                part_is_sound(records)
        else:
            part_is_sound(records)
        write(records)  # only the n-th call fails
        assert records.finished([KEY])
        assert records.storage.names() == whole


def test_a_second_sweep_is_told_who_holds_a_bucket(bucket, quick_beats, monkeypatch):
    url = bucket.format("held")
    with Bucket(url).held():
        monkeypatch.setattr(storage, "SILENT_BEATS", 150)  # on a busy machine a beat may be late
        with (
            pytest.raises(ValueError, match=r"is being written by process \d+ on .*; wait or give"),
            Bucket(url).held(),
        ):
            pass
    with Bucket(url).held():  # whoever ended in order leaves nothing behind
        pass


def test_of_two_that_begin_at_once_one_stays_even_if_the_other_is_slow(bucket, quick_beats, monkeypatch):
    """Both see nobody; what the second writes arrives when the first holds the place."""
    monkeypatch.setattr(storage, "SETTLE_S", 0.1)
    monkeypatch.setattr(storage, "SILENT_BEATS", 15)
    first, second = Bucket(bucket.format("both")), Bucket(bucket.format("both"))
    with ExitStack() as both:

        def late(*beat):
            monkeypatch.setattr(second, "_beat", on_time)
            both.enter_context(first.held())
            on_time(*beat)

        on_time = second._beat
        monkeypatch.setattr(second, "_beat", late)
        with second.held():
            second.write("a", b"")
            with pytest.raises(OSError, match=rf"process {os.getpid()} on .* has taken the place"):
                first.write("a", b"")
            assert second.names() == [storage.LOCK, "a"]


def test_who_died_holding_a_bucket_is_followed(bucket, quick_beats, caplog):
    url = bucket.format("dead")
    Bucket(url).write(storage.LOCK, b"process 1 on a machine that is gone, sweep 00000000, 17")
    with Bucket(url).held():
        assert b"a machine that is gone" not in Bucket(url).read(storage.LOCK)
    assert "held by process 1 on a machine that is gone" in caplog.text


def test_who_was_silent_for_too_long_writes_no_more(bucket, quick_beats):
    first, other = (Bucket(bucket.format("lost")) for _ in range(2))
    with first.held():
        deadline = time.monotonic() + 30
        while not first._usurper and time.monotonic() < deadline:  # a beat on its way may come after the other's
            other.write(storage.LOCK, b"process 2 on another machine, sweep 11111111, 0")
            time.sleep(0.1)
        with pytest.raises(OSError, match="process 2 on another machine, sweep 11111111 has taken the place"):
            first.write("a", b"")
        with pytest.raises(OSError, match="has taken the place"):
            first.remove("a")
    assert other.read(storage.LOCK).startswith(b"process 2 on another machine")


def test_a_store_that_does_not_answer_is_one_clear_line(world, bucket):
    url = "s3://records/x?scheme=http&endpoint_override=127.0.0.1:9"
    clock = time.monotonic()
    refused = run(arguments(world, url))
    assert time.monotonic() - clock < 30
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith(f"error: out: {url!r} is no place for records (")


def test_a_store_that_is_slow_at_every_question_has_no_more_time(monkeypatch):
    class Slow:
        @staticmethod
        def from_uri(_):
            time.sleep(0.7)
            return Slow, "x"

        @staticmethod
        def get_file_info(_):
            time.sleep(0.7)
            return []

    monkeypatch.setattr("pyarrow.fs.FileSystem", Slow)
    monkeypatch.setattr(storage, "ANSWER_S", 1.0)
    with pytest.raises(ValueError, match=r"is no place for records \(no answer within 1 s\)"):
        Bucket("s3://records/x")


@pytest.mark.parametrize("act", ["sweep", "--dry-run", "verify"])
def test_a_store_that_stays_silent_is_one_clear_line(world, act):
    """It takes the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        url = f"s3://records/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.getsockname()[1]}"
        command = arguments(world, url, *(["--dry-run"] if act == "--dry-run" else []))
        code = "import sys; from kvstream import storage; storage.ANSWER_S = 1.0; import runpy; "
        if act == "verify":
            code += "sys.argv = ['kvstream', 'verify', sys.argv[-1]]; runpy.run_module('kvstream', run_name='__main__')"
            command = [url]
        else:
            code += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
            command = command[1:]
        clock = time.monotonic()
        refused = run([sys.executable, "-c", code, *command], env=os.environ | KEYS)
        assert time.monotonic() - clock < 60  # most of it are imports; pyarrow by itself would wait for minutes
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(f"error: out: {url!r} is no place for records (no answer within")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@records/x", "the address holds credentials"),
        ("s3://AKIAX:with/slash+secret@records/x", "the address holds credentials"),
        ("s3://records/x?access_key=a&secret_key=b", "the address holds credentials"),
        ("abfss://records@account/x?client_secret=secret", "the address holds credentials"),
        ("s3://[abc", "is no place for records"),
        ("gopher://records/x", "is no place for records"),
        ("S3://records/x", "is no place for records .* or s3://"),
        ("", "names no folder"),
    ],
)
def test_an_address_that_is_none_is_refused(url, words):
    with pytest.raises(ValueError, match=words) as refused:
        Records(url)
    assert "secret" not in str(refused.value)
