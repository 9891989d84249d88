"""Every number of every table, recomputed from the Parquet files in plain Python: no DuckDB, no SQL, no shared code."""

import csv
import html.parser
import json
import math

import pyarrow.parquet as pq
import pytest
from golden import built


class Run:
    """One finished cell: its fields and its rows as Python lists."""

    def __init__(self, folder, commit):
        self.fields = commit["fields"]
        table = pq.read_table(folder / commit["file"])
        self.rows = sorted(zip(*(table[name].to_pylist() for name in ("position", "nll_nats", "correct"))))

    def sums(self, first, last):
        """(n, loss, hits, invalid) over positions first ≤ p < last."""
        good = [row for row in self.rows if first <= row[0] < last and math.isfinite(row[1])]
        invalid = sum(first <= row[0] < last and not math.isfinite(row[1]) for row in self.rows)
        return len(good), math.fsum(row[1] for row in good), sum(row[2] for row in good), invalid


class Oracle:
    """The report's numbers by their definitions."""

    def __init__(self, folder):
        commits = [json.loads(path.read_text()) for path in folder.glob("*.json") if path.name.count(".") == 1]
        runs = [Run(folder, commit) for commit in commits if commit.get("fields", {}).get("kind") == "quality"]
        self.runs = {(run.fields["model"], run.fields["policy"], run.fields["document"]): run for run in runs}
        self.models = sorted({run.fields["model"] for run in runs})
        self.longest = max(run.fields["tokens"] for run in runs)

    def documents(self, model, policy):
        return sorted(document for m, p, document in self.runs if (m, p) == (model, policy))

    def totals(self, model, policy, length):
        """Each column of the main table that is a number."""
        mine = {name: self.runs[model, policy, name].sums(1, length) for name in self.documents(model, policy)}
        full = {name: self.runs[model, "full", name].sums(1, length) for name in self.documents(model, "full")}
        shared = [name for name in mine if name in full]
        fields = [self.runs[model, policy, name].fields for name in mine]

        def nll(sums, names):
            return math.fsum(sums[name][1] for name in names) / sum(sums[name][0] for name in names)

        def hits(sums, names):
            return sum(sums[name][2] for name in names) / sum(sums[name][0] for name in names)

        def mean(sums, names):
            return math.fsum(math.exp(sums[name][1] / sums[name][0]) for name in names) / len(names)

        ratio = math.exp(nll(mine, shared) - nll(full, shared))
        return {
            "budget": fields[0]["budget"],
            "kv_mb": sum(one["kv_bytes"] for one in fields) / len(fields) / 1e6,
            "kv_percent": 100 * sum(one["kv_bytes"] for one in fields) / sum(one["kv_bytes_full"] for one in fields),
            "ppl_corpus": math.exp(nll(mine, mine)),
            "ppl_change_percent": 100 * (ratio - 1),
            "ppl_ratio": ratio,
            "ppl_mean": mean(mine, mine),
            "ppl_mean_change_percent": 100 * (mean(mine, shared) / mean(full, shared) - 1),
            "accuracy_percent": 100 * hits(mine, mine),
            "accuracy_change_percent": 100 * (hits(mine, shared) / hits(full, shared) - 1),
            "accuracy_change_points": 100 * (hits(mine, shared) - hits(full, shared)),
            "documents": len(mine),
            "invalid": sum(one[3] for one in mine.values()),
            "full_ppl": math.exp(nll(full, full)),
            "ppl_placed": math.exp(nll(mine, mine)) if set(mine) == set(full) else math.exp(nll(full, full)) * ratio,
            "per_document": [math.exp(nll(mine, [name]) - nll(full, [name])) for name in shared],
        }


class Tables(html.parser.HTMLParser):
    """The page's tables: id → rows of (attributes, cells); a cell is its column and its text without small print."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.table, self.cell, self.hushed = {}, None, None, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "table":
            self.table = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr" and self.table is not None:
            self.table.append((attributes, []))
        elif tag in ("td", "th") and self.table:
            self.cell = [attributes.get("data-column"), ""]
            self.table[-1][1].append(self.cell)
        elif tag in ("small", "span") and self.cell:
            self.hushed += 1

    def handle_endtag(self, tag):
        if tag == "table":
            self.table = None
        elif tag in ("td", "th"):
            self.cell = None
        elif tag in ("small", "span") and self.cell:
            self.hushed -= 1

    def handle_data(self, data):
        if self.cell and not self.hushed:
            self.cell[1] += data.strip()


def number(text):
    """A printed number as (value, decimals)."""
    plain = text.replace("−", "-").replace(",", "").replace("\u00a0%", "").strip()
    return float(plain), len(plain.partition(".")[2])


def assert_printed(text, expected):
    """The printed digits are those of `expected`, rounded to as many decimals."""
    value, decimals = number(text)
    assert value == float(f"{expected:.{decimals}f}"), (text, expected)


def rows_of(report, name):
    with (report / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=["golden", "quick"])
def case(request, tmp_path_factory):
    records, report = built(request.param, tmp_path_factory)
    return Oracle(records), report


def test_main_table_as_printed(case):
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


def test_main_csv_at_full_precision(case):
    oracle, report = case
    for row in rows_of(report, "main"):
        expected = oracle.totals(row["setting"], row["policy"], int(row["length"]))
        for name in set(row) & set(expected):
            if row[name]:
                assert float(row[name]) == pytest.approx(expected[name], rel=1e-9, abs=1e-9), (name, row)


@pytest.mark.parametrize("name", ["budget", "cross_method", "start_size", "length", "position_modes"])
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


def test_cross_method_as_printed(case):
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
    for row in rows_of(report, "cross_method"):
        expected = oracle.totals(row["setting"], row["policy"], oracle.longest)
        low, high = float(row["ppl_ratio_low"]), float(row["ppl_ratio_high"])
        each = expected["per_document"]
        if len(each) < 5:
            assert row["spread"] == "range"
            assert (low, high) == (pytest.approx(min(each), rel=1e-9), pytest.approx(max(each), rel=1e-9))
        else:
            assert row["spread"] == "interval"
            assert min(each) - 1e-9 <= low <= expected["ppl_ratio"] <= high <= max(each) + 1e-9


def test_loss_along_the_text(case):
    oracle, report = case
    rows = rows_of(report, "position")
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
