"""Files of a records folder that are cut, emptied, flipped, swapped or another's: each damage of each file is seen."""

import random
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch
from record_cases import swept

from analysis.read.records import RecordsError, read_records
from kvstream.measure.quality import Evaluated
from kvstream.policies import Full, StreamingLLM
from kvstream.records.long_cells import Parts
from kvstream.records.store import Records
from kvstream.records.verify import verify

BEGUN = "b" * 16
HOW = ("cut", "emptied", "flipped", "foreign", "swapped")
FLIPS = 8  # of a file: most of its bits look alike
READ = ("json", "failed.json", "parquet")  # by a report


@pytest.fixture(scope="module")
def whole(world, tiny_neox, tmp_path_factory):
    """Records of six cells, one more that failed, and one that is on its way."""
    folder = tmp_path_factory.mktemp("damage") / "records"
    records, cells = swept(world, tiny_neox(), folder, (Full(), StreamingLLM(2, 14)), 3)
    rows = pq.read_table(folder / records.read_json(f"{cells[0].key}.json")["file"]).slice(0, 100)
    Parts(records, BEGUN).add(Evaluated(rows, 0.5, {"kept": torch.arange(1000)}), 100)
    records.fail("f" * 16, cells[0].fields, "ValueError: no", 1)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(whole, tmp_path / "records")


def ending(name):
    """What a file is, whatever it holds: `parquet`, `part.parquet`, `failed.json`, …"""
    return ".".join(part for part in name.split(".")[1:] if len(part) != 16 and not part.isdigit())


def damages(folder, names):
    """(name, accident, what the file holds then): each accident that can happen to each file, and some bits of each."""
    draw = random.Random(5)
    for name in names:
        data = (folder / name).read_bytes()
        alike = [path for path in folder.iterdir() if ending(path.name) == ending(name) and path.name != name]
        for how in [*HOW, *["flipped"] * (FLIPS - 1)]:
            bit = draw.randrange(8 * len(data))
            held = {
                "cut": data[: draw.randrange(1, len(data))],
                "emptied": b"",
                "flipped": data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :],
                "foreign": draw.randbytes(len(data)),
                "swapped": draw.choice(alike).read_bytes() if alike else data,
            }[how]
            if held != data:
                yield name, how, held


def test_every_damage_is_seen(folder):
    records, seen = Records(folder), Counter()
    untouched = verify(records).problems
    assert untouched == [f"{'f' * 16}: failed, ValueError: no"]
    for name, how, data in damages(folder, records.storage.names()):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        try:
            problems = verify(records).problems
        except ValueError as error:
            problems = [str(error)]
        key = name.partition(".")[0]
        assert problems != untouched, f"{how}: {name}"
        assert any(key in problem for problem in problems), f"{how}: {name} is not named in {problems}"
        if ending(name) in ("json", "parquet"):
            assert key not in records.finished([key]), f"{how}: {name} would be reused"
        seen[how] += 1
        (folder / name).write_bytes(before)
    assert verify(records).problems == untouched
    assert sum(seen.values()) > 180
    assert min(seen[how] for how in HOW) >= 12, seen


def test_the_report_takes_no_number_from_damaged_files(folder):
    names = [name for name in Records(folder).storage.names() if name.startswith("sweep.") or ending(name) in READ]
    assert len(names) == 14
    for name, how, data in damages(folder, names):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        try:
            left_out = " ".join(f"{file} {why}" for file, why in read_records(folder).excluded)
        except RecordsError as error:
            left_out = str(error)
        record = f"{name.partition('.')[0]}.json" if name.endswith("parquet") else name
        assert record in left_out, f"{how}: {name}"
        (folder / name).write_bytes(before)
    assert read_records(folder).excluded == []


@pytest.mark.parametrize("name", ["sweep.json", f"{'f' * 16}.failed.json"])
@pytest.mark.parametrize("content", ["{", "[" * 200_000, '{"a": "\\ud800"}', ""])
def test_what_is_no_cell_may_be_damaged_and_the_report_goes_on(folder, name, content):
    cells = len(read_records(folder).commits["quality"])
    assert (folder / name).exists()
    (folder / name).write_text(content)
    found = read_records(folder)
    assert [file for file, _ in found.excluded] == [name]
    assert len(found.commits["quality"]) == cells > 0
    try:
        assert any(name[:16] in problem for problem in verify(Records(folder)).problems)
    except ValueError as error:
        assert "sweep.json" in str(error)  # noqa: PT017


def test_a_foreign_file_is_named_and_harms_nothing(folder):
    for name in ("notes.txt", "x.parquet", f"{'e' * 16}.parquet", f"{'d' * 16}.512.part.parquet"):
        (folder / name).write_bytes(b"x")
        assert any(problem.startswith(f"{name}: no record names it") for problem in verify(Records(folder)).problems)
    assert verify(Records(folder)).cells == 6
