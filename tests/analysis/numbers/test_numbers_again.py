"""Every number in every table once more, intervals included: from Parquet and JSON, in plain Python and scipy.

`test_queries` and `test_report_latency` hold the definitions of single numbers; here each row of each CSV is built from
them anew, and a column that nothing here explains is an error.
"""

import json
import math
import zlib
from functools import cached_property

import numpy as np
import pytest
from golden import built
from report_oracle import Oracle, cells_of, rows_of
from scipy.stats import bootstrap, norm, t

# Names and choices, not numbers; what decides them is tested by the rules of the report.
LABELS = {
    *("series", "base", "variant", "in_focus", "usual_sinks", "longest", "headline", "smallest_batch", "role"),
    *(
        "written_at",
        "planned",
        "hardware",
        "unbeaten",
        "best",
        "card",
        "why",
        "busy",
        "evicts",
        "axis",
        "keep_ratio",
    ),
    *("policy_fields", "recent_size"),
    *("source", "text", "method", "metric", "note", "caveat", "verdict", "reason", "threshold_percent", "governor"),
}
STATISTICS = {
    "ppl_change": lambda x: np.exp(x[0].sum(-1) / x[1].sum(-1) - x[3].sum(-1) / x[4].sum(-1)) - 1,
    "ppl_mean_change": lambda x: np.exp(x[0] / x[1]).mean(-1) / np.exp(x[3] / x[4]).mean(-1) - 1,
    "points": lambda x: 100 * (x[2].sum(-1) / x[1].sum(-1) - x[5].sum(-1) / x[4].sum(-1)),
    "accuracy_change": lambda x: (x[2].sum(-1) / x[1].sum(-1)) / (x[5].sum(-1) / x[4].sum(-1)) - 1,
    "ppl_corpus": lambda x: np.exp(x[0].sum(-1) / x[1].sum(-1)),
    "ppl_mean": lambda x: np.exp(x[0] / x[1]).mean(-1),
    "accuracy": lambda x: x[2].sum(-1) / x[1].sum(-1),
}


def level(count):
    """The level that makes a bootstrap of so many units cover as t does at 95 %."""
    return 1 - 2 * norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1))


