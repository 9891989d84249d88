"""Does the scorer matter once the ends are protected: the chart's rows and its sentence, against the records."""

import math
from dataclasses import replace

import pytest
from golden import SCORERS, built, protection, report_of
from report_oracle import Oracle, page_of, rows_of

from analysis.words.protection import short


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    records, report = built("protection", tmp_path_factory)
    return Oracle(records), report


def section_of(report):
    return page_of(report).partition('id="protection"')[2].partition("<h2")[0]


def test_each_scorer_is_compared_with_random_where_as_much_is_protected(case):
    oracle, report = case
    rows = rows_of(report, "protection")
    assert {row["scorer"] for row in rows} == set(SCORERS.values())
    assert len(rows) == 4 * 4
    loss = {}
    for row in rows:
        of = {
            name: oracle.runs["tiny-neox", row["policy"], name].sums(1, 200)
            for name in oracle.documents("tiny-neox", "full")
        }
        place = row["start_size"], float(row["recent_percent"])
        loss[row["scorer"], place] = {name: each[1] / each[0] for name, each in of.items()}
        totals = oracle.totals("tiny-neox", row["policy"], 200)
        assert float(row["ppl_change_percent"]) == pytest.approx(totals["ppl_change_percent"], rel=1e-9)
        none = oracle.totals("tiny-neox", "streaming_llm(0,64)" if place[0] == "0" else "streaming_llm(4,60)", 200)
        assert float(row["unscored_change_percent"]) == pytest.approx(none["ppl_change_percent"], rel=1e-9)
    for row in rows:
        place = row["start_size"], float(row["recent_percent"])
        if row["scorer"] == "random":
            assert row["over_random_percent"] == ""
            continue
        mine, control = loss[row["scorer"], place], loss["random", place]
        over = 100 * (math.exp(math.fsum(mine.values()) / 12 - math.fsum(control.values()) / 12) - 1)
        assert float(row["over_random_percent"]) == pytest.approx(over, rel=1e-9)
        assert row["over_random_spread"] == "interval"
        each = [100 * (math.exp(mine[name] - control[name]) - 1) for name in mine]
        low, high = float(row["over_random_low_percent"]), float(row["over_random_high_percent"])
        assert min(each) < low < over < high < max(each)


def shown(value):
    return f"{float(value):+.1f}".replace("-", "\u2212") + "\u00a0%"


def protected(report, sinks="4"):
    """Rows of so many sinks and any newest tokens, the closest to full first."""
    rows = [row for row in rows_of(report, "protection") if row["start_size"] == sinks]
    rows.sort(key=lambda row: float(row["ppl_change_percent"]))
    return [row for row in rows if row["recent_percent"] != "0.0"]


def gap(row):
    """A scorer, its share of newest tokens, and its distance from random with the interval."""
    over, low, high = (shown(row[f"over_random{end}_percent"]) for end in ("", "_low", "_high"))
    ends = ", ".join(end.removesuffix("\u00a0%") for end in (low, high))
    return f"{row['scorer']} at {float(row['recent_percent']):g}\u00a0%: {over} [{ends}]"


def verdicts(report):
    """The last sentence as the rows have it, and how many scorers are better and worse."""
    told = [row for row in protected(report) if row["scorer"] != "random"]
    better = [row for row in told if float(row["over_random_high_percent"]) < 0]
    worse = [row for row in told if float(row["over_random_low_percent"]) > 0]
    far = sorted(told, key=lambda row: float(row["over_random_percent"]))
    parts = []
    for rows, word, ends in ((better, "better than keeping random tokens", far), (worse, "worse", far[::-1])):
        number = f"{len(rows)} {'is' if len(rows) == 1 else 'are'}" if rows else "none is"
        parts.append(f"{number} measurably {word}")
        if rows:
            named = [row for row in ends if row in rows]
            few = len(named) <= 3
            parts[-1] += f" ({'' if few else 'the most '}{', '.join(map(gap, named if few else named[:1]))})"
        elif ends is far:
            parts[-1] += f" (at best {gap(far[0])})"
    text = f": of {len(told)} pairs of scorer and share {parts[0]}, and {parts[1]}. Against the full cache "
    return text, len(better), len(worse)


