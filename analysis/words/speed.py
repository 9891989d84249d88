"""Speed and memory in words: sentences made from the rows of `speed.sql`, `noise.sql` and their like.

Says of a difference only what `differences.sql` supports, and nothing of a context that does not exceed the budget.
Where the machine was not idle it says so beside each time.
"""

from typing import Any

from analysis.words import wording
from analysis.words.wording import (
    NONE,
    NOT_IDLE,
    SAME,
    bracketed,
    capital,
    caveat,
    change,
    fixed,
    percent,
    times,
    tokens_of,
)

AGAIN = (
    "Other work may slow one cache more than another, which full against itself does not show: for a time to rely on, "
    "sweep again on an idle machine, with another --out."
)
EAGER = "eager"
WAYS = {
    EAGER: "operation by operation",
    "compiled": "as compiled operations",
    "CUDA graph": "as one CUDA graph",
    "compiled, CUDA graph": "as one CUDA graph of compiled operations",
}

Row = dict[str, Any]


def verdict(row: Row) -> str:
    """What `differences.sql` says of the time per token: faster, slower or same; unsure where it says nothing."""
    return row["tpot_verdict"] or "unsure"


def pace(row: Row) -> str:
    """Time per token against full's with its interval, where, and what else the machine did."""
    ratio = bracketed(*wording.pace(row)).replace("×", "× full’s time per token")
    few = "" if row["tpot_ratio_low"] is not None else f" ({row['rounds_n']} rounds: too few for an interval)"
    return f"{ratio}{few} at {tokens_of(row)}{wording.busy(row)}"


def sureness(row: Row) -> str:
    """The interval of the time per token in small print."""
    _, ends = wording.pace(row)
    return f"95\u00a0% interval {ends}" if ends else f"{row['rounds_n']} rounds, no interval"


def beside_quality(row: Row) -> tuple[str, str]:
    """What speed adds to the answer of a model with quality: the headline's end, and sentences."""
    if unfilled(row):
        return "", (
            f"Its speed is not known: the longest context timed, {row['context']:,} tokens, does not exceed "
            f"{budget(row)}. A sweep with longer --contexts tells."
        )
    ratio = times(row["tpot_ratio"]).replace("×", "× the time per token")
    joined = {"faster": f"and {ratio}", "slower": f"but {ratio}", "same": f"and {SAME} in time per token"}
    where = f" at {row['context']:,}" + (f" ({row['latency_setting']})" if row["several_settings"] else "")
    end = f", {joined.get(verdict(row), f'and about {ratio}')}{where}{f' ({NOT_IDLE})' if row['busy'] else ''}"
    if row["busy"] and verdict(row) == "unsure":
        end = f"; on a machine that was not idle ({row['busy']}) it took {ratio}{where}"
    return end, f"{sentence(row)} {again_words(row)}"


def sentence(row: Row) -> str:
    """How fast a policy decodes, plainly."""
    kind = verdict(row)
    said = {
        "faster": f"It decodes faster than the full cache: {pace(row)}.",
        "slower": f"It decodes slower than the full cache: {pace(row)}.",
        "same": f"Its decoding cannot be told from the full cache’s: {pace(row)}.",
        "unsure": f"It took {pace(row)}. {AGAIN}" if row["busy"] else f"It takes {pace(row)}.",
    }[kind]
    if kind in ("slower", "same") and row["context"] <= 4 * row["budget"]:
        mean = "" if row["full_after"] == row["budget"] else " on average over layers"
        said += f" With {row['budget']:,} of {row['context']:,} tokens kept{mean}, there is little to save."
    if row["contexts"] and row["contexts"] > 1 and row["contexts_not_faster"]:
        faster = row["contexts"] - row["contexts_not_faster"] or "none"
        told = ", as far as other work lets it be told" if row["contexts_unsure"] else ""
        timed = f"{row['contexts']} contexts timed that exceed its budget{told}"
        said += f" Of {timed}, it is measurably faster at {faster}."
    return said


