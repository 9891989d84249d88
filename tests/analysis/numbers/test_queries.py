"""Quality numbers by their definitions, from the Parquet files in plain Python: no DuckDB, no SQL, no shared code."""

import itertools
import math
import statistics

import pytest
from golden import built
from report_oracle import Oracle, Tables, assert_printed, page_of, rows_of


@pytest.fixture(scope="module", params=["golden", "quick"])
def case(request, tmp_path_factory):
    records, report = built(request.param, tmp_path_factory)
    return Oracle(records), report


def assert_close(row, expected, columns):
    for name in columns:
        assert (row[name] == "") == (expected[name] is None), (name, row)
        if row[name]:
            assert float(row[name]) == pytest.approx(expected[name], rel=1e-9, abs=1e-9), (name, row)


def test_perplexities_table_as_printed(case):
    oracle, report = case
    table = Tables(page_of(report)).tables["results"][1:]
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
                assert full or expected[name] is None or (name.startswith("kv") and length < oracle.longest), (
                    name,
                    text,
                )
            else:
                assert_printed(text[name], expected[name])
    lengths = {length for _, _, length in seen}
    assert seen == {(model, policy, length) for model, policy, _ in oracle.runs for length in lengths}


@pytest.mark.parametrize("name", ["perplexity", "by_budget", "equal_budget", "sinks", "length", "position_modes"])
def test_tables_of_perplexity(case, name):
    oracle, report = case
    rows = rows_of(report, name)
    assert rows or name == "position_modes"  # of which the quick plan has one
    for row in rows:
        length = int(row["length"])
        expected = oracle.totals(row["setting"], row["policy"], length)
        checked = set(row) & set(expected)
        assert "ppl_corpus" in checked
        checked -= {"kv_mb", "kv_percent"} if length < oracle.longest else set()
        checked -= {"budget"} if row["policy"] == "full" else set()
        assert_close(row, expected, checked)


def test_equal_budget_as_printed(case):
    oracle, report = case
    (_, head), *lines = Tables(page_of(report)).tables["cross"]
    columns = {"PPL corpus": "ppl_corpus", "vs full, %": "ppl_change_percent", "Budget": "budget"}
    for _, cells in lines:
        shown = dict(zip((text for _, text in head), (text for _, text in cells)))
        expected = oracle.totals(shown.get("Model", oracle.models[0]), shown["Policy"], oracle.longest)
        for heading, column in (columns | {"Accuracy, points": "accuracy_change_points"}).items():
            assert_printed(shown[heading], expected[column])


def test_spread_is_a_range_over_few_documents_and_an_interval_over_more(case):
    oracle, report = case
    for row in rows_of(report, "equal_budget"):
        expected = oracle.totals(row["setting"], row["policy"], oracle.longest)
        low, high = (1 + float(row[f"ppl_change_{end}_percent"]) / 100 for end in ("low", "high"))
        each = expected["per_document"]
        assert row["spread"] == ("range" if len(each) < 10 else "interval")
        if row["spread"] == "range":
            assert (low, high) == (pytest.approx(min(each), rel=1e-9), pytest.approx(max(each), rel=1e-9))
        else:
            assert min(each) - 1e-9 <= low <= expected["ppl_ratio"] <= high <= max(each) + 1e-9


