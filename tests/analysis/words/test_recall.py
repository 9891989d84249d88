"""Who recalls what: both charts' rows and the sentences, against the records in plain Python; and who is not blamed."""

import html
import math
import random
import re
from dataclasses import replace

import pytest
from golden import FULL, PLAIN, RECALL, built, database_of, l2, report_of, streaming
from report_oracle import Oracle, answers_of, page_of, repeats_of, rows_of, wilson

MODEL = "tiny-neox"
FAR = "Beyond a budget of"
UNABLE = "Even with the full cache this model has "


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    records, report = built("recall", tmp_path_factory)
    return Oracle(records), report


def section_of(report):
    return page_of(report).partition('id="recalled"')[2].partition("<h2")[0]


def sentences_of(report):
    return [part.partition("</p>")[0] for part in section_of(report).split("<p>")[1:]]


def counted(oracle, policy, distance):
    """Answers at a distance, how many a policy has right and how many full, and its loss per token."""
    mine, full = ([], [])
    for name in oracle.documents(MODEL, policy):
        own, other = (answers_of(oracle.runs[MODEL, each, name]) for each in (policy, "full"))
        assert set(own) == set(other)
        mine += [own[key] for key in own if key[1] == distance]
        full += [other[key] for key in own if key[1] == distance]
    right, of_full = (sum(one[0] for one in each) for each in (mine, full))
    return len(mine), right, of_full, math.fsum(one[2] for one in mine) / sum(one[1] for one in mine)


def test_each_share_and_interval_follows_from_the_rows(case):
    oracle, report = case
    rows = rows_of(report, "recall")
    assert {(row["budget"], row["policy"]) for row in rows} == {
        *((str(budget), policy) for budget in (96, 192) for policy in ("full", f"streaming_llm(4,{budget - 4})")),
        ("96", "fix_size_l2(96,0.7,keep_low)"),
    }
    assert len(rows) == 5 * 3
    for row in rows:
        answers, right, full, nll = counted(oracle, row["policy"], int(row["distance"]))
        assert answers == 12 * 5
        assert (int(row["answers"]), int(row["recalled"]), int(row["full_recalled"])) == (answers, right, full)
        assert float(row["nll_nats"]) == pytest.approx(nll, rel=1e-9)
        low, high = wilson(right, answers)
        expected = {"recalled": right / answers, "recalled_low": low, "recalled_high": high}
        for name, share in expected.items():
            assert float(row[f"{name}_percent"]) == pytest.approx(100 * share, abs=1e-9), name
        assert row["full_recalls"] == "True"


def test_the_summary_says_it_too(case):
    summary = (case[1] / "summary.md").read_text(encoding="utf-8")
    [*_, told] = [line for line in summary.splitlines() if line.startswith(FAR)]
    assert told in [html.unescape(each) for each in sentences_of(case[1])]


def test_wilsons_interval_is_wilsons():
    """Its ends are those shares at which what was found is 1.96 standard deviations off."""
    for right, of in ((0, 60), (3, 60), (59, 60), (5, 7)):
        low, high = wilson(right, of)
        for end in (low, high):
            assert abs(right / of - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / of), abs=1e-9)
        assert low <= right / of <= high


def test_losses_on_repeats_follow_from_the_rows(case):
    oracle, report = case
    rows = rows_of(report, "repeats")
    assert {row["policy"] for row in rows} == {row["policy"] for row in rows_of(report, "recall")} - {"full"}
    for row in rows:
        own, full = [], []
        for name in oracle.documents(MODEL, row["policy"]):
            runs = [oracle.runs[MODEL, each, name] for each in (row["policy"], "full")]
            repeats = repeats_of(runs[0])
            assert repeats == repeats_of(runs[1])
            least = int(row["distance"])
            there = {position for position, distance in repeats.items() if least <= distance < 2 * least}
            for run, losses in zip(runs, (own, full)):
                losses += [each[1] for each in run.rows if each[0] in there]
        assert int(row["scored"]) == len(own) >= 30
        means = math.fsum(own) / len(own), math.fsum(full) / len(full)
        assert (float(row["nll_nats"]), float(row["full_nll_nats"])) == pytest.approx(means, rel=1e-9)
        assert float(row["extra_nats"]) == pytest.approx(means[0] - means[1], rel=1e-9)
    assert {row["distance"] for row in rows} == {"64", "128", "256"}


def test_repeats_of_any_text_are_found_once_each_with_the_last_place(tmp_path):
    """Short loops, whose stretches overlap themselves, and stretches that come three times."""
    plan = replace(PLAIN, documents=("Job", "Ruth"), tokens=500, lengths=(500,), text="loops")
    draws = random.Random(5)
    words = {name: [draws.randrange(6) for _ in range(499)] for name in plan.documents}
    connection, expected = database_of(plan, tmp_path), {}
    import golden
    import numpy as np

    original = golden.scored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            golden,
            "scored",
            lambda plan, model, document, policy: (
                np.array(words[document], np.int32),
                *original(plan, model, document, policy)[1:],
            ),
        )
        connection = database_of(plan, tmp_path / "loops")
    oracle = Oracle(tmp_path / "loops")
    found = connection.sql("SELECT document, position, distance FROM repeated JOIN texts USING (number)").fetchall()
    for name in plan.documents:
        repeats = repeats_of(oracle.runs[MODEL, "full", name])
        expected |= {(name, position): 2 ** int(math.log2(distance)) for position, distance in repeats.items()}
    assert {(name, position): distance for name, position, distance in found} == expected
    assert len(found) == len(expected) > 20