class Again(Oracle):
    """The report's quality numbers, with intervals and with what tables call them."""

    def __init__(self, folder):
        super().__init__(folder)
        self.folder, self.known = folder, {}

    @cached_property
    def timed(self):
        return cells_of(self.folder)

    def first(self, model, policy):
        return self.runs[model, policy, self.documents(model, policy)[0]].fields

    def sums(self, model, policy, length, document):
        key = (model, policy, length, document)
        if key not in self.known:
            self.known[key] = self.runs[model, policy, document].sums(1, length)[:3]
        return self.known[key]

    def ends(self, model, policy, length, beside="full"):
        """Low and high end of each statistic over the documents shared with another policy, and what they are."""
        key = ("ends", model, policy, length, beside)
        if key not in self.known:
            shared = sorted(set(self.documents(model, policy)) & set(self.documents(model, beside)))
            mine, other = ([self.sums(model, which, length, name) for name in shared] for which in (policy, beside))
            columns = [
                np.array(column, float) for pair in (mine, other) for column in zip(*((b, a, c) for a, b, c in pair))
            ]
            seed = zlib.crc32("|".join((model, str(length), *shared)).encode())
            self.known[key] = {name: spread(columns, statistic, seed) for name, statistic in STATISTICS.items()}
            self.known[key]["spread"] = "interval" if len(shared) >= 10 else "range"
        return self.known[key]

    def quality(self, model, policy, length):
        """Every column that a table has of a policy's quality."""
        key = ("quality", model, policy, length)
        if key in self.known:
            return self.known[key]
        fields, full, ends = self.first(model, policy), policy == "full", self.ends(model, policy, length)
        shared = [name for name in self.documents(model, policy) if name in self.documents(model, "full")]
        found = {name: fields[name] for name in ("policy", "policy_name", "strategy", "position_mode", "skip_layers")}
        found |= {name: fields[name] for name in ("budget", "start_size", "trained_context")}
        found |= {"setting": model, "length": length, "paired_documents": len(shared)}
        found |= {name: value for name, value in self.totals(model, policy, length).items() if name != "per_document"}
        found["full_documents"] = len(self.documents(model, "full"))
        found["scored"] = sum(self.sums(model, policy, length, name)[0] for name in self.documents(model, policy))
        found["spread"] = None if full else ends["spread"]
        for name, column, scale in (
            ("ppl_change", "ppl_change_{}_percent", 100),
            ("ppl_mean_change", "ppl_mean_change_{}_percent", 100),
            ("points", "accuracy_change_{}_points", 1),
            ("accuracy_change", "accuracy_change_{}_percent", 100),
        ):
            for place, end in enumerate(("low", "high")):
                found[column.format(end)] = None if full else scale * ends[name][place]
        whole = ends["spread"] == "interval" and len(shared) == found["documents"]
        for place, end in enumerate(("low", "high")):
            found[f"ppl_corpus_{end}"] = ends["ppl_corpus"][place] if whole else None
            found[f"ppl_mean_{end}"] = ends["ppl_mean"][place] if whole else None
            found[f"accuracy_{end}_percent"] = 100 * ends["accuracy"][place] if whole else None
        if length < self.longest:
            found["kv_mb"] = found["kv_percent"] = None
        found["beyond_trained_context"] = str(length > fields["trained_context"])
        self.known[key] = found
        return found

    def speed(self, model, context, batch, label):
        """Every column that a table has of a contender's speed."""
        key = ("speed", model, context, batch, label)
        if key in self.known:
            return self.known[key]
        timed = self.timed[model, context, batch]
        one, found = timed.contenders[label], timed.totals(label)
        found |= {name: one[name] for name in ("policy", "policy_name", "skip_layers", "budget", "start_size")}
        found |= {name: timed.fields[name] for name in ("model", "device", "dtype", "threads")}
        found |= {"setting": model, "contender": label, "cell": timed.cell}
        for name, phase in (("ttft", "ttft"), ("tpot", "step")):
            low, high = self.ratios(timed, phase, "full").get(label, (None, None))
            again = self.ratios(timed, phase, "full").get("full (again)")
            band = (min(again[0], 1), max(again[1], 1)) if again else (None, None)
            found |= {f"{name}_ratio_low": low, f"{name}_ratio_high": high}
            found |= {f"{name}_band_low": band[0], f"{name}_band_high": band[1]}
            apart = (
                "faster"
                if high and again and high < band[0]
                else "slower"
                if high and again and low > band[1]
                else "same"
            )
            found[f"{name}_verdict"] = apart if high and again else None
        ends = self.ratios(timed, "step", "twin").get(label)
        for place, end in enumerate(("low", "high")):
            found[f"eviction_{end}_percent"] = 100 * (ends[place] - 1) if ends else None
        self.known[key] = found
        return found

    def ratios(self, timed, phase, against):
        """Intervals of the ratios of all contenders of a cell to full, or to their twins that do not evict."""
        key = ("ratios", timed.cell, phase, against)
        if key not in self.known:
            pairs = {}
            for label in sorted(timed.contenders):
                other = "full" if against == "full" else timed.twin(label)
                if label != against and other and timed.rounds(label, phase):
                    pairs[label] = [a / b for a, b in zip(timed.rounds(label, phase), timed.rounds(other, phase))]
            self.known[key] = {label: of_ranks(mine) for label, mine in pairs.items() if len(mine) >= 5}
        return self.known[key]

    def noise(self, model, context, batch):
        """Every column of a cell's comparison of full with itself."""
        timed = self.timed[model, context, batch]
        again = self.speed(model, context, batch, "full (again)")
        found = {name: timed.fields[name] for name in ("model", "model_note", "trained_context", "device", "dtype")}
        found |= {name: timed.fields[name] for name in ("context", "batch", "prefills", "rounds", "steps", "threads")}
        found |= {name: timed.fields["noise"][name] for name in ("load_before", "load_after", "steal", "others")}
        found |= {"cell": timed.cell, "setting": model, "drift_percent": timed.drift()}
        found["vocab_size"] = timed.fields.get("vocab_size")
        for name in ("ttft", "tpot"):
            found[f"again_{name}_ratio"] = again[f"{name}_ratio"]
            found |= {f"again_{name}_{end}": again[f"{name}_ratio_{end}"] for end in ("low", "high")}
        return found

    def along(self, model, policy, budget, width, index):
        """Smoothed loss of a policy, and of full on the same documents, around a bin of the text."""
        last = self.longest // width - (self.longest % width == 0)
        near = [
            n for n in range(index - 2, index + 3)
            if 0 <= n <= last and (n * width >= budget) == (index * width >= budget)
        ]  # fmt: skip
        names = [name for name in self.documents(model, policy) if (model, "full", name) in self.runs]
        loss = []
        for which in (policy, "full"):
            sums = [self.piece(model, which, name, width, n) for name in names for n in near]
            loss.append(math.fsum(one[1] for one in sums) / sum(one[0] for one in sums))
        return loss

    def piece(self, model, policy, document, width, index):
        key = ("piece", model, policy, document, width, index)
        if key not in self.known:
            self.known[key] = self.runs[model, policy, document].sums(index * width, (index + 1) * width)[:2]
        return self.known[key]


