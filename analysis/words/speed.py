"""Speed and memory in words: sentences made from the rows of `speed.sql`, `noise.sql` and their like.

Says of a difference only what `differences.sql` supports, and nothing of a context that does not exceed the budget.
"""

from typing import Any

from analysis.words.wording import NONE, capital, caveat, change, fixed, percent, times, tokens_of, with_caveat

Row = dict[str, Any]


def verdict(row: Row) -> str:
    """What `differences.sql` says of the time per token: faster, slower or same; unsure where it says nothing."""
    return row["tpot_verdict"] or "unsure"


def pace(row: Row) -> str:
    """Time per token against full's with its interval, and where."""
    ratio = times(row["tpot_ratio"], row["tpot_ratio_low"], row["tpot_ratio_high"])
    few = "" if row["tpot_ratio_low"] is not None else f" ({row['rounds_n']} rounds: too few for an interval)"
    return f"{ratio.replace('×', '× full’s time per token')}{few} at {tokens_of(row)}"


def beside_quality(row: Row) -> Row:
    """What speed adds to the answer of a model with quality: the headline's end and sentences."""
    if unfilled(row):
        return {"headline": "", "more": [not_exceeded(row)]}
    ratio = times(row["tpot_ratio"]).replace("×", "× the time per token")
    joined = {"faster": "and", "slower": "but"}.get(verdict(row), "and about")
    busy = " (machine slightly busy)" if row["busy"] else ""
    said = f", {joined} {ratio} at {row['context']:,}{busy}"
    if verdict(row) == "same":
        said = f", and no measurable difference in time per token at {row['context']:,}{busy}"
    return {"headline": said, "more": [f"{sentence(row)} {again_words(row)}"]}


def sentence(row: Row) -> str:
    """How fast a policy decodes, plainly."""
    kind = verdict(row)
    start = {
        "faster": f"It decodes faster than the full cache: {pace(row)}.",
        "slower": f"It decodes slower than the full cache: {pace(row)}.",
        "same": f"Its decoding cannot be told from the full cache’s: {pace(row)}.",
        "unsure": f"It takes {pace(row)}.",
    }[kind]
    if kind in ("slower", "same") and row["context"] <= 4 * row["budget"]:
        start += f" With {row['budget']:,} of {row['context']:,} tokens kept, there is little to save."
    if row["contexts"] and row["contexts"] > 1 and row["contexts_not_faster"]:
        faster = row["contexts"] - row["contexts_not_faster"]
        start += (
            f" Of {row['contexts']} contexts timed that exceed its budget, it is measurably faster at "
            f"{faster if faster else 'none'}."
        )
    return start


def not_exceeded(row: Row) -> str:
    """Why nothing is said of a policy's speed."""
    return (
        f"Its speed is not known: the longest context timed, {row['context']:,} tokens, does not exceed its budget of "
        f"{row['budget']:,}. A sweep with longer --contexts tells."
    )


def unfilled(row: Row) -> bool:
    """Whether a bounded policy was timed where it still keeps every token."""
    return bool(row["budget"]) and row["context"] <= row["budget"]


def again_words(row: Row) -> str:
    """The A/A pair of the same cell, and what else the machine did."""
    if row["again_tpot_ratio"] is None:
        return ""
    ratio = times(row["again_tpot_ratio"], row["again_tpot_low"], row["again_tpot_high"])
    busy = f"; machine slightly busy: {row['busy']}" if row["busy"] else ""
    return f"(Full against itself in the same run: {ratio}{busy}.)"


def sureness(row: Row) -> str:
    """The interval in small print."""
    if row["tpot_ratio_low"] is None:
        return f"; {row['rounds_n']} rounds, no interval"
    ends = times(row["tpot_ratio"], row["tpot_ratio_low"], row["tpot_ratio_high"]).partition("[")[2].rstrip("]")
    return f"; 95\u00a0% interval {ends.replace(', ', ' … ')}"