def unfilled(row: Row) -> bool:
    """Whether a bounded policy was timed where it still keeps every token."""
    return not row["filled"]


def budget(row: Row) -> str:
    """The budget that a context has to exceed before all layers evict."""
    widest = "" if row["full_after"] == row["budget"] else f", of which its widest layer has {row['full_after']:,}"
    return f"its budget of {row['budget']:,}{widest}"


def again_words(row: Row) -> str:
    """The A/A pair of the same cell."""
    ratio = again_ratio(row, "tpot")
    return "" if ratio == NONE else f"(Full against itself in the same run: {ratio}.)"


def again_ratio(row: Row, name: str) -> str:
    """The full cache's time against its own, by the name of what was timed, and the interval."""
    ratio, low, high = (row[f"again_{name}_{end}"] for end in ("ratio", "low", "high"))
    return NONE if ratio is None else times(ratio, low, high)


def launched(row: Row) -> str:
    """How a GPU was given the steps of a cell; nothing where each operation was launched by itself, as on CPUs."""
    others = row["launched_otherwise"] or []
    if row["launched"] in (None, EAGER) and not others:
        return ""
    apart = "".join(f", that of {one['label']} {way(one['launched'])}" for one in others)
    return f"a step is launched {way(row['launched'])}{apart}, that of DynamicCache {way(EAGER)}"


def way(name: str) -> str:
    """A way of launching a step, as records name it, in words."""
    return WAYS.get(name, name)


def alone(row: Row, several: bool) -> Row:
    """The answer for a model of which only speed was measured: the fastest policy, and no recommendation."""
    where = f"For {row['setting']}: " if several else ""
    if unfilled(row):
        longest = f"the longest context, {row['context']:,} tokens, exceeds no budget"
        headline = capital(f"{where}no policy was timed where it evicts: {longest}.")
        more = ["A sweep with longer --contexts or smaller --budgets tells."]
    else:
        if verdict(row) == "faster" or (verdict(row) == "unsure" and row["tpot_ratio"] < 1):
            least = f"{'took' if row['busy'] else 'takes'} the least time of those measured"
            takes = "decodes fastest" if verdict(row) == "faster" else least
            headline, nearest = f"{where}{row['policy']} {takes}: {pace(row)}.", ""
        else:
            takes = "took less time per token than" if row["busy"] else "decodes faster than"
            slower = f"{where}no policy measured here {takes} the full cache at {tokens_of(row)}"
            slower += f"{wording.busy(row)}."
            headline, nearest = capital(slower), f"The nearest is {row['policy']}: {pace(row)}."
        told, unsure = row["tied"] and not row["busy"], row["busy"] and verdict(row) == "unsure"
        tied = f"As fast, as far as can be told: {', '.join(row['tied'][:4])}." if told else ""
        grows = caveat(row["skip_layers"])
        keeps = f"It keeps {percent(row['kv_percent'])} of the full KV memory there{grows}."
        more = [" ".join(filter(None, (nearest, tied))), AGAIN if unsure else "", f"{keeps} {again_words(row)}"]
    more.append(
        f"What a policy costs in perplexity stands beside {row['quality_setting']}."
        if row["quality_setting"]
        else "What a policy costs in perplexity these records do not say, so none is recommended."
    )
    return {"setting": row["setting"], "headline": headline, "more": [*filter(None, more)]}


def again(row: Row) -> Row:
    """One line of the A/A table."""
    number = fixed(2)
    machine = [
        f"load {number(row['load_before'])} → {number(row['load_after'])}",
        f"others {number(row['others'])} cores" if row["others"] is not None else "",
        f"steal {percent(100 * row['steal'])}" if row["steal"] is not None else "",
        f"governor {row['governor']}" if row["governor"] else "",
    ]
    shown = {name: again_ratio(row, name) for name in ("tpot", "ttft")}
    words = {"drift": change(row["drift_percent"]), "machine": ", ".join(filter(None, machine)), "steps": launched(row)}
    return row | shown | words
