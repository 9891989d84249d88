"""What may be compared: equal tokens, the length that most policies reach, and a word where documents differ."""

import html
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden import FULL, PLAIN, commit, kept, quick_report, recent, report_of, streaming, write
from report_oracle import Oracle, answer_of, page_of, rows_of

from analysis.numbers import database
from analysis.read.records import read_records
from analysis.words import recall
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


def shared(budget):
    """A policy whose layers share the budget, which is their mean."""
    policy = streaming(4, budget - 4, 0.05)
    label = policy.label.replace(")", ",layer_budgets='pyramid')")
    return replace(policy, label=label, fields=policy.fields | {"layer_budgets": "pyramid"})


def test_a_run_that_is_longer_alone_is_compared_by_its_first_tokens(tmp_path):
    """What it keeps of these follows from what it keeps of all, unless its layers may not be full by then."""
    folder, per_token = write(SMALL, tmp_path / "records"), 2 * 30 * 3 * 64 * 4
    longer = (recent(32, 0.5), streaming(4, 44, 0.1, skip="0,1"), recent(250, 0.5), shared(64), shared(128))
    write(replace(SMALL, policies=longer, tokens=300, lengths=(100, 200, 300)), folder)
    write(replace(SMALL, policies=(recent(16, 0.9),), tokens=100, lengths=(100,)), folder)
    assert quick_report("--records", folder, "--out", tmp_path / "out").returncode == 0
    rows = {row["policy"]: row for row in rows_of(tmp_path / "out", "perplexity") if row["longest"] == "True"}
    held = {policy.label: kept(policy, 200) for policy in (*longer[:4], *POLICIES)}
    for label, tokens in held.items():
        assert float(rows[label]["kv_mb"]) == pytest.approx(per_token * tokens / 1e6, rel=1e-6), label  # whole bytes
        assert float(rows[label]["kv_percent"]) == pytest.approx(100 * tokens / 200, rel=1e-6)
    assert rows[longer[4].label]["kv_mb"] == ""
    oracle = Oracle(folder)
    found = {name: rows_of(tmp_path / "out", name) for name in ("divergence", "tail", "worst", "cards", "far")}
    for policy in (longer[0], POLICIES[1]):
        label = policy.label
        runs = [oracle.runs["tiny-neox", label, name] for name in SMALL.documents]
        kl = [one for run in runs for position, one, *_ in run.compared if position < 200]
        assert len(kl) == 2 * 199
        [row] = (row for row in found["divergence"] if row["policy"] == label)
        for name, value in (("kl_nats", np.mean(kl)), ("kl_p99_nats", np.percentile(kl, 99)), ("kl_max_nats", max(kl))):
            assert float(row[name]) == pytest.approx(value, rel=1e-9), name
        counts = [int(row["n"]) for row in found["tail"] if row["policy"] == label]
        assert max(counts) == sum(one >= 1e-3 for one in kl)  # where the chart begins
        worst = [float(row["kl_nats"]) for row in found["worst"] if row["policy"] == label]
        assert worst == pytest.approx(sorted(kl, reverse=True)[: len(worst)])
        assert {int(row["position"]) < 200 for row in found["worst"]} == {True}
    assert max(int(row["position"]) for row in found["far"]) <= 200
    left = f"Not in this comparison: recent_only(16) (not run as far as 200 tokens); {longer[4].label} "
    assert f"{left}(KV memory at 200 not known)." in html.unescape(answer_of(tmp_path / "out"))
    assert "Not in this comparison" not in answer_of(report_of(SMALL, tmp_path / "alone"))


def test_layers_evict_before_a_text_is_as_long_as_their_mean_budget(tmp_path):
    """Of a text of 60 tokens, with layers of 20 and more and a mean of 64, all charts of eviction have a line."""
    policy = shared(64)
    plan = replace(SMALL, policies=(FULL, policy), tokens=60, lengths=(15, 30, 45, 60), answers=((40, 1, 30),))
    folder = write(plan, tmp_path / "records")
    write(replace(plan, policies=(policy,), documents=("Ezra",), answers=()), folder)  # without full: a stream
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        if record.get("fields", {}).get("policy") == policy.label:
            fields = record["fields"] | {"evicts_after": 20}
            commit(folder, path.stem, fields, pq.read_table(folder / record["file"]), record["environment"])
    connection = database.open_database(read_records(folder), database.WITHIN)
    for name in ("along_the_text", "length", "far", "stream", "recall", "grown"):
        assert policy.label in {row["policy"] for row in database.rows(connection, name)}, name
    assert {row["evicts_after"] for row in database.rows(connection, "length")} == {20}
    told = recall.sentences(database.rows(connection, "recall"), several=False)
    assert not any("Within a budget of 64" in sentence for sentence in told)  # thirty tokens are not held by all layers


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
