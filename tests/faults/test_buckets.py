"""Records in an object store: a real sweep against a local S3 server, locks without locks, uploads that fail."""

import os
import socket
import sys
import threading
import time

import pytest
from driving import ROOT, arguments, digest, run

from kvstream import storage
from kvstream.records import Records
from kvstream.storage import Bucket, Folder, storage_at

KEYS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "canary-secret", "AWS_EC2_METADATA_DISABLED": "true"}


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
def test_a_sweep_into_a_bucket_has_the_rows_of_one_into_a_folder(world, tmp_path, bucket):
    url = bucket.format("deep/mine")
    few = ["--policies", "full,streaming_llm", "--budgets", "8", "--documents", "1", "--lengths", "400"]
    swept = run(arguments(world, url, *few))
    assert swept.returncode == 0, swept.stderr
    assert ", 0 to do" in run(arguments(world, url, *few)).stdout
    local = run(arguments(world, tmp_path / "local", *few))
    assert local.returncode == 0, local.stderr
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
    for printed in (swept, verified, reported):
        assert "canary-secret" not in printed.stdout + printed.stderr


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


def test_a_second_sweep_is_told_who_holds_a_bucket(bucket, quick_beats):
    url = bucket.format("held")
    with Bucket(url).held(), pytest.raises(ValueError, match=r"is being written by process \d+ on .*; wait or give"):  # noqa: SIM117
        with Bucket(url).held():
            pass
    with Bucket(url).held():  # whoever ended in order leaves nothing behind
        pass


def test_who_died_holding_a_bucket_is_followed(bucket, quick_beats, caplog):
    url = bucket.format("dead")
    Bucket(url).write(storage.LOCK, b"process 1 on a machine that is gone, sweep 00000000, 17")
    with Bucket(url).held():
        assert b"a machine that is gone" not in Bucket(url).read(storage.LOCK)
    assert "held by process 1 on a machine that is gone" in caplog.text


def test_who_was_silent_for_too_long_writes_no_more(bucket, quick_beats):
    first = Bucket(bucket.format("lost"))
    with first.held():
        first.write(storage.LOCK, b"process 2 on another machine, sweep 11111111, 0")
        threading.Event().wait(1.0)
        with pytest.raises(OSError, match="process 2 on another machine, sweep 11111111 has taken the place"):
            first.write("a", b"")


def test_a_store_that_does_not_answer_is_one_clear_line(world, bucket):
    command = arguments(world, "s3://records/x?scheme=http&endpoint_override=127.0.0.1:9")
    refused = run(command)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: out: 's3://records/x")
    assert "Traceback" not in refused.stderr


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
        assert time.monotonic() - clock < 20
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
        ("", "names no folder"),
    ],
)
def test_an_address_that_is_none_is_refused(url, words):
    with pytest.raises(ValueError, match=words) as refused:
        Records(url)
    assert "secret" not in str(refused.value)
