"""Numbers and answers in words: how digits are printed, and the sentences made from the rows of `answer.sql`.

Decides nothing: which policy is named is the query's choice, and the numbers are its columns.
"""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Format = Callable[[Any], str]
NONE = "–"


def fixed(digits: int, sign: bool = False, unit: str = "") -> Format:
    """A formatter with that many decimals, a true minus, and a dash for what is not known."""

    def show(value: Any) -> str:
        if value is None:
            return NONE
        text = f"{value:{'+' if sign else ''},.{digits}f}"
        return text.replace("-", "−") + unit

    return show


def ppl(value: Any) -> str:
    """A perplexity: two decimals, none once it is a thousand or more."""
    return fixed(2 if value is None or value < 1000 else 0)(value)


change = fixed(1, sign=True, unit="\u00a0%")
points = fixed(2, sign=True)
percent = fixed(1, unit="\u00a0%")
whole = fixed(0)


def megabytes(value: Any) -> str:
    """A memory in MB as a number, or in kB with its unit where that would be printed as zero."""
    return fixed(1, unit="\u00a0kB")(1000 * value) if value is not None and 0 < value < 0.05 else fixed(1)(value)


def with_unit(value: Any) -> str:
    """The same with its unit always."""
    text = megabytes(value)
    return text if text.endswith("kB") else f"{text}\u00a0MB"


def none_measurable(row: Row) -> bool:
    """Whether the spread of a change in perplexity holds zero, so that it is neither a loss nor a gain."""
    low, high = row["ppl_change_low_percent"], row["ppl_change_high_percent"]
    return low is not None and high is not None and low <= 0 <= high and (low, high) != (0, 0)


def plain(value: Any) -> str:
    """Text, or a dash for nothing."""
    return NONE if value is None or value == "" else str(value)


def between(low: Any, high: Any, show: Format) -> str:
    """An interval in small print; nothing when there is none."""
    if low is None or high is None:
        return ""
    return " … ".join(show(end).rstrip("\u00a0%") for end in (low, high))


def times(ratio: Any, low: Any = None, high: Any = None) -> str:
    """A ratio as a multiple, with its interval in brackets if there is one; a narrow interval earns a third digit."""
    if low is None or high is None:
        return f"{ratio:.{2 if ratio >= 0.1 else 3}f}\u00a0×"
    digits = 3 if high - low < 0.02 else 2
    return f"{ratio:.{digits}f}\u00a0× [{low:.{digits}f}, {high:.{digits}f}]"


def tokens_of(row: Row) -> str:
    """Where a latency was measured: its context, and its batch unless that is one."""
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return f"{row['context']:,} tokens of context{batch}"


def growth(skip_layers: str) -> str:
    """Why a policy's memory is not bounded although it has a budget; nothing when all its layers evict."""
    if not skip_layers:
        return ""
    layers = skip_layers.split(",")
    return f"layers {', '.join(layers)} never evict" if len(layers) > 1 else f"layer {skip_layers} never evicts"


def caveat(skip_layers: str) -> str:
    """What must follow the name or the memory of a policy that has a budget and no bound; nothing for any other."""
    return " (memory grows with the text)" if skip_layers else ""


def with_caveat(rows: list[Row], name: str) -> list[Row]:
    """Rows with that caveat behind their policy, which is in the field `name`."""
    return [row | {name: row[name] + caveat(row["skip_layers"])} for row in rows]


def keeps(row: Row) -> str:
    """What the policy of an answer row keeps, for readers who meet its name for the first time."""
    unbounded = growth(row["skip_layers"])
    return kept(row) + (f" Its memory grows with the text all the same: {unbounded}." if unbounded else "")


def kept(row: Row) -> str:
    """What the layers that evict keep: in the policy's own words where sinks and the last tokens are not all of it."""
    budget, first = row["budget"], row["start_size"]
    if row["recent_size"] is None:
        fields = f", chosen by its rule ({row['policy_fields']})" if row["policy_fields"] else ""
        return f"It keeps {budget:,} tokens{fields}."
    if not first:
        return f"It keeps the last {budget:,} tokens."
    sinks = "token" if first == 1 else f"{first} tokens"
    return f"It keeps the first {sinks} of the text (the attention sinks) and the last {row['recent_size']:,}."


def answer(row: Row, several: bool, speed: Row | None = None) -> Row:
    """The answer for one setting: a headline and what else a reader should know.

    speed: what `speed_words.beside_quality` adds.
    """
    added = speed or {"headline": "", "more": []}
    where = f"For {row['setting']}: " if several else ""
    if row["guesses"]:
        return guessing(row, where)
    cost = f"{change(row['ppl_change_percent'])} perplexity"
    against = f"{cost} against the full cache"
    if none_measurable(row):
        spread = between(row["ppl_change_low_percent"], row["ppl_change_high_percent"], change)
        cost = against = f"no measurable difference in perplexity ({spread}\u00a0%)"
    length, tolerance = f"{row['length']:,} tokens", f"{row['tolerance_percent']:g}\u00a0%"
    at_length = f"{length}{caveat(row['skip_layers'])}"
    memory = f"{percent(row['kv_percent'])} of the KV memory at {at_length}"
    if row["qualifies"]:
        headline = f"{where}take {row['policy']}: {against}, with {memory}{added['headline']}."
        tried = (
            "It is the smallest budget tried."
            if row["smallest_tried"]
            else f"No smaller budget tried stays within {tolerance}."
        )
        why = f"{keeps(row)} {tried}"
    else:
        headline = f"{where}no policy tried stays within {tolerance} of the full cache’s perplexity."
        why = f"The closest is {row['policy']}: {cost}, with {memory}. {keeps(row)}"
    more = [why, *filter(None, added["more"])]
    if row["tight_policy"] and row["tight_policy"] != row["policy"]:
        squeezed = f"{change(row['tight_change_percent'])} with {percent(row['tight_kv_percent'])} of the memory"
        squeezed += caveat(row["tight_skip_layers"])
        more.append(f"At {row['tight_budget']:,} tokens the best is {row['tight_policy']}: {squeezed}.")
    if row["sinks_budget"]:
        bare, kept = change(row["bare_change_percent"]), change(row["sinks_change_percent"])
        less = (
            f"With {row['sinks_budget']:,} tokens and no attention sink, {row['bare_policy']} is at {bare} perplexity"
        )
        more.append(f"{less}; {row['sinks_policy']}, which keeps as many, is at {kept}.")
    return {"setting": row["setting"], "headline": capital(headline), "more": more, "tiles": []}


def guessing(row: Row, where: str) -> Row:
    """The answer for a model whose full cache does no better than guessing: there is nothing to recommend by."""
    headline = f"{where}nothing to choose by: with the full cache the model’s perplexity is {ppl(row['full_ppl'])}"
    why = (
        f"Its vocabulary has {row['vocab_size']:,} tokens; a model that only guesses, as one with random weights does, "
    )
    why += "has about that perplexity, so no policy can make it worse. Sweep a trained model."
    return {
        "setting": row["setting"],
        "headline": capital(f"{headline}, little better than guessing."),
        "more": [why],
        "tiles": [],
    }


def capital(text: str) -> str:
    """Text with its first letter raised, the rest untouched."""
    return text[:1].upper() + text[1:]
