"""The report's numbers by their definitions, from Parquet files in plain Python, and how its tables are read back.

No DuckDB, no SQL, no code of the report: what the tests of `analysis/` hold its numbers against.
"""

import csv
import html.parser
import json
import math
import re
import statistics

import pyarrow.parquet as pq


class Run:
    """One finished cell: its fields and its rows as Python lists."""

    def __init__(self, folder, commit):
        self.fields = commit["fields"]
        table = pq.read_table(folder / commit["file"])
        self.rows = sorted(zip(*(table[name].to_pylist() for name in ("position", "nll_nats", "correct"))))
        compared = "kl_nats" in table.schema.names
        names = ("position", "kl_nats", "same_top", "nll_nats")
        self.compared = sorted(zip(*(table[name].to_pylist() for name in names))) if compared else []
        self.table = table

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

    def comparable(self, model, policy, *prefixes):
        """Documents of which both the policy and full have as many losses within each of these first tokens."""
        mine, full = (
            {n: run.sums for (m, p, n), run in self.runs.items() if (m, p) == (model, one)} for one in (policy, "full")
        )
        return [
            name
            for name in self.documents(model, policy)
            if name in full and all(mine[name](1, end)[0] == full[name](1, end)[0] for end in prefixes)
        ]

    def piece(self, model, policy, names, width, index):
        """(n, loss) of these documents in one bin of the text."""
        sums = [self.runs[model, policy, name].sums(index * width, (index + 1) * width) for name in names]
        return sum(one[0] for one in sums), math.fsum(one[1] for one in sums)

    def totals(self, model, policy, length):
        """Each column of the main table that is a number."""
        mine = {name: self.runs[model, policy, name].sums(1, length) for name in self.documents(model, policy)}
        full = {name: self.runs[model, "full", name].sums(1, length) for name in self.documents(model, "full")}
        shared = self.comparable(model, policy, length)
        fields = [self.runs[model, policy, name].fields for name in mine]

        def nll(sums, names):
            return math.fsum(sums[name][1] for name in names) / sum(sums[name][0] for name in names)

        def hits(sums, names):
            return sum(sums[name][2] for name in names) / sum(sums[name][0] for name in names)

        def mean(sums, names):
            return math.fsum(math.exp(sums[name][1] / sums[name][0]) for name in names) / len(names)

        ratio = math.exp(nll(mine, shared) - nll(full, shared))
        compared = [row for name in shared for row in self.runs[model, policy, name].compared if row[0] < length]
        return {
            "kl_nats": math.fsum(row[1] for row in compared) / len(compared) if compared else None,
            "same_top_percent": 100 * sum(row[2] for row in compared) / len(compared) if compared else None,
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
            "per_document": [math.exp(nll(mine, [name]) - nll(full, [name])) for name in shared],
        }


def answers_of(run):
    """Of each answer of a run, by position and distance: whether all its tokens were hits, how many, and their loss."""
    rows = {row[0]: row for row in run.rows}
    found = {}
    for position, tokens, distance in run.fields["answers"]:
        mine = [rows[place] for place in range(position, position + tokens)]
        found[position, distance] = all(row[2] for row in mine), tokens, math.fsum(row[1] for row in mine)
    return found


def repeats_of(run):
    """Positions that end five tokens which stood in the text before, with how far back they did last."""
    places, tokens = (run.table[name].to_pylist() for name in ("position", "token"))
    last, found = {}, {}
    for end in range(5, len(tokens) + 1):
        stretch, position = tuple(tokens[end - 5 : end]), places[end - 1]
        if stretch in last:
            found[position] = position - last[stretch]
        last[stretch] = position
    return found


def wilson(right, of, z=1.959964):
    """Wilson's interval of a share: the shares that differ from what was found by at most z of their own deviations."""
    middle, half = right + z * z / 2, z * math.sqrt(right * (of - right) / of + z * z / 4)
    return (middle - half) / (of + z * z), (middle + half) / (of + z * z)


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


