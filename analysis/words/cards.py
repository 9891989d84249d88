"""The cards of the answer in words: whom each is for, its threshold, what it takes, and the Python that uses it.

Made from the rows of `cards.sql`, which decides; nothing here does.
"""

import json
from dataclasses import dataclass
from typing import Any

from analysis.words.wording import (
    Format,
    between,
    caveat,
    change,
    fixed,
    keeps,
    none_measurable,
    percent,
    times,
    tokens_of,
    with_unit,
)

Row = dict[str, Any]
NOT_MEASURED = "not measured"
NO_DIFFERENCE = "no measurable difference"


@dataclass(frozen=True)
class Case:
    """Whose card it is: its title, its rule with a place for the threshold, and the flag that changes that."""

    title: str
    rule: str
    flag: str


CASES = {
    "answer": Case("Recommended", "perplexity within {:g}\u00a0% of full’s; of these, the smallest budget", "--within"),
    "quality": Case(
        "Quality first", "perplexity within {:g}\u00a0% of full’s; of these, least memory", "--quality-within"
    ),
    "speed": Case("Speed first", "perplexity within {:g}\u00a0% of full’s; of these, the fastest", "--within"),
    "memory": Case("Memory-limited", "at most {:g}\u00a0% of full’s KV memory; of these, least perplexity", "--memory"),
}


def card(row: Row) -> Row:
    """One card: its case, then either a policy with its figures and its code, or why nothing qualifies."""
    case = CASES[row["card"]]
    threshold = row["threshold_percent"]
    shown = {
        "name": row["card"],
        "title": case.title,
        "rule": case.rule.format(threshold),
        "flag": f"{case.flag} {threshold:g}",
        "policy": row["policy"],
        "why": row["why"],
        "nearest": nearest(row),
    }
    if row["policy"] is None:
        return shown
    return shown | {"keeps": keeps(row), "facts": [perplexity(row), pace(row), memory(row)], "code": code(row)}


def nearest(row: Row) -> str:
    """What came nearest to a card that nothing fits, by how much it misses, and what would let it in."""
    if row["nearest_policy"] is None:
        return ""
    if row["card"] == "memory":
        misses = f"{percent(row['nearest_kv_percent'])} of the memory"
    elif row["card"] == "quality" and row["nearest_spread"] == "interval":
        misses = f"{change(row['nearest_change_percent'])}, up to {change(row['nearest_high_percent'])}"
    else:
        misses = change(row["nearest_change_percent"])
    start = f"Nearest: {row['nearest_policy']}{caveat(row['nearest_skip_layers'])}, {misses}"
    if row["let_in_percent"] is not None:
        return f"{start}; {CASES[row['card']].flag} {row['let_in_percent']:g} lets it in."
    pace = times(row["nearest_tpot_ratio"], row["nearest_tpot_low"], row["nearest_tpot_high"])
    band = between(row["nearest_band_low"], row["nearest_band_high"], fixed(3))
    beside = f", where full against itself is at {band}" if band else ""
    return f"{start}, {pace} full’s time per token{beside}; a sweep with longer --contexts or more --rounds tells more."


def change_of(row: Row) -> Format:
    """How its change of perplexity is printed: a narrow interval earns a second digit."""
    low, high = row["ppl_change_low_percent"], row["ppl_change_high_percent"]
    narrow = low is not None and high is not None and high - low < 0.2
    return fixed(2, sign=True, unit="\u00a0%") if narrow else change


def perplexity(row: Row) -> tuple[str, str, str]:
    """(label, value, small print) of the change in perplexity."""
    show = change_of(row)
    ends = between(row["ppl_change_low_percent"], row["ppl_change_high_percent"], show)
    documents = row["paired_documents"]
    none = none_measurable(row)
    if row["spread"] == "interval":
        sure = f"95\u00a0% interval {ends}" if ends else "no interval"
    else:
        sure = f"{ends} over {documents} documents" if documents > 1 else "1 document, no interval"
    value = show(row["ppl_change_percent"])
    small = f"{sure}, {row['length']:,} tokens"
    return ("Perplexity", NO_DIFFERENCE, f"{value}; {small}") if none else ("Perplexity", value, small)


def pace(row: Row) -> tuple[str, str, str]:
    """The same of the time per token against full's, which says whether full differs from itself as much."""
    name = "Time per token"
    if row["tpot_ratio"] is None:
        return (name, NOT_MEASURED, "")
    if row["context"] <= row["budget"]:
        return (name, NOT_MEASURED, f"its budget is not exceeded at {tokens_of(row)}")
    ratio = times(row["tpot_ratio"], row["tpot_ratio_low"], row["tpot_ratio_high"])
    value, _, ends = ratio.partition(" [")
    sure = (
        f"95\u00a0% interval {ends.rstrip(']').replace(', ', ' … ')}"
        if ends
        else f"{row['rounds_n']} rounds, no interval"
    )
    sure += f", full against itself {between(row['tpot_band_low'], row['tpot_band_high'], fixed(2))}" if ends else ""
    busy = f"; machine slightly busy: {row['busy']}" if row["busy"] else ""
    where = f"{sure}, {tokens_of(row)}{busy}"
    if row["tpot_verdict"] == "same":
        return (name, NO_DIFFERENCE, f"{value} full’s; {where}")
    return (name, value, f"full’s; {where}")


def memory(row: Row) -> tuple[str, str, str]:
    """The same of the KV memory that is saved."""
    kept = f"{with_unit(row['kv_mb'])} kept at {row['length']:,} tokens{caveat(row['skip_layers'])}"
    return ("KV memory saved", percent(row["kv_saved_percent"]), kept)


def code(row: Row) -> list[str]:
    """The lines of Python that use the card's policy, for a `model` at hand."""
    policy = json.dumps(row["policy"], ensure_ascii=False)
    return ["from kvstream import KVStreamCache, parse_policy", f"cache = KVStreamCache(model, parse_policy({policy}))"]


def table(rows: list[Row], several: bool) -> list[str]:
    """The cards as a Markdown table."""
    lines = [
        f"| {'Model | ' if several else ''}Case | Take | Perplexity against full | Time per token | KV memory saved |",
        f"|{'---|' if several else ''}---|---|---:|---:|---:|",
    ]
    for row in rows:
        shown = card(row)
        place = f"| {row['setting'] + ' | ' if several else ''}{shown['title']}: {shown['rule']} (`{shown['flag']}`) |"
        if row["policy"] is None:
            why = ". ".join(filter(None, (row["why"], shown["nearest"].rstrip("."))))
            lines.append(f"{place} nothing: {why} | – | – | – |")
            continue
        show = change_of(row)
        ends = between(row["ppl_change_low_percent"], row["ppl_change_high_percent"], show)
        cost = show(row["ppl_change_percent"]) + (f" [{ends.replace(' … ', ', ')}]" if ends else "")
        cost = f"{NO_DIFFERENCE}: {cost}" if none_measurable(row) else cost
        timed = row["tpot_ratio"] is not None and row["context"] > row["budget"]
        speed = times(row["tpot_ratio"], row["tpot_ratio_low"], row["tpot_ratio_high"]) if timed else NOT_MEASURED
        speed = f"{NO_DIFFERENCE}: {speed}" if timed and row["tpot_verdict"] == "same" else speed
        speed += f" at {row['context']:,}{' (machine slightly busy)' if row['busy'] else ''}" if timed else ""
        name = f"`{row['policy']}`{caveat(row['skip_layers'])}"
        lines.append(f"{place} {name} | {cost} | {speed} | {percent(row['kv_saved_percent'])} |")
    return lines