def test_loss_along_the_text(case):
    oracle, report = case
    rows = rows_of(report, "along_the_text")
    for model, policy, budget in sorted({(row["setting"], row["policy"], int(row["budget"])) for row in rows}):
        mine = [row for row in rows if (row["setting"], row["policy"], int(row["budget"])) == (model, policy, budget)]
        width = int(mine[0]["width"])
        names = [name for name in oracle.documents(model, policy) if (model, "full", name) in oracle.runs]
        bins = range(max(oracle.runs[model, policy, name].rows[-1][0] for name in names) // width + 1)
        assert len(mine) == len(bins) > 3

        def sums_of(which, name, index, model=model, width=width):
            return oracle.piece(model, which, [name], width, index)

        alike = [[name for name in names if sums_of(policy, name, n)[0] == sums_of("full", name, n)[0]] for n in bins]
        pieces = {which: [oracle.piece(model, which, alike[n], width, n) for n in bins] for which in (policy, "full")}
        for index, row in zip(bins, mine):
            near = [n for n in bins if abs(n - index) <= 2 and (n * width >= budget) == (index * width >= budget)]
            loss, full = (
                math.fsum(pieces[which][n][1] for n in near) / sum(pieces[which][n][0] for n in near)
                for which in (policy, "full")
            )
            assert_close(row, {"nll_nats": loss, "excess_nats": loss - full}, ("nll_nats", "excess_nats"))


def test_what_stretches_between_lengths_cost_and_whether_that_grows(case):
    """Growth is of the loss over full's, from the first stretch beyond the budget to the last: about a t interval."""
    oracle, report = case
    grown = 0
    for row in rows_of(report, "length"):
        model, policy, since, until = row["setting"], row["policy"], int(row["since"]), int(row["length"])
        names = oracle.comparable(model, policy, since, until)
        lengths = [0, *oracle.runs[model, policy, names[0]].fields["lengths"]]
        assert since == lengths[lengths.index(until) - 1]

        def excess(names, since, until, model=model, policy=policy):
            """Over full's, of these documents on the tokens that the first so many have beyond the first so many."""
            sums = {
                one: [oracle.runs[model, one, name].sums(since, until) for name in names] for one in (policy, "full")
            }
            nll, full = (math.fsum(one[1] for one in own) / sum(one[0] for one in own) for own in sums.values())
            return nll - full

        change = 100 * math.expm1(excess(names, since, until))
        assert float(row["stretch_change_percent"]) == pytest.approx(change, rel=1e-9, abs=1e-9)
        beyond = [pair for pair in itertools.pairwise(lengths) if pair[0] >= int(row["budget"])]
        if not row["growth_low_percent"]:
            assert until < oracle.longest or len(names) < 10 or len(beyond) < 2
            continue
        assert until == oracle.longest
        changes = [excess([name], since, until) - excess([name], *beyond[0]) for name in names]
        mean, half = statistics.mean(changes), 2.2 * statistics.stdev(changes) / math.sqrt(len(changes))
        low, high = (math.log1p(float(row[f"growth_{end}_percent"]) / 100) for end in ("low", "high"))
        assert abs((low + high) / 2 - mean) < half / 2
        assert 0.6 * half < (high - low) / 2 < 1.5 * half
        grown += 1
    assert grown or len(oracle.runs) < 100  # the quick plan has two documents


def test_documents_csv(case):
    oracle, report = case
    for row in rows_of(report, "documents"):
        run = oracle.runs[row["setting"], row["policy"], row["document"]]
        n, loss, hits, invalid = run.sums(1, int(row["length"]))
        assert (int(row["n"]), int(row["correct"]), int(row["invalid"])) == (n, hits, invalid)
        assert float(row["nll_sum"]) == pytest.approx(loss, rel=1e-12)


def test_losses_of_a_text_without_full_and_of_its_parts(tmp_path_factory):
    """By bins of 64 tokens, a part's least and most among them; a part ends where its record says."""
    records, report = built("stream", tmp_path_factory)
    oracle = Oracle(records)
    [model], runs = oracle.models, {policy: run for (_, policy, _), run in oracle.runs.items()}
    losses = {}
    for place, row in enumerate(rows_of(report, "stream")):
        first = place % 40 * 64  # of 2,500 tokens
        count, total, *_ = runs[row["policy"]].sums(first, first + 64)
        losses[row["policy"], first] = total / count
        assert (row["setting"], int(row["position"])) == (model, min(first + 32, 2500))
        assert float(row["nll_nats"]) == pytest.approx(total / count, rel=1e-12)
    assert len(losses) == 2 * 40
    parts = rows_of(report, "parts")
    assert [(int(row["since"]), int(row["until"])) for row in parts] == 2 * [(0, 1024), (1024, 2048), (2048, 2499)]
    for row in parts:
        since, until = int(row["since"]), int(row["until"])
        run = runs[row["policy"]]
        count, total, *_ = run.sums(since, until + (until == 2499))  # of bins, the last of which ends with the text
        bins = [nll for (policy, first), nll in losses.items() if policy == row["policy"] and since <= first < until]
        expected = {"n": count, "nll_nats": total / count, "nll_nats_low": min(bins), "nll_nats_high": max(bins)}
        expected |= {"tokens_per_s": 100.0, "peak_mb": 64.0 + since // 1024, "kv_mb": run.fields["kv_bytes"] / 1e6}
        assert_close(row, expected, expected)


def test_a_text_with_full_is_no_stream_and_in_one_part_has_none(case):
    _, report = case
    assert not rows_of(report, "stream")
    assert not rows_of(report, "parts")
