"""Answers in a record lie within its text, or the cell is left out, by name; records without any are read as before."""

import json
from dataclasses import replace

import pytest
from golden import RECALL, write, write_json

from analysis.read.records import read_records

SMALL = replace(RECALL, documents=RECALL.documents[:1], policies=RECALL.policies[:2])


def read(folder, answers):
    """A folder of two cells, the first of which has these answers."""
    write(SMALL, folder)
    path = min(path for path in folder.glob("*.json") if path.stem != "sweep")
    record = json.loads(path.read_text())
    record["fields"] |= {"answers": answers}
    if answers == "none":
        del record["fields"]["answers"]
    write_json(path, record)
    return read_records(folder)


@pytest.mark.parametrize("answers", ["none", None, [], [[64, 1, 64], [596, 4, 1]]])
def test_records_with_and_without_answers_are_read(tmp_path, answers):
    records = read(tmp_path, answers)
    assert records.excluded == []
    assert len(records.commits["quality"]) == 2


@pytest.mark.parametrize(
    "answer",
    [
        [597, 4, 1],
        [5, 1, 6],
        [5, 0, 1],
        [5, 1, 0],
        [-1, 1, 1],
        [5, 1],
        [5, 1, 1, 1],
        [],
        None,
        [5, None, 1],
        [5, 1.5, 1],
    ],
)
def test_answers_beyond_the_text_are_named(tmp_path, answer):
    records = read(tmp_path, [[300, 4, 64], answer])
    [(_, why)] = records.excluded
    assert f"answers: {answer} is no position, length and distance within 600 tokens; delete " in why
    assert len(records.commits["quality"]) == 1


@pytest.mark.parametrize("answers", [5, "all", [5], [["a", 1, 1]], {"position": 5}])
def test_answers_that_are_no_lists_of_whole_numbers_are_named(tmp_path, answers):
    [(_, why)] = read(tmp_path, answers).excluded
    assert why.startswith("fields.answers: ")
    assert "run the sweep again" in why
