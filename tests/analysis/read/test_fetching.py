"""Records in an object store: only what is needed is brought, nothing is left behind, one clear error otherwise."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from golden import QUICK, quick_report, write
from pyarrow import fs

from analysis.read import fetching
from analysis.read.contract import RecordsError

SMALL = replace(QUICK, policies=QUICK.policies[:3], tokens=300, lengths=(300,), failed=1)


@pytest.fixture
def lying(tmp_path):
    """A records folder with what a sweep may leave beside its records."""
    folder = write(SMALL, tmp_path / "lying" / "mine")
    for name in (".lock", "f" * 16 + ".512.part.parquet", "0" * 16 + ".parts.json", "notes.json"):
        (folder / name).write_text("{}")
    (folder / ("e" * 16 + ".json")).write_text("{}")  # a commit record without its file
    (folder / "deeper").mkdir()
    return folder


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_brings_what_a_report_reads_and_removes_it_afterwards(lying):
    with fetching.at_hand(lying.as_uri()) as folder:
        assert folder.name == "mine"
        assert folder != lying
        brought = {name: (folder / name).read_bytes() for name in names_in(folder)}
    assert not folder.parent.exists()
    keys = {path.name[:16] for path in lying.glob("*.parquet")} - {"f" * 16}
    failed = {path.name for path in lying.glob("*.failed.json")}
    assert len(failed) == 1
    cells = {f"{key}.{ending}" for key in keys for ending in ("json", "parquet")}
    assert set(brought) == cells | failed | {"sweep.json", "e" * 16 + ".json"}
    assert all(data == (lying / name).read_bytes() for name, data in brought.items())


def test_a_folder_stays_where_it_is(lying):
    with fetching.at_hand(str(lying)) as folder:
        assert folder == lying
    assert folder.exists()


def test_the_report_is_the_same_wherever_its_records_lie(lying, tmp_path):
    for out, where in (("near", lying), ("far", lying.as_uri())):
        done = quick_report("--records", where, "--out", tmp_path / out)
        assert done.stderr.startswith(f"report: left out {'e' * 16}.json: "), done.stderr
        assert len(done.stderr.splitlines()) == 1
    tables = [
        {path.name: path.read_bytes() for path in (tmp_path / out / "tables").glob("*.csv")} for out in ("near", "far")
    ]
    assert tables[0] == tables[1]
    page = (tmp_path / "far" / "index.html").read_text(encoding="utf-8")
    assert lying.as_uri() in page
    assert f"{tempfile.gettempdir()}/kvstream-" not in page, "it names where they lie, not where they were brought"
    assert "perplexity.csv" in tables[0]


def test_the_temporary_folder_goes_although_the_report_fails(lying, tmp_path, monkeypatch):
    for path in lying.glob("*.parquet"):
        path.write_bytes(b"torn")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    done = quick_report("--records", lying.as_uri(), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"nothing to report in '{lying.as_uri()}'" in done.stderr
    assert names_in(temporary) == []


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("file:///nowhere/at/all", ["nothing to report in 'file:///nowhere/at/all'", "sweep"]),
        ("ftp://host/x", ["'ftp://host/x' could not be read", "check the address"]),
        ("s3://key:secret@bucket/x", ["holds credentials", "AWS_ACCESS_KEY_ID"]),
        ("s3://bucket/x?secret_key=hush", ["holds credentials", "AWS_ACCESS_KEY_ID"]),
    ],
)
def test_what_is_no_store_of_records_is_one_clear_line(tmp_path, where, words):
    done = quick_report("--records", where, "--out", tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("report: --records: ")
    assert all(word in line for word in words), line
    assert "hush" not in line


def test_a_file_that_went_meanwhile_is_left_out_and_one_that_breaks_off_is_an_error(lying, monkeypatch):
    gone = next(lying.glob("*.failed.json")).name
    broken = []

    def opened(path):
        if Path(path).name == gone:
            raise FileNotFoundError(path)
        if Path(path).name in broken:
            raise OSError("connection reset")
        return fs.LocalFileSystem().open_input_stream(path)

    real = fs.LocalFileSystem()
    store = SimpleNamespace(get_file_info=real.get_file_info, open_input_stream=opened)
    monkeypatch.setattr(fetching.fs, "FileSystem", SimpleNamespace(from_uri=lambda where: (store, str(lying))))
    with fetching.at_hand("s3://bucket/x") as folder:
        assert gone not in names_in(folder)
        assert "sweep.json" in names_in(folder)
    broken.append(f"{json.loads((lying / 'sweep.json').read_text())['cells'][0]}.parquet")
    said = r"'s3://bucket/x' could not be read \(connection reset\)"
    with pytest.raises(RecordsError, match=said), fetching.at_hand("s3://bucket/x"):
        pass
    assert not folder.exists()
