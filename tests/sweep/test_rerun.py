"""`kvstream rerun`: the same cell again, on the same machine and where roundings differ."""

import shutil
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from driving import here
from record_cases import rewritten, swept

from kvstream import __main__ as command
from kvstream.__main__ import main
from kvstream.policies import FixSizeL2, Full
from kvstream.records.store import Records
from kvstream.sweep import rerun as module
from kvstream.sweep.rerun import AS_NOISE, rerun


@pytest.fixture(scope="module")
def whole(world, tiny_neox, tmp_path_factory):
    """Records of two cells, one of which draws at random, and their keys."""
    folder = tmp_path_factory.mktemp("verified") / "records"
    records, cells = swept(world, tiny_neox(), folder, (Full(), FixSizeL2(16, 0.5, "random")), 1)
    return records, [cell.key for cell in cells]


@pytest.fixture
def copy(whole, tmp_path):
    """The same records, to be changed."""
    shutil.copytree(whole[0].storage.folder, tmp_path / "records")
    return Records(tmp_path / "records"), whole[1]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["rerun", *map(str, arguments)])
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def with_nll(change):
    return lambda rows: rows.set_column(4, rows.field(4), pa.array(change(rows["nll_nats"].to_numpy())))


def test_a_cell_gives_the_same_again(whole, capsys):
    records, keys = whole
    again = rerun(records, keys[1])
    assert (again.rows, again.worst_nats, again.other_hits, again.same_code) == (299, 0.0, 0, True)
    code, out, _ = run(capsys, records.storage.where, keys[0])
    assert code == 0
    assert "299 rows, identical, 0 argmax hits differ\n" in out


@pytest.mark.parametrize(("times", "agrees"), [(0.75, True), (1.25, False)])
def test_what_differs_by_rounding_agrees_and_no_more(copy, capsys, times, agrees):
    """As on another machine; by how much that may be on average, the model's own rounding tells."""
    records, keys = copy
    total = times * AS_NOISE * rerun(records, keys[0]).rounding_nats * 299
    first = np.arange(299) == 0  # all of it at one loss, as the last digits of losses are larger than a share of it
    rewritten(records, keys[0], with_nll(lambda nll: nll + np.float32(total) * first))
    code, out, _ = run(capsys, records.storage.where, keys[0])
    assert (code == 0) == agrees
    assert "nats apart" in out


@pytest.mark.parametrize(("recorded", "cores", "taken"), [(1, 2, 1), (2, 2, 2), (64, 2, 2), (None, 64, 1)])
def test_it_computes_with_the_records_threads(copy, monkeypatch, recorded, cores, taken):
    """Or all cores, where these are fewer; then as before."""
    (records, keys), seen = copy, []
    record = records.read_json(f"{keys[0]}.json")
    records.write_json(f"{keys[0]}.json", record | {"fields": record["fields"] | {"threads": recorded}})
    real = module._rows_of
    monkeypatch.setattr(module, "_rows_of", lambda *given: seen.append(torch.get_num_threads()) or real(*given))
    monkeypatch.setattr(module, "os", Mock(cpu_count=lambda: cores))
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rerun(records, keys[0])
        assert (seen, torch.get_num_threads()) == ([taken], 1)
    finally:
        torch.set_num_threads(own)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (["f" * 16], ["cell: 'ffffffffffffffff' is not finished", "16 hex digits"]),
        (["../x"], ["cell: '../x' is not finished"]),
        ([], ["CELL"]),
    ],
)
def test_bad_input_is_one_line(whole, capsys, cell, words):
    code, _, error = run(capsys, whole[0].storage.where, *cell)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


@pytest.mark.parametrize("words", [["verify", "records"], ["rerun", "records", "0" * 16]])
def test_ctrl_c_is_no_traceback(words, monkeypatch):
    monkeypatch.setattr(command, f"_{words[0]}", Mock(side_effect=KeyboardInterrupt))
    ended = here(command.main, words)
    assert (ended.returncode, ended.stderr) == (130, "")
