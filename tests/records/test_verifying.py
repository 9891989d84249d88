"""`kvstream verify`: what it finds, what it says, and how it exits."""

import shutil
from importlib.metadata import entry_points

import pyarrow as pa
import pytest
from record_cases import file_of, flip, rewritten, swept

from kvstream.__main__ import main
from kvstream.policies import Full, StreamingLLM
from kvstream.records.store import Records
from kvstream.records.verify import verify

STRAY = "e" * 16


@pytest.fixture(scope="module")
def whole(world, tiny_neox, tmp_path_factory):
    """Records of four cells, and their keys."""
    folder = tmp_path_factory.mktemp("verified") / "records"
    _, cells = swept(world, tiny_neox(), folder, (Full(), StreamingLLM(2, 14)), 2)
    return folder, [cell.key for cell in cells]


@pytest.fixture
def copy(whole, tmp_path):
    """The same records, to be damaged."""
    shutil.copytree(whole[0], tmp_path / "records")
    return Records(tmp_path / "records"), whole[1]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_whole_records_are_whole(whole, capsys):
    verdict = verify(Records(whole[0]))
    assert (verdict.cells, verdict.rows, verdict.problems) == (4, 4 * 299, [])
    code, out, _ = run(capsys, "verify", whole[0])
    assert code == 0
    assert out.endswith("4 cells with 1,196 rows are what was committed, 0 problems\n")


def failed(records, key):
    (records.storage.folder / f"{key}.json").rename(records.storage.folder / f"{key}.old")
    records.write_json(f"{key}.failed.json", {"error": "ValueError: no"})


def twice(rows):
    return pa.concat_tables([rows.slice(1), rows.slice(0, 1)])


def of_another(rows):
    return rows.set_column(0, rows.field(0), pa.array(["f" * 16] * len(rows)))


def path_of(records, key):
    return records.storage.folder / file_of(records, key)


HARMS = {
    "flipped": (lambda records, key: flip(path_of(records, key)), "is not the file that was committed"),
    "no file": (lambda records, key: path_of(records, key).unlink(), "No such file"),
    "no record": (lambda records, key: records.storage.remove(f"{key}.json"), "planned, but not finished"),
    "broken": (lambda records, key: records.storage.write(f"{key}.json", b"{"), "not the file that was committed"),
    "rows missing": (lambda records, key: rewritten(records, key, lambda rows: rows.slice(1)), "298 rows, 299 were"),
    "rows twice": (lambda records, key: rewritten(records, key, twice), "each position from 1 to 299 once"),
    "another's rows": (lambda records, key: rewritten(records, key, of_another), "holds rows of other cells"),
    "failed": (failed, "failed, ValueError: no"),
    "stray": (lambda records, key: records.write_named(STRAY, "parquet", b"x"), "no record names it"),
    "replaced": (lambda records, key: records.write_named(key, "parquet", b"x"), "no record names it"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_wrong_is_named(copy, capsys, harm):
    records, keys = copy
    do, words = HARMS[harm]
    do(records, keys[1])
    code, out, _ = run(capsys, "verify", records.storage.where)
    assert code == 1
    named = STRAY if harm == "stray" else keys[1]
    assert any(line.startswith(named) and words in line for line in out.splitlines()), out


def test_the_command_is_installed():
    [command] = entry_points(group="console_scripts", name="kvstream")
    assert command.load() is main