def test_the_sentence_says_what_the_rows_do(case):
    _, report = case
    section = section_of(report)
    bare = [
        row["ppl_change_percent"]
        for row in rows_of(report, "protection")
        if (row["start_size"], row["recent_percent"]) == ("0", "0.0")
    ]
    assert f"; with nothing protected, {shown(min(map(float, bare)))} (" in section
    kept = protected(report)
    shares = sorted({float(row["recent_percent"]) for row in kept})
    assert f"64 tokens, 4 sinks and {shares[0]:g}" in section
    most, least = (
        " to ".join(f"{shown(row['ppl_change_percent'])} ({row['scorer']})" for row in (mine[0], mine[-1]))
        + f" with {share:g}\u00a0%"
        for share in (shares[-1], shares[0])
        if (mine := [row for row in kept if float(row["recent_percent"]) == share])
    )
    assert shares[1:]
    assert f"Against the full cache perplexity there is {most} for the newest and {least}; " in section
    assert f"; {shown(kept[0]['unscored_change_percent'])} if all but the sinks are the newest; " in section
    text, better, _ = verdicts(report)
    assert better
    assert text in section


def test_scorers_that_are_as_good_as_random_are_not_said_to_be_better(tmp_path):
    report = report_of(protection(dict.fromkeys(SCORERS, (2.0, 1.0, 0.2))), tmp_path)
    text, better, worse = verdicts(report)
    assert text in section_of(report)
    assert better + worse <= 1  # of six, each of which is told by chance once in twenty times


def test_two_documents_give_a_range_and_no_verdict(tmp_path):
    report = report_of(protection(documents=2), tmp_path)
    section = section_of(report)
    assert "too few documents for an interval." in section
    assert "measurably" not in section


def test_one_share_is_no_question(tmp_path):
    plan = protection()
    report = report_of(replace(plan, policies=plan.policies[:4]), tmp_path)
    assert rows_of(report, "protection") == []
    assert '<h2 id="protection"' not in page_of(report)
    assert "Protection against scoring needs two scorers at two shares" in page_of(report)


def scored(scorer, low, high, spread="interval"):
    ends = {"over_random_low_percent": low, "over_random_high_percent": high, "over_random_spread": spread}
    return {"scorer": scorer, "start_size": 4, "recent_percent": 50.0, "over_random_percent": 1.0, **ends}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [scored("l2", -2.0, 1.0), scored("h2o", 1.0, 3.0)],
            "Against random choice no scorer gains measurably and some lose measurably, with ",
        ),
        ([scored("l2", -2.0, 1.0)], "Against random choice no scorer gains measurably, with "),
        ([scored("l2", -2.0, -1.0)], "Against random choice some scorers gain measurably, with "),
        (
            [scored("l2", -2.0, -1.0), scored("h2o", 1.0, 3.0)],
            "Against random choice some scorers gain measurably and some lose measurably, with ",
        ),
        ([scored("l2", -2.0, -1.0, "range")], ""),
    ],
)
def test_the_answer_in_a_few_words_is_what_the_intervals_say(rows, words):
    told = short(rows, 4)
    assert told.startswith(words)
    assert bool(told) == bool(words)


def test_a_scorer_to_which_the_ends_leave_nothing_is_none(tmp_path):
    """Four sinks and sixty of 64: nothing is scored, and no share is asked for."""
    plan = protection()
    all_ends = next(one for one in plan.policies if one.label == "h2o(64,16,start_size=4)")
    fields = all_ends.fields | {"recent_size": 60}
    all_ends = replace(all_ends, label="h2o(64,60,start_size=4)", fields=fields)
    rows = rows_of(report_of(replace(plan, policies=(*plan.policies, all_ends)), tmp_path), "protection")
    assert len(rows) == 4 * 4
    assert all_ends.label not in {row["policy"] for row in rows}
