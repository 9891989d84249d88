"""Every number of every table, recomputed from the Parquet files in plain Python: no DuckDB, no SQL, no shared code."""

import math

import pytest
from golden import built
from report_oracle import Oracle, Tables, assert_printed, rows_of


@pytest.fixture(scope="module", params=["golden", "quick"])
def case(request, tmp_path_factory):
    records, report = built(request.param, tmp_path_factory)
    return Oracle(records), report


def test_perplexities_table_as_printed(case):
    oracle, report = case
    table = Tables((report / "index.html").read_text(encoding="utf-8")).tables["results"][1:]
    columns = {name for _, cells in table for name, _ in cells if name} - {"policy", "variant"}
    assert columns <= set(oracle.totals(oracle.models[0], "full", oracle.longest))
    seen = set()
    for attributes, cells in table:
        text = {name: shown for name, shown in cells if name}
        model = cells[0][1] if cells[0][0] is None else oracle.models[0]
        length = int(attributes["data-length"])
        seen.add((model, text["policy"], length))
        expected = oracle.totals(model, text["policy"], length)
        for name in columns:
            if text[name] == "–":
                full = text["policy"] == "full" and (name == "budget" or "change" in name)
                assert full or (name.startswith("kv") and length < oracle.longest), (name, text)
            else:
                assert_printed(text[name], expected[name])
    lengths = {length for _, _, length in seen}
    assert seen == {(model, policy, length) for model, policy, _ in oracle.runs for length in lengths}


def test_perplexities_csv_at_full_precision(case):
    oracle, report = case
    for row in rows_of(report, "perplexity"):
        expected = oracle.totals(row["setting"], row["policy"], int(row["length"]))
        for name in set(row) & set(expected):
            if row[name]:
                assert float(row[name]) == pytest.approx(expected[name], rel=1e-9, abs=1e-9), (name, row)


@pytest.mark.parametrize("name", ["by_budget", "equal_budget", "sinks", "length", "position_modes"])
def test_figure_tables(case, name):
    oracle, report = case
    rows = rows_of(report, name)
    if not rows:
        assert name == "position_modes"  # the quick plan has one mode only
        return
    for row in rows:
        expected = oracle.totals(row["setting"], row["policy"], int(row["length"]))
        checked = set(row) & set(expected) - {"budget" if row["policy"] == "full" else ""}
        assert "ppl_corpus" in checked
        for column in checked:
            assert float(row[column]) == pytest.approx(expected[column], rel=1e-9, abs=1e-9), (column, row)


def test_equal_budget_as_printed(case):
    oracle, report = case
    table = Tables((report / "index.html").read_text(encoding="utf-8")).tables["cross"]
    names = [text for _, text in table[0][1]]
    for _, cells in table[1:]:
        shown = dict(zip(names, (text for _, text in cells)))
        expected = oracle.totals(shown.get("Model", oracle.models[0]), shown["Policy"], oracle.longest)
        for heading, column in (("PPL corpus", "ppl_corpus"), ("vs full, %", "ppl_change_percent"),
                                ("Accuracy, points", "accuracy_change_points"), ("Budget", "budget")):  # fmt: skip
            assert_printed(shown[heading], expected[column])


def test_spread_is_a_range_below_five_documents_and_an_interval_from_there_on(case):
    oracle, report = case
    for row in rows_of(report, "equal_budget"):
        expected = oracle.totals(row["setting"], row["policy"], oracle.longest)
        low, high = (1 + float(row[f"ppl_change_{end}_percent"]) / 100 for end in ("low", "high"))
        each = expected["per_document"]
        if len(each) < 5:
            assert row["spread"] == "range"
            assert (low, high) == (pytest.approx(min(each), rel=1e-9), pytest.approx(max(each), rel=1e-9))
        else:
            assert row["spread"] == "interval"
            assert min(each) - 1e-9 <= low <= expected["ppl_ratio"] <= high <= max(each) + 1e-9


def test_loss_along_the_text(case):
    oracle, report = case
    rows = rows_of(report, "along_the_text")
    assert rows
    for model, policy, budget in sorted({(row["setting"], row["policy"], int(row["budget"])) for row in rows}):
        mine = [row for row in rows if (row["setting"], row["policy"], int(row["budget"])) == (model, policy, budget)]
        width = int(mine[0]["width"])
        names = [name for name in oracle.documents(model, policy) if (model, "full", name) in oracle.runs]
        last = max(oracle.runs[model, policy, name].rows[-1][0] for name in names)
        bins = range(last // width + 1)
        assert len(mine) == len(bins)
        for index, row in zip(bins, mine):
            near = [n for n in bins if abs(n - index) <= 2 and (n * width >= budget) == (index * width >= budget)]
            loss = {}
            for which in (policy, "full"):
                runs = [oracle.runs[model, which, name] for name in names]
                sums = [run.sums(n * width, (n + 1) * width) for run in runs for n in near]
                loss[which] = math.fsum(one[1] for one in sums) / sum(one[0] for one in sums)
            assert float(row["nll_nats"]) == pytest.approx(loss[policy], rel=1e-9)
            assert float(row["excess_nats"]) == pytest.approx(loss[policy] - loss["full"], rel=1e-9, abs=1e-9)


def test_documents_csv(case):
    oracle, report = case
    for row in rows_of(report, "documents"):
        run = oracle.runs[row["setting"], row["policy"], row["document"]]
        n, loss, hits, invalid = run.sums(1, int(row["length"]))
        assert (int(row["n"]), int(row["correct"]), int(row["invalid"])) == (n, hits, invalid)
        assert float(row["nll_sum"]) == pytest.approx(loss, rel=1e-12)


def test_published_numbers_stand_beside_ours(case):
    oracle, report = case
    columns = {"PPL, mean of documents": "ppl_mean", "accuracy, %": "accuracy_percent", "PPL": "ppl_corpus",
               "PPL change, %": "ppl_mean_change_percent", "accuracy change, %": "accuracy_change_percent"}  # fmt: skip
    rows = rows_of(report, "published")
    for row in rows:
        assert row["reason"] or row["verdict"] in ("reproduced", "differs")
        if row["ours"]:
            expected = oracle.totals(row["setting"], row["policy"], int(row["length"]))
            assert float(row["ours"]) == pytest.approx(expected[columns[row["metric"]]], rel=1e-9, abs=1e-9)
            assert row["verdict"] == "not comparable"
            assert row["setting"] in row["reason"]
    seed = {
        (row["method"], row["budget"]): float(row["published"]) for row in rows if row["metric"].startswith("PPL, mean")
    }
    page = (report / "index.html").read_text(encoding="utf-8")
    assert f"+{100 * (seed['streaming_llm', '512'] / seed['full', ''] - 1):.1f} %" in page  # the “like for like” line
