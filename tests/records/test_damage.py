"""Files of a records folder that are cut, emptied, flipped, swapped or another's: seen, 1,000 of 1,000."""

import random
import shutil
from collections import Counter

import pytest
import torch

from kvstream.grid import planning
from kvstream.grid.axes import Grid
from kvstream.measure.quality import Evaluated, evaluate
from kvstream.policies import Full, StreamingLLM
from kvstream.records.long_cells import Parts
from kvstream.records.store import Records
from kvstream.records.verify import verify

DAMAGES = 1000
BEGUN = "b" * 16
KINDS = (".json", ".failed.json", ".parquet")  # that a report reads


@pytest.fixture(scope="module")
def whole(world, tiny_neox, tmp_path_factory):
    """Records of six cells, one more that failed, and one that is on its way."""
    grid = Grid("g", (str(world / "model"),), (Full(), StreamingLLM(2, 14)), str(world / "texts"), 3, (100, 300))
    cells = planning.quality_cells(grid, planning.prepare(grid), "cpu", "float32")
    records = Records(tmp_path_factory.mktemp("damage") / "records")
    records.plan(grid, "Which?", cells)
    for cell in cells:
        ids, name = cell.document.token_ids[None], cell.document.name
        [result] = evaluate(tiny_neox(), ids, cell.policy, cells=[cell.key], documents=[name], device="cpu")
        records.commit(cell.key, cell.fields, [result.rows], result.seconds, {})
        if cell is cells[0]:
            part = Evaluated(result.rows.slice(0, 100), 0.5, {"kept": torch.arange(1000)})
            Parts(records, BEGUN).add(part, 100, {})
    records.fail("f" * 16, cells[0].fields, "ValueError: no", 1)
    return records.storage.folder


def damaged(draw, folder, name):
    """What a file holds after one of five accidents, and which it was."""
    data = (folder / name).read_bytes()
    kind = name.partition(".")[2]
    others = [path for path in folder.glob(f"*.{kind}") if path.name != name and path.read_bytes() != data]
    how = draw.choice(["cut", "emptied", "flipped", "flipped", "foreign", *["swapped"] * bool(others)])
    if how == "cut":
        return how, data[: draw.randrange(1, len(data))]
    if how == "flipped":
        bit = draw.randrange(8 * len(data))
        return how, data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
    if how == "swapped":
        return how, draw.choice(others).read_bytes()
    return how, b"" if how == "emptied" else draw.randbytes(len(data))


def test_every_damage_is_seen(whole, tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(whole, folder)
    records = Records(folder)
    untouched = verify(records).problems
    assert untouched == [f"{'f' * 16}: failed, ValueError: no"]
    draw, seen = random.Random(5), Counter()
    names = [name for name in records.storage.names() if not name.startswith(".")]
    for _ in range(DAMAGES):
        name = draw.choice(names)
        before = (folder / name).read_bytes()
        how, data = damaged(draw, folder, name)
        (folder / name).write_bytes(data)
        try:
            problems = verify(records).problems
        except ValueError as error:
            problems = [str(error)]
        key = name.partition(".")[0]
        assert problems != untouched, f"{how}: {name}"
        assert any(key in problem for problem in problems), f"{how}: {name} is not named in {problems}"
        if name in (f"{key}.json", f"{key}.parquet"):
            assert key not in records.finished([key]), f"{how}: {name} would be reused"
        seen[how] += 1
        (folder / name).write_bytes(before)
    assert verify(records).problems == untouched
    assert sum(seen.values()) == DAMAGES
    assert min(seen.values()) > DAMAGES / 50, seen


def test_the_report_takes_no_number_from_damaged_files(whole, tmp_path):
    from analysis.read.records import RecordsError, read_records

    folder = tmp_path / "records"
    shutil.copytree(whole, folder)
    draw = random.Random(6)
    names = [name for name in Records(folder).storage.names() if name.startswith("sweep.") or name[16:] in KINDS]
    for _ in range(DAMAGES // 4):
        name = draw.choice(names)
        before = (folder / name).read_bytes()
        how, data = damaged(draw, folder, name)
        (folder / name).write_bytes(data)
        try:
            left_out = " ".join(f"{file} {why}" for file, why in read_records(folder).excluded)
        except RecordsError as error:
            left_out = str(error)
        assert name in left_out or name.replace(".parquet", ".json") in left_out, f"{how}: {name}"
        (folder / name).write_bytes(before)
    assert read_records(folder).excluded == []


@pytest.mark.parametrize("name", ["sweep.json", f"{'f' * 16}.failed.json"])
@pytest.mark.parametrize("content", ["{", "[" * 200_000, '{"a": "\\ud800"}', ""])
def test_what_is_no_cell_may_be_damaged_and_the_report_goes_on(whole, tmp_path, name, content):
    from analysis.read.records import read_records

    folder = tmp_path / "records"
    shutil.copytree(whole, folder)
    assert (folder / name).exists()
    (folder / name).write_text(content)
    found = read_records(folder)
    assert [file for file, _ in found.excluded] == [name]
    assert len(found.quality) == len(read_records(whole).quality) > 0
    try:
        assert any(name[:16] in problem for problem in verify(Records(folder)).problems)
    except ValueError as error:
        assert "sweep.json" in str(error)  # noqa: PT017


def test_a_foreign_file_is_named_and_harms_nothing(whole, tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(whole, folder)
    for name in ("notes.txt", "x.parquet", f"{'e' * 16}.parquet", f"{'d' * 16}.512.part.parquet"):
        (folder / name).write_bytes(b"x")
        assert any(problem.startswith(f"{name}: no record names it") for problem in verify(Records(folder)).problems)
    assert verify(Records(folder)).cells == 6
