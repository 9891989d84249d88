"""The cards of the answer in words: whom each is for, its threshold, what it takes, and the Python that uses it.

Made from the rows of `cards.sql`, which decides; nothing here does.
"""

import json
from dataclasses import dataclass
from typing import Any

from analysis.words import speed, wording
from analysis.words.answers import keeps
from analysis.words.metric import cost, metric_of, none_measurable
from analysis.words.wording import (
    NOT_IDLE,
    SAME,
    between,
    bracketed,
    caveat,
    change,
    counted,
    fixed,
    nats,
    percent,
    times,
    tokens_of,
)

Row = dict[str, Any]
Fact = tuple[str, str, str]  # label, value, small print
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Case:
    """Whose card it is: its title, its rule with a place for the threshold, and the flag that changes that."""

    title: str
    rule: str
    flag: str


CASES = {
    "answer": Case("Recommended", "{}; of these, the smallest budget", "--within"),
    "quality": Case("Quality first", "{}; of these, least memory", "--quality-within"),
    "speed": Case("Speed first", "{}; of these, the fastest", "--within"),
    "memory": Case("Memory-limited", "at most {:g}\u00a0% of full’s KV memory; of these, {}", "--memory"),
}


def card(row: Row) -> Row:
    """One card: its case, then either a policy with its figures and its code, or why nothing qualifies."""
    case = CASES[row["card"]]
    threshold, metric = row["threshold"], metric_of(row)
    shown = {name: row[name] for name in ("policy", "why")}
    words = (threshold, metric.least) if row["card"] == "memory" else (metric.bound(metric.rule, threshold),)
    shown |= {"name": row["card"], "title": case.title, "rule": case.rule.format(*words)}
    shown |= {"flag": f"{case.flag} {threshold:g}", "counted": counted_in(row), "nearest": nearest(row)}
    if row["policy"] is None:
        return shown
    shown["said"] = f"{SAME} in {metric.named}" if none_measurable(row) else metric.spoken(row["cost"])
    return shown | {"keeps": keeps(row), "facts": [*quality(row), pace(row), memory(row)], "code": code(row)}


def counted_in(row: Row) -> str:
    """In what the number of a card's flag is, where the card's words are in another unit."""
    return "" if row["card"] == "memory" else metric_of(row).threshold


def nearest(row: Row) -> str:
    """What came nearest to a card that nothing fits, by how much it misses, and what would let it in."""
    if row["nearest_policy"] is None:
        return ""
    metric = metric_of(row)
    misses = metric.brief(row["nearest_cost"])
    if row["card"] == "memory":
        misses = f"{percent(row['nearest_kv_percent'])} of the memory"
    elif row["card"] == "quality" and row["nearest_spread"] == "interval":
        misses += f", up to {metric.brief(row['nearest_cost_high'])}"
    start = f"Nearest: {row['nearest_policy']}{caveat(row['nearest_skip_layers'])}, {misses}"
    if row["let_in"] is not None:
        return f"{start}; {CASES[row['card']].flag} {row['let_in']:g}{counted_in(row)} lets it in."
    ratio = times(row["nearest_tpot_ratio"], row["nearest_tpot_low"], row["nearest_tpot_high"])
    band = between(row["nearest_band_low"], row["nearest_band_high"], fixed(3))
    beside = f", where full against itself is at {band}" if band else ""
    further = "on an idle machine" if row["nearest_busy"] else "with longer --contexts or more --rounds"
    ratio += f" full’s time per token{wording.busy({'busy': row['nearest_busy']})}"
    return f"{start}, {ratio}{beside}; a sweep {further} tells more."


def quality(row: Row) -> list[Fact]:
    """What it costs by the metric that cards go by, and by the others in brief."""
    title, (value, ends) = metric_of(row).title, cost(row)
    documents = counted(row["paired_documents"], "document")
    if row["spread"] == "interval":
        sure = f"95\u00a0% interval {ends}" if ends else "no interval"
    else:
        sure = f"{ends} over {documents}" if row["paired_documents"] > 1 else f"{documents}, no interval"
    small = f"{sure}, {row['length']:,} tokens"
    beside = [] if row["kl_nats"] is None else [other_metric(row)]
    return [(title, SAME, f"{value}; {small}") if none_measurable(row) else (title, value, small), *beside]


