"""The records folder: what counts as finished, what a kill can leave, who may write."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvstream.records.store import Records

KEY = "0123456789abcdef"
ROWS = pa.table({"cell": [KEY] * 3, "nll_nats": pa.array([1.0, 2.0, 3.0], pa.float32())})


@pytest.fixture
def records(tmp_path):
    store = Records(tmp_path / "out")
    store.commit(KEY, {"model": "a"}, [ROWS], 0.5, {"python": "3"})
    return store


def test_a_committed_cell_is_finished_and_reads_back(records):
    assert records.finished([KEY, "f" * 16]) == {KEY}
    record = json.loads((records.storage.folder / f"{KEY}.json").read_text())
    assert (record["rows"], record["fields"], record["schema"]) == (3, {"model": "a"}, 1)
    assert pq.read_table(records.storage.folder / record["file"]).equals(ROWS)
    assert sorted(path.name for path in records.storage.folder.iterdir()) == [f"{KEY}.json", f"{KEY}.parquet"]


@pytest.mark.parametrize("harm", ["flip", "empty", "truncate", "remove", "swap", "no record", "broken record", "list"])
def test_whatever_is_not_what_was_committed_counts_as_missing(records, harm):
    parquet, record = records.storage.folder / f"{KEY}.parquet", records.storage.folder / f"{KEY}.json"
    data = bytearray(parquet.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    parquet.write_bytes({"empty": b"", "truncate": data[:-1]}.get(harm, bytes(data)))
    if harm == "remove":
        parquet.unlink()
    elif harm == "swap":
        pq.write_table(ROWS.slice(1), parquet)
    elif harm == "no record":
        record.unlink()
    elif harm == "broken record":
        record.write_text("{")
    elif harm == "list":
        record.write_text("[]")
    assert records.finished([KEY]) == set()


def test_a_failure_is_recorded_until_the_cell_succeeds(records):
    records.fail("f" * 16, {"model": "a"}, "ValueError: no", 2)
    failed = json.loads((records.storage.folder / ("f" * 16 + ".failed.json")).read_text())
    assert (failed["error"], failed["attempts"]) == ("ValueError: no", 2)
    assert records.finished(["f" * 16]) == set()
    records.commit("f" * 16, {}, [ROWS], 0.5, {})
    assert not (records.storage.folder / ("f" * 16 + ".failed.json")).exists()


def test_a_write_that_fails_leaves_what_was_there(records, monkeypatch):
    monkeypatch.setattr("kvstream.records.storage.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        records.commit(KEY, {"model": "b"}, [ROWS], 0.5, {})
    monkeypatch.undo()
    assert records.finished([KEY]) == {KEY}
    assert not list(records.storage.folder.glob(".*.tmp"))


def test_a_second_sweep_is_told_who_holds_the_folder(records):
    code = "import sys; from kvstream.records.store import Records; from pathlib import Path\n"
    code += "with Records(Path(sys.argv[1])).locked(): pass"
    command = [sys.executable, "-c", code, str(records.storage.folder)]
    with records.locked():
        second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert "is being written by process" in second.stderr
    assert subprocess.run(command).returncode == 0


def test_a_folder_that_cannot_be_created_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"out: cannot write to .* give another --out"),
        Records(tmp_path / "file").locked(),
    ):
        pass
