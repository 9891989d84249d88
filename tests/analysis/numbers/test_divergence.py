"""Divergence by its definitions, from Parquet files in plain Python and numpy: no DuckDB, no SQL, no shared code."""

import math
import re
from dataclasses import replace
from decimal import Decimal

import golden
import numpy as np
import pytest
from golden import FULL, QUICK, built, quick_report, report_of, streaming, write
from report_oracle import Oracle, Tables, assert_printed, page_of, rows_of

from analysis.words.metric import METRICS

MODEL = "smollm2-135m"
BOUNDED = [policy for policy in QUICK.policies if policy.budget]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    records, report = built("quick", tmp_path_factory)
    return Oracle(records), report


def tokens_of(oracle, policy):
    """KL and whether the top token is full's, of all documents' tokens."""
    rows = [row for name in oracle.documents(MODEL, policy) for row in oracle.runs[MODEL, policy, name].compared]
    return np.array([row[1] for row in rows]), np.array([row[2] for row in rows])


def test_the_table_holds_means_and_numpys_quantiles(quick):
    oracle, report = quick
    rows = {row["policy"]: row for row in rows_of(report, "divergence")}
    assert set(rows) == {policy.label for policy in BOUNDED}
    for policy, row in rows.items():
        kl, same = tokens_of(oracle, policy)
        ends = np.percentile(kl, [50, 99, 99.9])
        names = ("kl_median_nats", "kl_p99_nats", "kl_p999_nats")
        expected = {"kl_nats": kl.mean(), "same_top_percent": 100 * same.mean(), **dict(zip(names, ends))}
        expected |= {"kl_max_nats": kl.max(), "kl_tokens": len(kl)}
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-9), (policy, name)
        each = [
            np.mean([kl for _, kl, *_ in oracle.runs[MODEL, policy, name].compared])
            for name in oracle.documents(MODEL, policy)
        ]
        assert [float(row[f"kl_nats_{end}"]) for end in ("low", "high")] == pytest.approx([min(each), max(each)])


def test_the_page_prints_that_table(quick):
    oracle, report = quick
    printed = [cells for _, cells in Tables(page_of(report)).tables["divergences"][1:]]
    assert len(printed) == len(BOUNDED)
    for cells in printed:
        kl, same = tokens_of(oracle, cells[1][1])
        shown = {name: text for name, text in cells if name}
        values = {"kl_nats": kl.mean()} | {
            f"kl_{name}_nats": at(sorted(map(float, kl)), share)
            for name, share in (("median", 0.5), ("p99", 0.99), ("p999", 0.999))
        }
        assert values.keys() <= shown.keys()
        for name, value in values.items():
            if not value:  # while the budget holds all, nothing differs
                assert shown[name] == "0"
                continue
            digits = Decimal(shown[name]).as_tuple().digits
            assert len(digits) == (3 if value >= 1e-3 else 2)
            assert float(shown[name]) == pytest.approx(value, rel=0.005 if value >= 1e-3 else 0.05)
        assert_printed(shown["same_top_percent"], 100 * same.mean())


def at(ranked, share):
    """The value that this share of ranked ones stays below, between two neighbours linear."""
    place = share * (len(ranked) - 1)
    low = int(place)
    return ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])


def test_the_tail_counts_tokens(quick):
    oracle, report = quick
    rows = rows_of(report, "tail")
    assert {row["policy"] for row in rows} == {policy.label for policy in BOUNDED if policy.start_size != 1}
    found = {policy: tokens_of(oracle, policy)[0] for policy in {row["policy"] for row in rows}}
    sizes = {policy: np.floor(8 * np.log10(kl[kl > 0].astype(float))) for policy, kl in found.items()}
    for row in rows:
        above = int((sizes[row["policy"]] >= place_of(row)).sum())
        assert int(row["n"]) == above
        assert float(row["share_percent"]) == pytest.approx(100 * above / len(found[row["policy"]]), rel=1e-12)


def place_of(row):
    """Which eighth of a power of ten a threshold is."""
    return round(8 * math.log10(float(row["kl_nats"])))


