"""A sweep of `recall:` from the flags to the page: rows, answers in records, and a model that cannot recall."""

import json

import pyarrow.parquet as pq
import pytest
from driving import here, labelled, sweep_here
from golden import quick_report
from report_oracle import page_of, rows_of

from kvstream import __main__ as command
from kvstream.inputs.documents import load_documents
from kvstream.inputs.model_loading import load_tokenizer
from kvstream.inputs.models import resolve

TOKENS = 400
SPEC = "recall:strings:{}/texts"


def sweep(world, out, *more):
    command = labelled(world, out, "full,streaming_llm(4,92)", TOKENS, "--documents", "3", *more)
    return sweep_here([*command, "--text", SPEC.format(world)])


@pytest.fixture(scope="module")
def swept(ray_here, world, tmp_path_factory):
    """Records of full and one policy on three texts, and their report."""
    folder = tmp_path_factory.mktemp("recalled")
    done = sweep(world, folder / "records")
    assert done.returncode == 0, done.stdout + done.stderr
    told = quick_report("--records", folder / "records", "--out", folder / "report")
    assert (told.returncode, told.stderr) == (0, "")
    return folder


def records_of(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "records").glob("????????????????.json"))]


def test_records_hold_the_answers_of_their_rows(swept, world):
    tokenizer = load_tokenizer(resolve(str(world / "model")))
    expected = load_documents(SPEC.format(world), tokens=TOKENS, tokenizer=tokenizer)
    records = records_of(swept)
    assert {record["fields"]["document"] for record in records} == {"recall 1", "recall 2", "recall 3"}
    assert len(records) == 2 * 3
    for record in records:
        [document] = [one for one in expected if one.name == record["fields"]["document"]]
        table = pq.read_table(swept / "records" / record["file"])
        assert table["token"].to_pylist() == document.token_ids[1:].tolist()
        token = dict(zip(table["position"].to_pylist(), table["token"].to_pylist()))
        answers = record["fields"]["answers"]
        assert {distance for _, _, distance in answers} == {64, 128, 256}
        for position, tokens, distance in answers:
            for place in range(position, position + tokens):
                assert token[place] == token[place - distance]


def test_a_model_of_random_weights_recalls_nothing_and_no_policy_is_blamed(swept):
    rows = rows_of(swept / "report", "recall")
    assert {row["policy"] for row in rows} == {"full", "streaming_llm(4,92)"}
    answers = sum(len(record["fields"]["answers"]) for record in records_of(swept)) // 2
    of_full = [row for row in rows if row["policy"] == "full"]
    assert sum(int(row["answers"]) for row in of_full) == answers
    assert {row["full_recalls"] for row in rows} == {"False"}
    section = page_of(swept / "report").partition('id="recalled"')[2].partition("<h2")[0]
    right = sum(int(row["recalled"]) for row in of_full)
    assert f"Even with the full cache this model has {right} of {answers} answers right" in section
    assert "as far as they tell, it cannot recall these facts, and nothing follows about policies." in section
    assert "recalls nothing" not in section


def test_it_is_verified_done_again_and_not_computed_twice(swept, world):
    records = swept / "records"
    assert here(command.main, ["verify", str(records)]).returncode == 0
    key = records_of(swept)[-1]["cell"]
    rerun = here(command.main, ["rerun", str(records), key])
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    assert "6 finished before, 0 to do" in sweep(world, records).stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--text", "recall:sums"], "text: 'recall:sums' plants neither sentences nor strings"),
        (["--lengths", "60"], "lengths: 60 tokens have no room for a fact and a question 64 tokens after it"),
        (["--text", "recall:sentences:{}/texts"], "gives different names or numbers the same tokens"),
        (["--lengths", "600"], "documents: 3 asked, only 0 in 'recall:strings:"),
    ],
)
def test_what_cannot_be_asked_is_one_line_before_anything_is_loaded(world, tmp_path, flags, words):
    flags = [flag.format(world) for flag in flags]
    command = labelled(
        world, tmp_path / "out", "full", TOKENS, "--documents", "3", "--text", SPEC.format(world), *flags
    )
    ended = sweep_here([*command, "--dry-run"])
    assert ended.returncode == 2
    assert words in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
