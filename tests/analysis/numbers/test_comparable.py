"""What may be compared: equal tokens, the length that most policies reach, and a word where documents differ."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden import FULL, PLAIN, commit, quick_report, recent, report_of, streaming, write
from report_oracle import answer_of, page_of, rows_of

from analysis.numbers import database
from analysis.read.records import read_records
from analysis.words.by_document import in_documents

POLICIES = (FULL, streaming(4, 28, 0.1), streaming(4, 60, 0.05), recent(64, 0.4))
SMALL = replace(PLAIN, policies=POLICIES, diverges=True, documents=("Job", "Ruth"), tokens=200, lengths=(100, 200))


def lose(folder, policy, document, places):
    """Make some of a run's losses NaN, as half precision may."""
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        fields = record.get("fields", {})
        if (fields.get("policy"), fields.get("document")) == (policy, document):
            table = pq.read_table(folder / record["file"])
            losses = table["nll_nats"].to_numpy().copy()
            losses[places] = np.nan
            table = table.set_column(table.column_names.index("nll_nats"), "nll_nats", pa.array(losses))
            commit(folder, path.stem, fields, table, record["environment"])
            return
    raise AssertionError(f"no run of {policy} on {document}")


def perplexity(folder):
    connection = database.open_database(read_records(folder), database.WITHIN)
    return {(row["policy"], row["length"]): row for row in database.rows(connection, "perplexity")}


@pytest.mark.parametrize("broken", ["streaming_llm(4,28)", "full"])
def test_losses_of_other_tokens_are_not_compared(tmp_path, broken):
    """Whose late tokens have no numbers would else be judged by its early ones, and look better or worse than it is."""
    whole = perplexity(write(SMALL, tmp_path / "whole"))
    lose(folder := write(SMALL, tmp_path / "broken"), broken, "Job", slice(120, None))
    found = perplexity(folder)
    for key, row in found.items():
        without = broken in (key[0], "full") and key[1] == 200 and key[0] != "full"
        assert row["paired_documents"] == whole[key]["paired_documents"] - without
        same = "ppl_ratio" if not without else "documents"
        assert row[same] == whole[key][same]
    [ruth] = (row for (policy, length), row in found.items() if (policy, length) == ("streaming_llm(4,28)", 200))
    alone = perplexity(write(replace(SMALL, documents=("Ruth",)), tmp_path / "alone"))
    assert ruth["ppl_ratio"] == pytest.approx(alone["streaming_llm(4,28)", 200]["ppl_ratio"], rel=1e-12)


def test_losses_that_both_lack_are_no_difference(tmp_path):
    folder = write(SMALL, tmp_path)
    for policy in POLICIES:
        lose(folder, policy.label, "Job", slice(120, None))
    assert {row["paired_documents"] for row in perplexity(folder).values()} == {2}


def test_a_report_of_a_policy_without_numbers_names_it_and_is_written_whole(tmp_path):
    folder = write(SMALL, tmp_path / "records")
    for document in SMALL.documents:
        lose(folder, "recent_only(64)", document, slice(None))
    (tmp_path / "README.md").write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    done = quick_report("--records", folder, "--out", tmp_path / "out", "--readme", tmp_path / "README.md")
    assert done.returncode in (0, 2), done.stderr
    assert "recent_only(64)" in page_of(tmp_path / "out")
    assert "streaming_llm" in (tmp_path / "README.md").read_text()


def test_a_longer_run_of_few_leaves_the_others_in_the_answer(tmp_path):
    folder = write(SMALL, tmp_path / "records")
    few = (FULL, streaming(4, 60, 0.05))
    write(replace(SMALL, policies=few, tokens=300, lengths=(100, 200, 300)), folder)
    assert quick_report("--records", folder, "--out", tmp_path / "out").returncode == 0
    rows = rows_of(tmp_path / "out", "perplexity")
    assert {row["policy"] for row in rows if row["length"] == "300"} == {policy.label for policy in few}
    first = {row["policy"] for row in rows if row["longest"] == "True"}
    assert first == {policy.label for policy in POLICIES}
    assert {row["length"] for row in rows if row["longest"] == "True"} == {"200"}
    assert all(row["kv_mb"] for row in rows if row["longest"] == "True")
    assert "at 200 tokens" in answer_of(tmp_path / "out")
    page = page_of(tmp_path / "out").replace("\u00a0", " ")
    assert "At the longest length, 200 tokens." in page
    assert "2 documents of kjv, 200 tokens each" in page
    connection = database.open_database(read_records(folder), database.WITHIN)
    candidates = connection.sql("SELECT policy FROM compared").fetchall()
    assert {policy for (policy,) in candidates} == {policy.label for policy in POLICIES[1:]}


def test_one_policy_is_compared_at_its_own_length_whatever_full_reaches(tmp_path):
    folder = write(replace(SMALL, policies=POLICIES[:2]), tmp_path)
    write(replace(SMALL, policies=(FULL,), tokens=300, lengths=(100, 200, 300)), folder)
    longest = {key: row for key, row in perplexity(folder).items() if row["longest"]}
    assert longest.keys() == {("full", 200), ("streaming_llm(4,28)", 200)}


def test_documents_decide_at_the_length_that_all_have(tmp_path):
    folder = write(SMALL, tmp_path)
    write(replace(SMALL, policies=(FULL, POLICIES[1]), tokens=300, lengths=(100, 200, 300)), folder)
    connection = database.open_database(read_records(folder), database.WITHIN)
    ranked = [policy.label for policy in POLICIES[1:]]
    assert "of 2 documents" in in_documents(database.rows(connection, "documents"), ranked, ranked[1])


def test_the_length_that_most_reach_is_the_longest_of_a_sweep(tmp_path):
    folder = write(replace(SMALL, tokens=300, lengths=(100, 200, 300)), tmp_path)
    write(replace(SMALL, policies=(recent(32, 0.9),)), folder)  # one that was run on shorter texts alone
    assert {length for (_, length), row in perplexity(folder).items() if row["longest"]} == {300}


def test_it_is_said_where_policies_share_different_numbers_of_documents(tmp_path):
    said = "Policies were compared with full on 1 to 2 documents: on the same their order may differ."
    assert said not in answer_of(report_of(SMALL, tmp_path / "whole"))
    assert said in answer_of(report_of(replace(SMALL, missing=1), tmp_path / "part"))
