"""The records folder: what counts as finished, what a kill can leave, who may write."""

import hashlib
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_cases import file_of

from analysis.read.records import RecordsError, read_records
from kvstream.records.long_cells import Parts
from kvstream.records.store import Records

KEY, FAILED = "0123456789abcdef", "f" * 16
ROWS = pa.table({"cell": [KEY] * 3, "nll_nats": pa.array([1.0, 2.0, 3.0], pa.float32())})


@pytest.fixture
def records(tmp_path):
    store = Records(tmp_path / "out")
    store.commit(KEY, {"model": "a"}, [ROWS], 0.5, {"python": "3"})
    return store


def test_a_committed_cell_is_finished_and_reads_back(records):
    assert records.finished([KEY, FAILED]) == {KEY}
    record = json.loads((records.storage.folder / f"{KEY}.json").read_text())
    assert (record["rows"], record["fields"], record["schema"]) == (3, {"model": "a"}, 1)
    file = records.storage.folder / record["file"]
    assert pq.read_table(file).equals(ROWS)
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.name == f"{KEY}.{record['sha256'][:16]}.parquet"
    assert set(records.storage.names()) == {f"{KEY}.json", file.name}


@pytest.mark.parametrize("name", ["../{key}.parquet", "{other}.parquet", "{key}.{other}.parquet", "x.parquet"])
def test_a_record_that_names_another_file_counts_for_nothing(records, name):
    """The same rows lie there, and all checksums are right: whoever wrote it wanted something."""
    record, data = records.committed(KEY)
    elsewhere = name.format(key=KEY, other=FAILED)
    (records.storage.folder / elsewhere).write_bytes(data)
    is_refused(records, "file", record | {"file": elsewhere})


@pytest.mark.parametrize("sha256", ["/../../{key}.par", "", 7, None])
def test_a_record_whose_sha256_is_none_counts_for_nothing(records, sha256):
    """Part of it stands in the file's name, and might lead elsewhere."""
    sha256 = sha256.format(key=KEY) if isinstance(sha256, str) else sha256
    file = f"{KEY}.{str(sha256)[:16]}.parquet"
    is_refused(records, "sha256", records.read_json(f"{KEY}.json") | {"sha256": sha256, "file": file})


def is_refused(records, field, record):
    records.write_json(f"{KEY}.json", record)
    assert records.finished([KEY]) == set()
    with pytest.raises(RecordsError, match=f"nothing to report in .*{KEY}.json: {field}: "):
        read_records(records.storage.folder)


def test_a_folder_of_older_names_is_still_read(records):
    """Before files were named for what they hold, a cell's rows were <key>.parquet."""
    record = records.read_json(f"{KEY}.json")
    (records.storage.folder / record["file"]).rename(records.storage.folder / f"{KEY}.parquet")
    records.write_json(f"{KEY}.json", record | {"file": f"{KEY}.parquet"})
    assert records.finished([KEY]) == {KEY}
    with records.locked():
        assert f"{KEY}.parquet" in records.storage.names()


def test_a_failure_is_recorded_until_the_cell_succeeds(records):
    records.fail(FAILED, {"model": "a"}, "ValueError: no", 2)
    failed = records.read_json(f"{FAILED}.failed.json")
    assert (failed["error"], failed["attempts"]) == ("ValueError: no", 2)
    assert records.finished([FAILED]) == set()
    records.commit(FAILED, {}, [ROWS], 0.5, {})
    assert f"{FAILED}.failed.json" not in records.storage.names()


def test_rows_that_no_record_names_go_with_the_next_sweep(records):
    """Those of a commit that was killed between its two files, and those that a newer commit replaced."""
    old = file_of(records, KEY)
    records.write_named(FAILED, "parquet", b"rows whose record was never written")
    records.commit(KEY, {"model": "a"}, [ROWS.slice(1)], 0.5, {})
    assert len([name for name in records.storage.names() if name.endswith(".parquet")]) == 3
    (records.storage.folder / "mine.parquet").write_bytes(b"a user's own")
    with records.locked():
        assert set(records.storage.names()) == {".lock", "mine.parquet", f"{KEY}.json", file_of(records, KEY)}
    assert file_of(records, KEY) != old
    (records.storage.folder / f"{KEY}.json").write_text("{")
    records.write_named(KEY, "parquet", b"other rows")
    with records.locked():  # which of the two the record named nobody knows
        assert len([name for name in records.storage.names() if name.startswith(f"{KEY}.")]) == 3


def test_a_second_sweep_is_told_who_holds_the_folder(records):
    code = "import sys; from kvstream.records.store import Records\nwith Records(sys.argv[1]).locked(): pass"
    command = [sys.executable, "-c", code, str(records.storage.folder)]
    with records.locked():
        second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert "is being written by process" in second.stderr
    assert subprocess.run(command).returncode == 0


def test_what_another_sweep_removes_meanwhile_ends_none(records, monkeypatch):
    """In a bucket, which no lock keeps for one sweep: between the list of names and the reading of one."""
    monkeypatch.setattr(records.storage, "names", lambda: [f"{FAILED}.failed.json", f"{KEY}.parts.json"])
    records.forget_failures()
    with pytest.raises(ValueError, match=f"{KEY}.parts.json cannot be read"):  # with which a cell begins anew
        Parts(records, KEY).load()