def test_ordinary_texts_have_no_answers_and_still_repeats(tmp_path):
    report = report_of(replace(RECALL, answers=(), text="kjv"), tmp_path)
    assert rows_of(report, "recall") == []
    assert "even with the full cache" not in section_of(report)
    assert "Recall by distance needs texts with facts to recall" in page_of(report)
    assert (
        "sweeps/recall.py --models tiny-neox</code>, then <code>python analysis/report.py --records records/recall"
        in (page_of(report))
    )


def test_the_sentence_says_who_recalls_nothing_beyond_its_budget(case):
    oracle, report = case
    first, near, second, _ = sentences_of(report)
    answers, right, full = (sum(each) for each in zip(*(counted(oracle, L2, d)[:3] for d in (128, 256))))
    assert 0 < right < full
    assert first == (
        f"{FAR} 96, at 128 and 256 tokens: of {answers} answers full has {full} right, "
        f"{L2} {right} and streaming_llm(4,92) none."
    )
    of_each = {policy: counted(oracle, policy, 64)[:3] for policy in (L2, "streaming_llm(4,92)")}
    assert {(answers, full) for answers, _, full in of_each.values()} == {(60, of_each[L2][2])}
    ranked = sorted(of_each, key=lambda policy: -of_each[policy][1])
    assert near == (
        f"Within a budget of 96, at 64 tokens: of 60 answers full has {of_each[L2][2]} right, "
        f"{' and '.join(f'{policy} {of_each[policy][1]}' for policy in ranked)}."
    )
    answers, right, full, _ = counted(oracle, "streaming_llm(4,188)", 256)
    assert right == 0
    assert second == (
        f"{FAR} 192, at 256 tokens: of {answers} answers full has {full} right, streaming_llm(4,188) none."
    )
    assert "These texts hold facts and questions" in section_of(report)


L2 = "fix_size_l2(96,0.7,keep_low)"


def test_it_says_so_only_if_the_numbers_do(tmp_path):
    some = replace(RECALL, policies=(FULL, replace(streaming(4, 92, 0.1), recalls=0.1)))
    first, _ = sentences_of(report_of(some, tmp_path))
    assert "none" not in first
    assert re.search(r"right, streaming_llm\(4,92\) \d+\.$", first)


def test_of_a_model_that_cannot_recall_no_policy_is_blamed(tmp_path):
    report = report_of(replace(RECALL, recalls=0.03), tmp_path)
    [told] = sentences_of(report)
    rows = [row for row in rows_of(report, "recall") if row["policy"] == "full" and row["budget"] == "96"]
    right = sum(int(row["recalled"]) for row in rows)
    assert told == (
        f"{UNABLE}{right} of 180 answers right, at no distance measurably more than a tenth: as far as they tell, it "
        "cannot recall these facts, and nothing follows about policies."
    )
    assert {row["full_recalls"] for row in rows_of(report, "recall")} == {"False"}
    assert "streaming_llm" not in told


@pytest.mark.parametrize(("documents", "right"), [(2, 2), (1, 1), (2, 0)])
def test_few_answers_show_recall_only_where_their_interval_does(tmp_path, documents, right):
    plan = replace(RECALL, documents=RECALL.documents[:documents], answers=RECALL.answers[:1])
    report = report_of(replace(plan, recalls=float(right > 0)), tmp_path)
    [row] = [row for row in rows_of(report, "recall") if (row["policy"], row["budget"]) == ("full", "96")]
    assert (int(row["recalled"]), int(row["answers"])) == (right, documents)
    shown = wilson(right, documents)[0] > 0.1
    assert row["full_recalls"] == str(shown)
    assert [UNABLE in told for told in sentences_of(report)] == ([False] * 2 if shown else [True])


def test_where_full_itself_fades_nothing_follows(tmp_path, monkeypatch):
    """Full recalls at 64 tokens and not at 256, beyond the larger budget."""
    import golden

    original = golden.repeat

    def fading(position, length, distance, *others):
        original(position, length, distance, *others)
        if distance == 256:
            others[2][position - 1 : position - 1 + length] = False

    monkeypatch.setattr(golden, "repeat", fading)
    report = report_of(RECALL, tmp_path)
    first, near, second, _ = sentences_of(report)
    assert near.startswith("Within a budget of 96, at 64 tokens: of 60 answers")
    assert first.startswith(f"{FAR} 96, at 128 tokens: of 60 answers")
    assert first.endswith(
        ". At 256 full itself has 0 of 60 right, not measurably more than a tenth: nothing follows there."
    )
    assert second == (
        "Beyond 192 tokens the full cache itself has 0 of 60 answers right, at no distance measurably more than a "
        "tenth: nothing follows about policies."
    )


def test_full_alone_says_whether_a_model_can(tmp_path):
    report = report_of(replace(RECALL, policies=(FULL,)), tmp_path / "able")
    assert {row["budget"] for row in rows_of(report, "recall")} == {""}
    assert sentences_of(report) == []
    report = report_of(replace(RECALL, policies=(FULL,), recalls=0.0), tmp_path / "unable")
    assert sentences_of(report)[0].startswith(f"{UNABLE}0 of 180 answers right, ")


def test_documents_that_full_lacks_are_no_comparison(tmp_path):
    """Full failed on some: policies are counted on the others alone."""
    plan = replace(RECALL, policies=(*RECALL.policies[1:], FULL), failed=1)
    report = report_of(plan, tmp_path)
    assert {row["answers"] for row in rows_of(report, "recall")} == {"55"}


def test_a_policy_that_never_evicts_is_not_in_the_charts(tmp_path):
    report = report_of(replace(RECALL, policies=(FULL, streaming(4, 92, 0.1), l2(700, "keep_low", 0.0))), tmp_path)
    for name in ("recall", "repeats"):
        assert {row["policy"] for row in rows_of(report, name)} - {"full"} == {"streaming_llm(4,92)"}