def test_where_predictions_differ_counts_tokens_beyond_a_tenth_of_a_nat(quick):
    oracle, report = quick
    rows = [row for row in rows_of(report, "far") if row["policy"] == "recent_only(256)"]
    width, runs = int(rows[0]["width"]), [oracle.runs[MODEL, "recent_only(256)", name] for name in QUICK.documents]
    bins = {}
    for position, kl, *_ in (row for run in runs for row in run.compared):
        n, far = bins.get(position // width, (0, 0))
        bins[position // width] = n + 1, far + (kl > 0.1)
    assert len(rows) == len(bins)
    for place, row in enumerate(rows):
        near = [other for other in range(place - 2, place + 3) if other in bins]
        near = [other for other in near if (other * width >= 256) == (place * width >= 256)]
        n, far = (sum(bins[other][part] for other in near) for part in (0, 1))
        assert float(row["far_percent"]) == pytest.approx(100 * far / n, rel=1e-12)


def test_the_worst_tokens_are_the_worst_and_their_words_are_escaped(quick):
    oracle, report = quick
    rows = rows_of(report, "worst")
    for policy in BOUNDED:
        mine = [row for row in rows if row["policy"] == policy.label]
        found = []
        for name in oracle.documents(MODEL, policy.label):
            full = {row[0]: row[3] for row in oracle.runs[MODEL, "full", name].compared}
            for position, kl, _, nll in oracle.runs[MODEL, policy.label, name].compared:
                found.append((-kl, name, position, nll - full[position]))
        expected = sorted(found)[:20]
        assert [(row["document"], int(row["position"])) for row in mine] == [one[1:3] for one in expected]
        assert [float(row["delta_nll_nats"]) for row in mine] == pytest.approx([one[3] for one in expected], abs=1e-6)
    page = page_of(report)
    assert "<b>word" not in page
    assert "&lt;b&gt;word" in page
    assert "&amp;amp; it" in page


def test_the_words_of_a_worst_token_go_on_where_the_text_does(tmp_path):
    """Beside it are 40 tokens before it and 12 behind it, as many as there are."""
    plan = replace(QUICK, policies=(FULL, streaming(4, 12, 0.2)), documents=("Job",), tokens=100, lengths=(100,))
    report = report_of(plan, tmp_path)
    rows = rows_of(report, "worst")
    cells = re.findall(r'<td class="text words">(…?)[^<…]*<mark>[^<]*</mark>[^<…]*(…?)</td>', page_of(report))
    assert cells == [("…" * (int(row["position"]) > 40), "…" * (int(row["position"]) < 87)) for row in rows]
    assert set(cells) == {("", "…"), ("…", "…"), ("…", "")}


def test_how_far_back_a_worst_token_stood_behind_the_same_one(tmp_path, monkeypatch):
    real = golden.scored

    def of_few_words(*given):
        token, *others = real(*given)
        return (token % 23, *others)

    monkeypatch.setattr(golden, "scored", of_few_words)
    plan = replace(QUICK, policies=(FULL, streaming(4, 12, 0.2)), documents=("Job", "Ruth"), tokens=300, lengths=(300,))
    rows = rows_of(report_of(plan, tmp_path), "worst")
    found = []
    for row in rows:
        said, at = of_few_words(plan, MODEL, row["document"], FULL)[0], int(row["position"])
        pairs = [(int(said[place - 2]), int(said[place - 1])) for place in range(2, at + 1)]  # that of place ends there
        *before, own = pairs
        found.append(str(1 + before[::-1].index(own)) if own in before else "")
    assert [row["tokens_back"] for row in rows] == found
    assert 0 < found.count("") < len(found)


def test_attention_loss_is_the_mean_over_documents(quick):
    oracle, report = quick
    rows = rows_of(report, "attention")
    assert {row["policy"] for row in rows} == {policy.label for policy in BOUNDED}
    highest = max(float(row["lost_percent"]) for row in rows)
    for row in rows:
        mine = [oracle.runs[MODEL, row["policy"], name].fields["attention_loss"] for name in QUICK.documents]
        lost = [of[int(row["layer"])][int(row["head"])] for of in mine]
        assert float(row["lost_percent"]) == pytest.approx(100 * np.mean(lost), rel=1e-12)
        assert float(row["mean_percent"]) == pytest.approx(100 * np.mean(mine), rel=1e-12)
        assert float(row["highest_percent"]) == pytest.approx(highest, rel=1e-12)


COSTS = {
    "kl": lambda expected: 100 * expected["kl_nats"],
    "top1": lambda expected: 100 - expected["same_top_percent"],
}


@pytest.mark.parametrize("metric", COSTS)
def test_cards_and_trade_off_go_by_the_metric_asked_for(tmp_path, metric):
    plan = replace(QUICK, tokens=1100, lengths=(1100,))
    records = write(plan, tmp_path / "records")
    done = quick_report("--records", records, "--out", tmp_path, "--quality-metric", metric, "--within", "30")
    assert done.returncode == 0, done.stderr
    oracle = Oracle(records)
    costs = {one.label: COSTS[metric](oracle.totals(MODEL, one.label, 1100)) for one in BOUNDED}
    within = sorted((one.budget, costs[one.label], one.label) for one in BOUNDED if costs[one.label] <= 30)
    cards = {row["card"]: row for row in rows_of(tmp_path, "cards")}
    assert cards["answer"]["policy"] == within[0][2]
    assert float(cards["answer"]["cost"]) == pytest.approx(within[0][1], rel=1e-9)
    plate = [row for row in rows_of(tmp_path, "tradeoff") if row["axis"] == "kv"]
    for row in plate:
        assert float(row["cost"]) == pytest.approx(costs.get(row["policy"], 0.0), rel=1e-9, abs=1e-12)
        beaten = any(
            (float(one["cost"]) < float(row["cost"]) and float(one["x"]) <= 1.02 * float(row["x"]))
            or (float(one["cost"]) == float(row["cost"]) and float(one["x"]) < float(row["x"]))
            for one in plate
        )
        assert (row["unbeaten"] == "True") == (not beaten)
    page, words = page_of(tmp_path).replace("\u00a0", " "), METRICS[metric]
    assert words.bound(words.rule, 30.0).replace("\u00a0", " ") in page
    assert words.axis in page
    assert words.heading in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "perplexity within 30 % of full" not in page
    unit = " in hundredths of a nat" if metric == "kl" else ""
    assert page.count(f"<code>--within 30</code>{unit}") == 3  # two cards, and the sentence below them
    assert f"(`--within 30`{unit}) |" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_runs_without_it_beside_those_with_it(tmp_path):
    """The longest texts count: where these were not compared, nothing is said; nor of policies compared in part."""
    short = replace(QUICK, documents=QUICK.documents[:1], policies=QUICK.policies[:3], tokens=600, lengths=(600,))
    records = write(short, tmp_path / "records")
    write(replace(short, tokens=700, lengths=(700,), diverges=False), records)
    assert quick_report("--records", records, "--out", tmp_path / "longer").returncode == 0
    assert [len(rows_of(tmp_path / "longer", name)) for name in ("divergence", "tail", "far", "worst")] == [0] * 4
    records = write(replace(short, documents=("Genesis",)), tmp_path / "partly")
    write(replace(short, documents=("Job",), diverges=False), records)
    assert quick_report("--records", records, "--out", tmp_path / "part").returncode == 0
    assert {row["kl_nats"] for row in rows_of(tmp_path / "part", "perplexity")} == {""}


def test_a_budget_that_holds_the_text_has_no_worst_tokens(tmp_path):
    plan = replace(QUICK, documents=QUICK.documents[:1], tokens=600, lengths=(600,))
    records = write(plan, tmp_path / "records")
    assert quick_report("--records", records, "--out", tmp_path).returncode == 0
    labels = {policy.label for policy in plan.policies if policy.budget == 256}
    assert {row["policy"] for row in rows_of(tmp_path, "worst")} == labels
    assert {row["policy"] for row in rows_of(tmp_path, "divergence")} == labels


def test_a_metric_that_was_not_measured_is_refused(tmp_path, tmp_path_factory):
    records, _ = built("golden", tmp_path_factory)
    done = quick_report("--records", records, "--out", tmp_path, "--quality-metric", "kl")
    assert done.returncode == 2
    assert "--quality-metric: 'kl' needs records with divergence from full; sweep with --metrics kl" in done.stderr


def test_an_infinite_divergence_is_counted_and_in_no_mean(tmp_path, monkeypatch):
    plan = replace(QUICK, documents=QUICK.documents[:1], policies=QUICK.policies[:3], tokens=600, lengths=(600,))
    real = golden.compared

    def compared(bare, model, document, policy):
        found = real(bare, model, document, policy)
        found["kl_nats"][-5:-3] = (np.inf, np.nan) if policy == plan.policies[1] else 0
        return found

    monkeypatch.setattr(golden, "compared", compared)
    records = write(plan, tmp_path / "records")
    assert quick_report("--records", records, "--out", tmp_path).returncode == 0
    found = {row["policy"]: row for row in rows_of(tmp_path, "perplexity")}
    assert {label: row["invalid"] for label, row in found.items() if row["invalid"] != "0"} == {
        plan.policies[1].label: "2"
    }
    assert all(row["scored"] == "599" for row in found.values())  # the losses are there
    assert math.isfinite(float(found[plan.policies[1].label]["kl_nats"]))
    assert '<li class="badge">2 invalid rows</li>' in page_of(tmp_path)
