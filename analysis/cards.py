"""The three cards of the answer in words: whom each is for, its threshold, what it takes, and the Python that uses it.

Made from the rows of `cards.sql`, which decides; nothing here does.
"""

from dataclasses import dataclass
from typing import Any

from analysis.wording import Format, between, call, caveat, change, fixed, keeps, percent, times, tokens_of

Row = dict[str, Any]
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Case:
    """Whose card it is: its title, its rule with a place for the threshold, and the flag that changes that."""

    title: str
    rule: str
    flag: str


CASES = {
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
    }
    if row["policy"] is None:
        return shown
    return shown | {"keeps": keeps(row), "facts": [perplexity(row), pace(row), memory(row)], "code": code(row)}


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
    if row["spread"] == "interval":
        sure = f"95\u00a0% interval {ends}" if ends else "no interval"
    else:
        sure = f"{ends} over {documents} documents" if documents > 1 else "1 document, no interval"
    return ("Perplexity", show(row["ppl_change_percent"]), f"{sure}, {row['length']:,} tokens")


def pace(row: Row) -> tuple[str, str, str]:
    """The same of the time per token against full's; nothing that a busy machine measured stands as a number."""
    name = "Time per token"
    if row["tpot_ratio"] is None:
        return (name, NOT_MEASURED, "")
    if row["noisy"]:
        return (name, NOT_MEASURED, f"only on a busy machine: {row['noisy']}")
    ratio = times(row["tpot_ratio"], row["tpot_ratio_low"], row["tpot_ratio_high"])
    value, _, ends = ratio.partition(" [")
    sure = (
        f"95\u00a0% interval {ends.rstrip(']').replace(', ', ' … ')}"
        if ends
        else f"{row['rounds_n']} rounds, no interval"
    )
    early = "; its budget is not full there" if row["context"] <= row["budget"] else ""
    return (name, value, f"full’s; {sure}, {tokens_of(row)}{early}")


def memory(row: Row) -> tuple[str, str, str]:
    """The same of the KV memory that is saved."""
    kept = f"{fixed(1)(row['kv_mb'])} MB kept at {row['length']:,} tokens{caveat(row['skip_layers'])}"
    return ("KV memory saved", percent(row["kv_saved_percent"]), kept)


def code(row: Row) -> list[str]:
    """The lines of Python that use the card's policy, for a `model` at hand."""
    policy = call(row)
    names = ", ".join(sorted(("KVStreamCache", policy.partition("(")[0])))
    return [f"from kvstream import {names}", f"cache = KVStreamCache(model, {policy})"]


def table(rows: list[Row], several: bool) -> list[str]:
    """The cards as a Markdown table."""
    lines = [
        f"| {'Model | ' if several else ''}Case | Take | PPL against full | TPOT against full | KV memory saved |",
        f"|{'---|' if several else ''}---|---|---:|---:|---:|",
    ]
    for row in rows:
        shown = card(row)
        place = f"| {row['setting'] + ' | ' if several else ''}{shown['title']}: {shown['rule']} (`{shown['flag']}`) |"
        if row["policy"] is None:
            lines.append(f"{place} nothing: {row['why']} | – | – | – |")
            continue
        show = change_of(row)
        ends = between(row["ppl_change_low_percent"], row["ppl_change_high_percent"], show)
        cost = show(row["ppl_change_percent"]) + (f" [{ends.replace(' … ', ', ')}]" if ends else "")
        quiet = row["tpot_ratio"] is not None and not row["noisy"]
        speed = times(row["tpot_ratio"], row["tpot_ratio_low"], row["tpot_ratio_high"]) if quiet else NOT_MEASURED
        speed += f" at {row['context']:,}" if quiet else ""
        name = f"`{row['policy']}`{caveat(row['skip_layers'])}"
        lines.append(f"{place} {name} | {cost} | {speed} | {percent(row['kv_saved_percent'])} |")
    if few := next((row["paired_documents"] for row in rows if row["policy"] and row["spread"] == "range"), 0):
        lines.append(
            f"\nIn brackets behind PPL: the range over {few} document{'s' if few > 1 else ''}, too few for an interval."
        )
    return lines
