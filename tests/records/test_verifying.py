"""`kvstream verify` and `kvstream rerun`: what they find, what they say, and how they exit."""

import shutil
from importlib.metadata import entry_points

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvstream.__main__ import main
from kvstream.grid import planning
from kvstream.grid.axes import Grid
from kvstream.measure.quality import evaluate
from kvstream.policies import FixSizeL2, Full
from kvstream.records.store import Records, sha256_of
from kvstream.records.verify import rerun, verify


@pytest.fixture(scope="module")
def swept(world, tiny_neox, tmp_path_factory):
    """Records of four cells, one of which draws at random."""
    from kvstream.sweep.jobs import seeded

    policies = (Full(), FixSizeL2(16, 0.5, "random"))
    grid = Grid("g", (str(world / "model"),), policies, str(world / "texts"), 2, (100, 300))
    cells = planning.quality_cells(grid, planning.prepare(grid), "cpu", "float32")
    records = Records(tmp_path_factory.mktemp("verified") / "records")
    records.plan(grid, "Which?", cells)
    for cell in cells:
        policy, name = seeded(cell.policy, cell.document.name), cell.document.name
        ids = cell.document.token_ids[None]
        [result] = evaluate(tiny_neox(), ids, policy, cells=[cell.key], documents=[name], device="cpu")
        records.commit(cell.key, cell.fields, [result.rows], result.seconds, {})
    return records.storage.folder, [cell.key for cell in cells]


@pytest.fixture
def copy(swept, tmp_path):
    """The same records, to be damaged."""
    shutil.copytree(swept[0], tmp_path / "records")
    return tmp_path / "records", swept[1]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_whole_records_are_whole(swept, capsys):
    verdict = verify(Records(swept[0]))
    assert (verdict.cells, verdict.rows, verdict.problems) == (4, 4 * 299, [])
    code, out, _ = run(capsys, "verify", swept[0])
    assert code == 0
    assert out.endswith("4 cells with 1,196 rows are what was committed, 0 problems\n")


def rewritten(folder, key, change):
    """Replace a cell's rows and have its record agree, as nobody's accident would."""
    records, path = Records(folder), folder / f"{key}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    record = records.read_json(f"{key}.json") | {"sha256": sha256_of(path.read_bytes())}
    records.write_json(f"{key}.json", record)


HARMS = {
    "flipped": (lambda folder, key: flip(folder / f"{key}.parquet"), "is not the file that was committed"),
    "no file": (lambda folder, key: (folder / f"{key}.parquet").unlink(), "No such file"),
    "no record": (lambda folder, key: (folder / f"{key}.json").unlink(), "planned, but not finished"),
    "broken record": (lambda folder, key: (folder / f"{key}.json").write_text("{"), "not the file that was committed"),
    "rows missing": (lambda folder, key: rewritten(folder, key, lambda rows: rows.slice(1)), "298 rows, 299 were"),
    "rows twice": (
        lambda folder, key: rewritten(folder, key, lambda rows: pa.concat_tables([rows.slice(1), rows.slice(0, 1)])),
        "each position from 1 to 299 once",
    ),
    "another's rows": (
        lambda folder, key: rewritten(
            folder, key, lambda rows: rows.set_column(0, rows.field(0), pa.array(["f" * 16] * len(rows)))
        ),
        "holds rows of other cells",
    ),
    "failed": (
        lambda folder, key: (
            (folder / f"{key}.json").rename(folder / f"{key}.old"),
            Records(folder).write_json(f"{key}.failed.json", {"error": "ValueError: no"}),
        ),
        "failed, ValueError: no",
    ),
    "stray": (
        lambda folder, key: (folder / f"{'e' * 16}.parquet").write_bytes(b"x"),
        "no record names it",
    ),
}  # fmt: skip


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_wrong_is_named(copy, capsys, harm):
    folder, keys = copy
    do, words = HARMS[harm]
    do(folder, keys[1])
    code, out, _ = run(capsys, "verify", folder)
    assert code == 1
    named = "e" * 16 if harm == "stray" else keys[1]
    assert any(line.startswith(named) and words in line for line in out.splitlines()), out


def test_a_cell_gives_the_same_again(swept, capsys):
    folder, keys = swept
    for key in keys[:2]:  # the second draws at random
        again = rerun(Records(folder), key)
        assert (again.rows, again.worst_nats, again.other_hits, again.same_code) == (299, 0.0, 0, True)
    code, out, _ = run(capsys, "rerun", folder, keys[0])
    assert code == 0
    assert "299 rows, identical, 0 argmax hits differ\n" in out


def test_a_cell_that_differs_is_told(copy, capsys):
    folder, keys = copy
    bent = pa.array([9.0] * 299, pa.float32())
    rewritten(folder, keys[0], lambda rows: rows.set_column(4, rows.field(4), bent))
    code, out, _ = run(capsys, "rerun", folder, keys[0])
    assert code == 1
    assert "nats apart" in out


@pytest.mark.parametrize(("times", "agrees"), [(1.0, True), (100.0, False)])
def test_what_differs_by_rounding_agrees(copy, capsys, times, agrees):
    """As on another machine; by how much that may be, the model's own rounding tells."""
    folder, keys = copy
    off = np.float32(times * rerun(Records(folder), keys[0]).rounding_nats)
    rewritten(
        folder, keys[0], lambda rows: rows.set_column(4, rows.field(4), pa.array(rows["nll_nats"].to_numpy() + off))
    )
    code, out, _ = run(capsys, "rerun", folder, keys[0])
    assert (code == 0) == agrees
    assert "nats apart" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "/nowhere"], ["records: '/nowhere' holds no sweep", "--out"]),
        (["rerun", "{folder}", "f" * 16], ["cell: 'ffffffffffffffff' is not finished", "16 hex digits"]),
        (["rerun", "{folder}", "../x"], ["cell: '../x' is not finished"]),
        (["rerun", "{folder}"], ["CELL"]),
        (["mend"], ["invalid choice: 'mend'"]),
        ([], ["command"]),
    ],
)
def test_bad_input_is_one_line(swept, capsys, arguments, words):
    code, _, error = run(capsys, *(argument.format(folder=swept[0]) for argument in arguments))
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


def test_the_command_is_installed():
    [command] = entry_points(group="console_scripts", name="kvstream")
    assert command.load() is main
