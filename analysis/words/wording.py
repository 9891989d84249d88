"""Numbers and names in words: how digits, changes, ratios, intervals and policies are printed. Decides nothing."""

from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]
Format = Callable[[Any], str]
NONE = "–"
SAME = "no measurable difference"
NOT_IDLE = "machine not idle"
PLAIN = "streaming_llm"  # sinks and the newest tokens: what any choice of older tokens must beat


def fixed(digits: int, sign: bool = False, unit: str = "") -> Format:
    """A formatter with that many decimals, a true minus, and a dash for what is not known."""

    def show(value: Any) -> str:
        return NONE if value is None else f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−") + unit

    return show


change = fixed(1, sign=True, unit="\u00a0%")
points = fixed(2, sign=True)
percent = fixed(1, unit="\u00a0%")
whole = fixed(0)


def ppl(value: Any) -> str:
    """A perplexity: two decimals, none once it is a thousand or more."""
    return fixed(2 if value is None or value < 1000 else 0)(value)


def megabytes(value: Any) -> str:
    """A memory in MB as a number, or in kB with its unit where that would be printed as zero."""
    return fixed(1, unit="\u00a0kB")(1000 * value) if value is not None and 0 < value < 0.05 else fixed(1)(value)


def with_unit(value: Any) -> str:
    """The same with its unit always."""
    text = megabytes(value)
    return text if text.endswith("kB") else f"{text}\u00a0MB"


def plain(value: Any) -> str:
    """Text, or a dash for nothing."""
    return NONE if value is None or value == "" else str(value)


def nats(value: Any) -> str:
    """A divergence: three significant digits."""
    if value is None or not value:
        return NONE if value is None else "0"
    return f"{value:#.3g}".rstrip(".") if value >= 1e-3 else f"{value:.1e}"


def counted(number: int, word: str) -> str:
    """So many of a thing."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """Names as a sentence lists them."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def capital(text: str) -> str:
    """Text with its first letter raised, the rest untouched."""
    return text[:1].upper() + text[1:]


def between(low: Any, high: Any, show: Format) -> str:
    """An interval in small print; nothing when there is none."""
    if low is None or high is None:
        return ""
    return " … ".join(show(end).rstrip("\u00a0%") for end in (low, high))


def bracketed(value: str, ends: str) -> str:
    """A value with its interval in brackets, if there is one."""
    return f"{value} [{ends.replace(' … ', ', ')}]" if ends else value


def bound(field: str, end: str) -> str:
    """The field that holds the `low` or `high` end of another's interval: its unit stays last."""
    stem, _, unit = field.rpartition("_")
    return f"{stem}_{end}_{unit}" if unit in ("percent", "points") else f"{field}_{end}"


def with_ends(row: Row, field: str, show: Format) -> str:
    """A field's value with its interval in brackets, if there is one."""
    return bracketed(show(row[field]), between(row[bound(field, "low")], row[bound(field, "high")], show))


def ratio_and_ends(ratio: Any, low: Any, high: Any) -> tuple[str, str]:
    """A ratio as a multiple, and its interval if there is one; a narrow interval earns a third digit."""
    if low is None or high is None:
        return f"{ratio:.{2 if ratio >= 0.1 else 3}f}\u00a0×", ""
    digits = 3 if high - low < 0.02 else 2
    return f"{ratio:.{digits}f}\u00a0×", between(low, high, fixed(digits))


def times(ratio: Any, low: Any = None, high: Any = None) -> str:
    """The same as one text."""
    return bracketed(*ratio_and_ends(ratio, low, high))


def pace(row: Row, phase: str = "tpot") -> tuple[str, str]:
    """The time per token against full's, or to the first token, and its interval."""
    return ratio_and_ends(*(row[f"{phase}_ratio{end}"] for end in ("", "_low", "_high")))


def paced(row: Row, phase: str = "tpot") -> str:
    """The same as one text, or that no difference can be told."""
    return told(bracketed(*pace(row, phase)), row[f"{phase}_verdict"] == "same")


def told(text: str, same: bool) -> str:
    """A difference, after the words that there is none if it cannot be told from none."""
    return f"{SAME}: {text}" if same else text


def tokens_of(row: Row) -> str:
    """Where a latency was measured: its context, and its batch unless that is one."""
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return f"{row['context']:,} tokens of context{batch}"


def busy(row: Row) -> str:
    """In brackets, to stand behind a time or where it was taken: that the machine was not idle, and what it did."""
    return f" ({NOT_IDLE}: {row['busy']})" if row["busy"] else ""


def growth(skip_layers: str) -> str:
    """Why a policy's memory is not bounded although it has a budget; nothing when all its layers evict."""
    if not skip_layers:
        return ""
    layers = skip_layers.split(",")
    return f"layers {', '.join(layers)} never evict" if len(layers) > 1 else f"layer {skip_layers} never evicts"


def evicting(row: Row) -> int:
    """After how many tokens its first layer evicts; in tables of before that was known, after its budget."""
    return int(row.get("evicts_after") or row["budget"])


def caveat(skip_layers: str) -> str:
    """What must follow the name or the memory of a policy that has a budget and no bound; nothing for any other."""
    return " (memory grows with the text)" if skip_layers else ""


def with_caveat(rows: list[Row], name: str) -> list[Row]:
    """Rows with that caveat behind their policy, which is in the field `name`."""
    return [row | {name: row[name] + caveat(row["skip_layers"])} for row in rows]


def table(headings: list[str], rows: list[list[str]], texts: int, settings: list[str]) -> list[str]:
    """A Markdown table whose first columns are texts and whose others numbers; with each row's setting, if any."""
    kinds = ["---"] * texts + ["---:"] * (len(headings) - texts)
    if settings:
        headings, kinds = ["Model", *headings], ["---", *kinds]
        rows = [[setting, *row] for setting, row in zip(settings, rows)]
    return [f"| {' | '.join(headings)} |", f"|{'|'.join(kinds)}|", *(f"| {' | '.join(row)} |" for row in rows)]