class Timed:
    """One latency cell's numbers by their definitions."""

    def __init__(self, folder, record):
        self.cell, self.fields = record["cell"], record["fields"]
        self.contenders = {one["label"]: one for one in self.fields["contenders"]}
        self.samples = {}
        for row in pq.read_table(folder / record["file"]).to_pylist():
            self.samples.setdefault((row["policy"], row["phase"], row["round"]), []).append(row["seconds"])

    def rounds(self, label, phase):
        """Seconds of each round: of a prefill, or the mean of its steps, TPOT."""
        mine = {key[2]: times for key, times in self.samples.items() if key[:2] == (label, phase)}
        return [sum(mine[number]) / len(mine[number]) for number in sorted(mine)]

    def ratio(self, label, phase, against):
        """Median of the ratios within the rounds."""
        pairs = zip(self.rounds(label, phase), self.rounds(against, phase))
        return statistics.median(mine / other for mine, other in pairs)

    def percentile(self, label, share, least):
        """Of all gaps pooled, by linear interpolation; None from too few."""
        gaps = sorted(gap for key, gaps in self.samples.items() if key[:2] == (label, "step") for gap in gaps)
        place = share * (len(gaps) - 1)
        low = int(place)
        high = min(low + 1, len(gaps) - 1)
        return None if len(gaps) < least else 1000 * (gaps[low] + (place - low) * (gaps[high] - gaps[low]))

    def totals(self, label):
        """Each column of the latency table that is a number and no interval."""
        one, batch = self.contenders[label], self.fields["batch"]
        twin = self.twin(label)
        steps = self.rounds(label, "step")
        full = label == "full"
        return {
            "context": self.fields["context"],
            "batch": batch,
            "ttft_ms": 1000 * statistics.median(self.rounds(label, "ttft")),
            "ttft_ratio": 1.0 if full else self.ratio(label, "ttft", "full"),
            "tpot_ms": 1000 * statistics.median(steps),
            "tpot_ratio": 1.0 if full else self.ratio(label, "step", "full"),
            "itl_ms": self.percentile(label, 0.5, 1),
            "itl_p90_ms": self.percentile(label, 0.9, 64),
            "itl_p99_ms": self.percentile(label, 0.99, 662),
            "throughput": statistics.median(batch / seconds for seconds in steps),
            "eviction_percent": 100 * (self.ratio(label, "step", twin) - 1) if twin else None,
            "kv_mb": one["kv_bytes"] / 1e6,
            "allocated_mb": one["kv_bytes_allocated"] / 1e6,
            "peak_mb": None if one["peak_bytes"] is None else one["peak_bytes"] / 1e6,
            "prefills_n": self.fields["prefills"],
            "rounds_n": self.fields["rounds"],
            "gaps_n": self.fields["rounds"] * self.fields["steps"],
        }

    def twin(self, label):
        """The contender that keeps as many bytes as a policy and evicts none, if any."""
        mine = self.contenders[label]
        twins = [one for one in self.contenders.values() if one["role"] == "without eviction"]
        same = [one["label"] for one in twins if one["kv_bytes"] == mine["kv_bytes"]]
        own = [one["label"] for one in twins if one["of"] == label]
        return next(iter(own + same), None) if mine["role"] == "policy" else None

    def drift(self):
        """Full's time per token in the last third of the rounds over that in the first, in per cent."""
        steps = self.rounds("full", "step")
        third = len(steps) // 3
        return 100 * (statistics.median(steps[-third:]) / statistics.median(steps[:third]) - 1)


def cells_of(folder):
    records = [
        json.loads(path.read_text()) for path in folder.glob("*.json") if re.fullmatch(r"\w{16}\.json", path.name)
    ]
    timed = [Timed(folder, one) for one in records if one["fields"]["kind"] == "latency"]
    return {(one.fields["model"], one.fields["context"], one.fields["batch"]): one for one in timed}


def page_of(report):
    return (report / "index.html").read_text(encoding="utf-8")


def summary_of(report):
    return (report / "summary.md").read_text(encoding="utf-8").replace("\u00a0", " ")


def answer_of(report):
    """The page's answer as HTML, with plain spaces."""
    return page_of(report).partition('id="answer"')[2].partition("</section>")[0].replace("\u00a0", " ")
