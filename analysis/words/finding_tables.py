"""The tables of the pages in `docs/results`: headings, rows, and how many columns are text. Decides nothing."""

from typing import Any

from analysis.numbers.order import by
from analysis.words import claims
from analysis.words.findings import Frames, code, level, lost, lost_since
from analysis.words.protection import beside_random
from analysis.words.wording import change, evicting, fixed, nats, percent, whole, with_ends

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]], int]
VERDICTS = {"better": " **better**", "worse": " worse"}  # behind what a scorer loses, beside random


def budgets_table(frames: Frames) -> Table:
    """A line a policy, a pair of columns a budget."""
    sizes = by(frames["equal_budget"], "budget")
    series = by(frames["equal_budget"], "series")
    cells = {(row["series"], row["budget"]): row for row in frames["equal_budget"]}
    ranked = sorted(series, key=lambda name: min(row["ppl_change_percent"] for row in series[name]))
    rows = [
        [
            code(name),
            *(lost(cells[name, size]) + mark(cells[name, size]) if (name, size) in cells else "–" for size in sizes),
        ]
        for name in ranked
    ]
    return ["Policy", *(f"{whole(size)} tokens" for size in sizes)], rows, 1


def sinks_table(frames: Frames) -> Table:
    """A line a number of sinks, a column a budget."""
    sizes = by(frames["sinks"], "budget")
    cells = {(row["start_size"], row["budget"]): row for row in frames["sinks"]}
    starts = sorted({row["start_size"] for row in frames["sinks"]})
    rows = [
        [str(start), *(lost(cells[start, size]) if (start, size) in cells else "–" for size in sizes)]
        for start in starts
    ]
    return ["Sinks", *(f"{whole(size)} tokens" for size in sizes)], rows, 0


def positions_table(frames: Frames) -> Table:
    """A line a policy and way of numbering."""
    rows = [
        [code(row["base"]), row["variant"], lost(row), percent(row["kv_percent"])] for row in frames["position_modes"]
    ]
    return ["Policy", "Positions", "Perplexity against full", "KV memory of full’s"], rows, 2


def length_table(frames: Frames) -> Table:
    """A line a policy, a column a stretch between two lengths, of those beyond a budget, and one for all tokens."""
    beyond = [row for row in frames["length"] if row["length"] > evicting(row)]
    spans = sorted({(row["since"], row["length"]) for row in beyond})
    cells = {(row["policy"], row["length"]): row for row in beyond}
    last = spans[-1][1]
    rows = []
    for policy in by(beyond, "policy"):
        mine = [cells.get((policy, until)) for _, until in spans]
        rows.append([code(policy), *(lost_since(row) if row else "–" for row in mine), lost(cells[policy, last])])
    return ["Policy", *(f"{whole(since)} to {whole(until)}" for since, until in spans), f"all {whole(last)}"], rows, 1


def tail_table(frames: Frames) -> Table:
    """A line a policy: how far its predictions are from full's, on average and in the tail."""
    rows = [
        [
            code(row["policy"]),
            change(row["ppl_change_percent"]),
            with_ends(row, "kl_nats", nats),
            *(nats(row[name]) for name in ("kl_median_nats", "kl_p99_nats", "kl_p999_nats")),
            percent(row["same_top_percent"]),
        ]
        for row in frames["divergence"]
    ]
    return ["Policy", "PPL", "KL, mean", "median", "99 %", "99.9 %", "Same top token"], rows, 1


def protection_table(frames: Frames) -> Table:
    """A line a number of sinks and share of newest tokens, a column a scorer, and one for all but sinks the newest."""
    scorers = list(by(frames["protection"], "scorer"))
    rows = []
    for (sinks_kept, share), mine in by(frames["protection"], "start_size", "recent_percent").items():
        shown = {row["scorer"]: lost(row) + VERDICTS.get(beside_random(row), "") for row in mine}
        none = change(mine[0]["unscored_change_percent"])
        rows.append([str(sinks_kept), f"{share:.3g} %", *(shown.get(scorer, "–") for scorer in scorers), none])
    return ["Sinks", "Newest", *scorers, "no scorer"], rows, 0


def stream_table(frames: Frames) -> Table:
    """A line a policy and part of the text: its loss and memory."""
    rows = [
        [
            code(row["policy"]),
            f"{whole(row['since'])} to {whole(row['until'])}",
            level(row),
            whole(row["peak_mb"]),
            fixed(1)(row["kv_mb"]),
        ]
        for row in frames["parts"]
    ]
    return ["Policy", "Tokens", "Nats per token", "MB beyond the model", "of which KV cache"], rows, 2


def recall_table(frames: Frames) -> Table:
    """A line a policy, a column a distance: how many answers are right."""
    distances = sorted({row["distance"] for row in frames["recall"]})
    rows = []
    for policy, mine in by(frames["recall"], "policy").items():
        right = {row["distance"]: f"{row['recalled']} of {row['answers']}" for row in mine}
        rows.append([code(policy), *(right.get(distance, "–") for distance in distances)])
    return ["Right answers", *map(whole, distances)], rows, 1


def seed_table(frames: Frames) -> Table:
    """A line a number of the seed's: what it printed, the nearest of ours, and the verdict."""
    rows = [
        [
            row["method"] + (f", {row['start_size']} sinks" if row["start_size"] else ""),
            row["metric"],
            code(row["policy"]) if row["policy"] else "–",
            f"{row['verdict']}: {row['reason']}",
            whole(row["budget"]),
            whole(row["tokens"]),
            fixed(2)(row["published"]),
            with_ends(row, "ours", fixed(2)),
        ]
        for row in frames["published"]
        if row["source"].startswith("seed")
    ]
    return ["Method", "Metric", "Our run", "Verdict", "Budget", "Tokens", "Seed", "Ours"], rows, 4


def claims_table(frames: Frames) -> Table:
    """A line a claim of the seed's: what it said, what is measured here, and why the two differ."""
    found = claims.measured(frames["published_latency"], frames["equal_budget"])
    rows = [[said, "<br>".join(lines), why] for (said, why), lines in zip(claims.CLAIMS, found, strict=True)]
    return ["Claim", "Measured here", "Why it differs"], rows, 3


def mark(row: Row) -> str:
    """The best of a budget, and what cannot be told from it."""
    return " **best**" if row["best"] else " tie" if row["tied_with_best"] else ""