def of_ranks(values):
    """Between which two ranks, and points between ranks, the median lies in 95 % of cases."""
    ordered, n = sorted(values), len(values)
    held = [1 - sum(math.comb(n, few) for few in range(k)) / 2 ** (n - 1) for k in range(n // 2 + 1)]  # k … n + 1 − k
    k = max((k for k in range(1, n // 2 + 1) if held[k] >= 0.95), default=0)
    if not k:
        return ordered[0], ordered[-1]
    share = (held[k] - 0.95) / (held[k] - held[k + 1]) if held[k] > 0.95 else 0.0
    inward = (n - k) * share / (k + (n - 2 * k) * share)
    low, high = (
        kept + inward * (inner - kept)
        for kept, inner in ((ordered[k - 1], ordered[k]), (ordered[n - k], ordered[n - k - 1]))
    )
    return low, high


def spread(columns, statistic, seed):
    """A paired BCa interval from ten documents on, below that the range."""
    count = len(columns[0])
    each = statistic([column[:, None] for column in columns])
    if count < 10 or each.min() == each.max():
        return each.min(), each.max()
    ends = bootstrap(
        columns, lambda *drawn, axis: np.round(statistic(drawn), 10), n_resamples=4999, paired=True, vectorized=True,
        method="BCa", confidence_level=level(count), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return ends.low, ends.high


@pytest.fixture(scope="module", params=["golden", "quick", "shapes"])
def case(request, tmp_path_factory):
    records, report = built(request.param, tmp_path_factory)
    quality = any(
        json.loads(path.read_text()).get("fields", {}).get("kind") == "quality" for path in records.glob("*.json")
    )
    return (Again if quality else SpeedAlone)(records), report


class SpeedAlone(Again):
    """The same where nothing but speed was measured."""

    def __init__(self, folder):
        self.folder, self.known, self.longest, self.models, self.runs = folder, {}, 0, [], {}


def check(row, expected):
    """Each column is what is expected, or a label."""
    for column, shown in row.items():
        if column not in expected:
            assert column in LABELS, (column, row)
        elif expected[column] is None:
            assert shown == "", (column, row)
        elif isinstance(expected[column], str):
            assert shown == expected[column], (column, row)
        else:
            close = 1e-8 if "low" in column or "high" in column else 1e-9  # ends are of statistics rounded to 1e-10
            assert float(shown) == pytest.approx(expected[column], rel=close, abs=close), (column, row)


def whole(text):
    return int(text) if text else None


def test_perplexities_and_what_is_cut_from_it(case):
    again, report = case
    for name in ("perplexity", "by_budget", "position_modes", "length", "sinks"):
        for row in rows_of(report, name):
            check(row, again.quality(row["setting"], row["policy"], int(row["length"])))


def test_documents(case):
    again, report = case
    for row in rows_of(report, "documents"):
        model, policy, length, document = row["setting"], row["policy"], int(row["length"]), row["document"]
        fields = again.runs[model, policy, document].fields
        expected = {name: value for name, value in fields.items() if name not in LABELS}
        n, loss, hits, invalid = again.runs[model, policy, document].sums(1, length)
        expected |= {"setting": model, "length": length, "n": n, "nll_sum": loss, "correct": hits, "invalid": invalid}
        full = again.sums(model, "full", length, document) if (model, "full", document) in again.runs else (None,) * 3
        expected |= dict(zip(("full_n", "full_nll_sum", "full_correct"), full)) | {"paired": str(full[0] is not None)}
        check(row, expected)


def test_equal_budget_and_its_ties(case):
    again, report = case
    rows = rows_of(report, "equal_budget")
    for row in rows:
        model, length = row["setting"], int(row["length"])
        rivals = [one for one in rows if (one["setting"], one["budget"]) == (model, row["budget"])]
        best = min(rivals, key=lambda one: again.quality(model, one["policy"], length)["ppl_ratio"])["policy"]
        expected = dict(again.quality(model, row["policy"], length)) | {"best": str(row["policy"] == best)}
        expected |= {"behind_best_low_percent": None, "behind_best_high_percent": None, "tied_with_best": None}
        ends = again.ends(model, row["policy"], length, beside=best)
        if row["policy"] == best:
            expected["tied_with_best"] = "False"
        elif ends["spread"] == "interval":
            low, high = ends["ppl_change"]
            expected |= {"behind_best_low_percent": 100 * low, "behind_best_high_percent": 100 * high}
            expected["tied_with_best"] = str(bool(low <= 0 <= high))
        check(row, expected)


def test_along_the_text(case):
    again, report = case
    for row in rows_of(report, "along_the_text"):
        model, policy, budget, width = row["setting"], row["policy"], int(row["budget"]), int(row["width"])
        index = int(row["position"]) // width
        loss, full = again.along(model, policy, budget, width, index)
        check(
            row,
            {
                "setting": model, "policy": policy, "budget": budget, "width": width,
                "position": min(index * width + width // 2, again.longest),
                "nll_nats": loss, "excess_nats": loss - full,
                "trained_context": again.first(model, policy)["trained_context"],
            },
        )  # fmt: skip


def test_latency_and_what_is_cut_from_it(case):
    again, report = case
    for name in ("latency", "context", "throughput", "eviction"):
        for row in rows_of(report, name):
            expected = again.speed(row["setting"], int(row["context"]), int(row["batch"]), row["contender"])
            if name in ("context", "throughput"):  # full and DynamicCache stand beside each budget
                expected = expected | {"budget": expected["budget"] or int(row["budget"])}
            check(row, expected)


def test_noise(case):
    again, report = case
    for row in rows_of(report, "noise"):
        check(row, again.noise(row["setting"], int(row["context"]), int(row["batch"])))


def beside(again, row):
    """Quality and speed of a row that has both, either or neither."""
    expected = {}
    if row.get("context"):
        expected |= again.speed(row["setting"], int(row["context"]), whole(row.get("batch", "")) or 1, row["policy"])
    if row.get("length"):
        expected |= again.quality(row["setting"], row["policy"], int(row["length"]))
    return expected


def test_tradeoff(case):
    again, report = case
    for row in rows_of(report, "tradeoff"):
        expected = beside(again, row)
        field, value = {"tpot": ("tpot_ratio", "tpot_ms"), "kv": (None, "kv_mb")}[row["axis"]]
        expected["x"] = expected[field] if field else expected["kv_percent"] / 100
        full = row["policy"] == "full"
        for end in ("low", "high"):
            source = f"{row['axis']}_band_{end}" if full else f"{field}_{end}"
            expected[f"x_{end}"] = expected[source] if field else None
        check(
            row,
            expected
            | {"value": expected[value], "axis": row["axis"]}
            | absent(row, "tpot_ratio", "tpot_verdict", "context", "batch"),
        )


def absent(row, *names):
    """Columns of speed that a row has not, where nothing was timed."""
    return {} if row["context"] else dict.fromkeys(names)


def missed(again, row):
    """Every column of the policy that is nearest to a card."""
    mine = again.quality(row["setting"], row["nearest_policy"], again.longest)
    found = {"nearest_policy": row["nearest_policy"], "nearest_spread": mine["spread"]}
    found["nearest_skip_layers"] = mine["skip_layers"]
    found |= {"nearest_change_percent": mine["ppl_change_percent"], "nearest_kv_percent": mine["kv_percent"]}
    found["nearest_high_percent"] = mine["ppl_change_high_percent"]
    names = {"context": "context", "batch": "batch", "tpot_ratio": "tpot_ratio", "tpot_low": "tpot_ratio_low"}
    names |= {"tpot_high": "tpot_ratio_high", "verdict": "tpot_verdict", "band_low": "tpot_band_low"}
    names["band_high"] = "tpot_band_high"
    speed = dict.fromkeys(names.values())
    if row["nearest_context"]:
        speed = again.speed(row["setting"], int(row["nearest_context"]), 1, row["nearest_policy"])
    return found | {f"nearest_{name}": speed[column] for name, column in names.items()}


def test_cards(case):
    again, report = case
    thresholds = {"answer": 5, "quality": 1, "speed": 5, "memory": 10}
    chosen = 0
    for row in rows_of(report, "cards"):
        assert float(row["threshold_percent"]) == thresholds[row["card"]]
        if row["policy"]:
            chosen += 1
            expected = beside(again, row)
            timed = [f"{name}{end}" for name in ("tpot_ratio", "ttft_ratio") for end in ("", "_low", "_high")]
            timed += ["tpot_verdict", "tpot_band_low", "tpot_band_high"]
            expected |= absent(row, "context", "batch", "rounds_n", *timed)
            expected |= {name: None for name in row if name.startswith("nearest") or name == "let_in_percent"}
            check(row, expected | {"kv_saved_percent": 100 - expected["kv_percent"]})
        else:
            shown = {name for name, value in row.items() if value}
            told = {name for name in shown if not name.startswith("nearest")} - {"let_in_percent"}
            assert told == {"setting", "card", "threshold_percent", "why"}
            if row["nearest_policy"]:
                check(
                    {name: row[name] for name in row if name.startswith("nearest")},
                    missed(again, row),
                )
    assert chosen or not again.runs


def test_published(case):
    again, report = case
    columns = {
        "PPL, mean of documents": ("ppl_mean", "ppl_mean_{}"),
        "accuracy, %": ("accuracy_percent", "accuracy_{}_percent"),
        "PPL": ("ppl_corpus", "ppl_corpus_{}"),
        "PPL change, %": ("ppl_mean_change_percent", "ppl_mean_change_{}_percent"),
        "accuracy change, %": ("accuracy_change_percent", "accuracy_change_{}_percent"),
    }
    for row in rows_of(report, "published"):
        published = float(row["published"])
        theirs = ("model", "documents", "tokens", "start_size", "budget", "published")  # from the data files
        expected = {name: row[name] for name in theirs}
        expected["tolerance"] = 0.5 if "change" in row["metric"] else 0.02 * abs(published)
        expected |= dict.fromkeys(("setting", "policy", "length", "our_documents", "ours", "ours_low", "ours_high"))
        expected["difference_percent"] = None
        if row["ours"]:
            mine = again.quality(row["setting"], row["policy"], int(row["length"]))
            ours, ends = columns[row["metric"]]
            expected |= {name: mine[name] for name in ("setting", "policy", "length")} | {
                "our_documents": mine["documents"]
            }
            expected |= {"ours": mine[ours], "difference_percent": 100 * (mine[ours] / published - 1)}
            if "change" not in row["metric"] or mine["spread"] == "interval":
                expected |= {f"ours_{end}": mine[ends.format(end)] for end in ("low", "high")}
        check(row, expected)


def test_published_latency(case):
    again, report = case
    for row in rows_of(report, "published_latency"):
        mine = again.speed(row["setting"], int(row["context"]), int(row["batch"]), row["policy"])
        expected = {name: mine[name] for name in ("setting", "policy", "context", "batch", "budget", "start_size")}
        expected |= {name: row[name] for name in ("model", "tokens", "published")}
        if row["metric"].startswith("TTFT"):
            ends = {"low": mine["ttft_ratio_low"], "high": mine["ttft_ratio_high"]}
            expected |= {"ours": mine["ttft_ratio"], "n": mine["prefills_n"], **ends}
        else:
            ends = {"low": 1 / mine["tpot_ratio_high"], "high": 1 / mine["tpot_ratio_low"]}
            expected |= {"ours": 1 / mine["tpot_ratio"], "n": mine["rounds_n"], **ends}
        expected["difference_percent"] = 100 * (expected["ours"] / float(row["published"]) - 1)
        check(row, expected)


def test_no_table_is_forgotten(case):
    _, report = case
    quality = {
        "perplexity",
        "documents",
        "by_budget",
        "equal_budget",
        "position_modes",
        "length",
        "sinks",
        "along_the_text",
    }
    speed = {"latency", "noise", "context", "throughput", "eviction"}
    both = {"tradeoff", "cards", "published", "published_latency"}
    assert {path.stem for path in (report / "tables").glob("*.csv")} == quality | speed | both