def alone(row: Row, several: bool) -> Row:
    """The answer for a model of which only speed was measured: the fastest policy, and no recommendation."""
    where = f"For {row['setting']}: " if several else ""
    unknown = "What a policy costs in perplexity these records do not say, so none is recommended."
    if unfilled(row):
        headline = (
            f"{where}no policy was timed where it evicts: the longest context, {row['context']:,} tokens, exceeds "
        )
        headline += "no budget."
        more = ["A sweep with longer --contexts or smaller --budgets tells.", unknown]
        return {"setting": row["setting"], "headline": capital(headline), "more": more, "tiles": []}
    kind = verdict(row)
    tied = f"As fast, as far as can be told: {', '.join(row['tied'][:4])}." if row["tied"] else ""
    if kind in ("faster", "unsure"):
        headline = f"{where}{row['policy']} decodes fastest: {pace(row)}."
    else:
        headline = f"{where}no policy measured here decodes faster than the full cache at {tokens_of(row)}."
    nearest = "" if kind in ("faster", "unsure") else f"The nearest is {row['policy']}: {pace(row)}."
    grows = caveat(row["skip_layers"])
    keeps = f"It keeps {percent(row['kv_percent'])} of the full KV memory there{grows}."
    more = [" ".join(filter(None, (nearest, tied))), f"{keeps} {again_words(row)}", unknown]
    tiles = [
        (times(row["tpot_ratio"]), f"full’s time per token, {row['policy']}{sureness(row)}"),
        (percent(row["kv_percent"]), f"of the full KV memory, at {tokens_of(row)}{grows}"),
    ]
    headline = headline if where or headline.startswith(row["policy"]) else capital(headline)
    return {"setting": row["setting"], "headline": headline, "more": [line for line in more if line], "tiles": tiles}


def again(row: Row) -> Row:
    """One line of the A/A table."""
    number, share = fixed(2), fixed(1, unit="\u00a0%")
    steal = None if row["steal"] is None else 100 * row["steal"]
    machine = [
        f"load {number(row['load_before'])} → {number(row['load_after'])}",
        f"others {number(row['others'])} cores" if row["others"] is not None else "",
        f"steal {share(steal)}" if steal is not None else "",
        f"governor {row['governor']}" if row["governor"] else "",
    ]
    shown = {
        name: times(row[f"again_{name}_ratio"], row[f"again_{name}_low"], row[f"again_{name}_high"])
        if row[f"again_{name}_ratio"] is not None
        else NONE
        for name in ("tpot", "ttft")
    }
    return row | shown | {"drift": change(row["drift_percent"]), "machine": ", ".join(filter(None, machine))}


def again_span(rows: list[Row]) -> Row | None:
    """How far the A/A ratios of all cells stray; None if there is none."""
    found = [row["again_tpot_ratio"] for row in rows if row["again_tpot_ratio"] is not None]
    return {"cells": len(found), "low": f"{min(found):.3f}", "high": f"{max(found):.3f}"} if found else None


DEARER = {"tpot": "slower", "kv": "larger"}


def fronts(rows: list[Row]) -> dict[str, list[Row]]:
    """Per axis and setting: which policies nothing measured beats on both axes, with what else the machine did."""
    found: dict[str, list[Row]] = {axis: [] for axis in DEARER}
    for axis, setting in dict.fromkeys((row["axis"], row["setting"]) for row in rows):
        mine = [row for row in rows if row["setting"] == setting and row["axis"] == axis]
        where = f"{setting}: " if len({row["setting"] for row in rows}) > 1 else ""
        front = ", ".join(row["policy"] for row in with_caveat(mine, "policy") if row["unbeaten"])
        sure = "" if axis == "kv" else "measurably "
        said = f"{where}worth a choice: {front}. For any other there is a better one that is not {sure}{DEARER[axis]}."
        said += f" Machine slightly busy: {mine[0]['busy']}." if mine[0]["busy"] else ""
        found[axis].append({"setting": setting, "said": said if where else capital(said)})
    return found