def other_metric(row: Row) -> Fact:
    """What it costs by another metric than that of the cards, and in small print by the third."""
    lost = "Perplexity", change(row["ppl_change_percent"])
    kl = "KL from full", f"{nats(row['kl_nats'])}\u00a0nats"
    same = f"the same most likely token as full at {percent(row['same_top_percent'])} of tokens"
    if row["metric"] == "ppl":
        return (*kl, same)
    return (*lost, same if row["metric"] == "kl" else f"mean KL from full {kl[1]}")


def pace(row: Row) -> Fact:
    """The time per token against full's, and whether full differs from itself as much."""
    name = "Time per token"
    if not timed(row):
        if row["tpot_ratio"] is None:
            return name, NOT_MEASURED, ""
        widest = "" if row["full_after"] == row["budget"] else f", {row['full_after']:,} in its widest layer,"
        return name, NOT_MEASURED, f"its budget{widest} is not exceeded at {tokens_of(row)}"
    value, ends = wording.pace(row)
    band = f", full against itself {between(row['tpot_band_low'], row['tpot_band_high'], fixed(2))}" if ends else ""
    where = f"full’s; {speed.sureness(row)}{band}, {tokens_of(row)}"
    if row["busy"] and row["tpot_verdict"] != "same":
        unsure = "" if row["tpot_verdict"] else ": sweep again on an idle machine to be sure"
        return name, f"{value}, {NOT_IDLE}", f"{where}; {row['busy']}{unsure}"
    return (
        (name, SAME, f"{value} {where}{wording.busy(row)}") if row["tpot_verdict"] == "same" else (name, value, where)
    )


def timed(row: Row) -> bool:
    """Whether the policy was timed where it has to evict."""
    return row["tpot_ratio"] is not None and bool(row["is_full"])


def memory(row: Row) -> Fact:
    """The KV memory that is saved."""
    kept = f"{wording.with_unit(row['kv_mb'])} kept at {row['length']:,} tokens{caveat(row['skip_layers'])}"
    return "KV memory saved", percent(row["kv_saved_percent"]), kept


def code(row: Row) -> list[str]:
    """The lines of Python that use the card's policy, for a `model` at hand."""
    policy = json.dumps(row["policy"], ensure_ascii=False)
    return ["from kvstream import KVStreamCache, parse_policy", f"cache = KVStreamCache(model, parse_policy({policy}))"]


def too_few(rows: list[Row]) -> str:
    """What stands in place of an interval of quality, if documents are too few for one; of some, if of some."""
    told = [row for row in rows if row["spread"] and row["paired_documents"] > 1]
    few = [row["paired_documents"] for row in told if row["spread"] == "range"]
    if not few:
        return ""
    ranged = f"the range over {few[0]} documents, too few for an interval"
    return ranged if len(few) == len(told) else f"a 95\u00a0% interval, or {ranged}"


def table(rows: list[Row], several: bool) -> list[str]:
    """The cards as a Markdown table."""
    headings = ["Case", "Take", metric_of(rows[0]).heading if rows else "", "Time per token", "KV memory saved"]
    return wording.table(headings, [*map(line, rows)], 2, [row["setting"] for row in rows if several])


def line(row: Row) -> list[str]:
    """One card's line of the table."""
    shown = card(row)
    case = f"{shown['title']}: {shown['rule']} (`{shown['flag']}`{shown['counted']})"
    if row["policy"] is None:
        why = ". ".join(filter(None, (row["why"], shown["nearest"].rstrip("."))))
        return [case, f"nothing: {why}", *[wording.NONE] * 3]
    lost = wording.told(bracketed(*cost(row)), none_measurable(row))
    ratio = NOT_MEASURED
    if timed(row):
        ratio = f"{wording.paced(row)} at {row['context']:,}{wording.busy(row)}"
    return [case, f"`{row['policy']}`{caveat(row['skip_layers'])}", lost, ratio, percent(row["kv_saved_percent"])]
