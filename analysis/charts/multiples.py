"""Small multiples over the budget: what a larger cache buys, one panel a quantity, the same series in each."""

from dataclasses import dataclass
from typing import Any

import altair as alt

from analysis.charts.axes import change_axis, ends, log2_x, log_y, ratio_axis
from analysis.charts.marks import (
    Figure,
    Panel,
    Row,
    groups,
    legend_of,
    lines,
    panel,
    rule,
    spoken,
    tips,
    values,
    whiskers,
)
from analysis.words.wording import with_caveat

HEIGHT = 210
DODGE, SPAN = 1.035, 1.16  # between neighbouring series at one budget, whose whiskers stand side by side; between all


SIGNED = alt.Axis(tickCount=5, labelExpr="datum.value ? format(datum.value, '+~g') : '0'")


@dataclass(frozen=True)
class Measure:
    """One panel: the field, its title, what its axis is (change, points, ratio or amount) and which way is better."""

    field: str
    title: str
    axis: str
    better: str


MEASURES = (
    Measure("ppl_ratio", "perplexity against full, %", "change", "lower"),
    Measure("points", "accuracy against full, points", "points", "higher"),
    Measure("kv_mb", "KV memory, MB", "amount", "lower"),
    Measure("tpot_ratio", "time per token ÷ full’s", "ratio", "lower"),
    Measure("ttft_ratio", "time to first token ÷ full’s", "ratio", "lower"),
    Measure("throughput", "output tokens per second", "amount", "higher"),
)


def multiples(rows: list[Row]) -> Figure:
    """Six panels for each setting, fewer where a kind of cell was not run."""
    rows = with_caveat(rows, "policy")
    legend = legend_of(row["series"] for row in rows if row["budget"] is not None)
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        order = [name for name, _ in legend if any(row["series"] == name for row in mine)]
        bounded = [placed(row, order) for row in mine if row["budget"] is not None]
        full = next((row for row in mine if row["budget"] is None), None)
        panels += [one(setting, measure, bounded, full, legend) for measure in MEASURES if known(measure, bounded)]
    return Figure(panels, legend, min(3, len(panels)))


def known(measure: Measure, rows: list[Row]) -> bool:
    """Whether the measure has a value at all."""
    return any(row[measure.field] is not None for row in rows)


def placed(row: Row, order: list[str]) -> Row:
    """The row with the place at which it is drawn: its budget, moved aside a little by its series."""
    step = min(DODGE, SPAN ** (1 / max(1, len(order) - 1)))
    return row | {"place": row["budget"] * step ** (order.index(row["series"]) - (len(order) - 1) / 2)}


def one(setting: str, measure: Measure, rows: list[Row], full: Row | None, legend: list[Any]) -> Panel:
    """One panel, full as a rule across it."""
    field = measure.field
    mine = [row | {f"{field}_{end}": row.get(f"{field}_{end}") for end in ("low", "high")} for row in rows]
    mine = [row for row in mine if row[field] is not None]
    level = {"change": 1.0, "ratio": 1.0, "points": 0.0}.get(measure.axis, full[field] if full else None)
    x = log2_x("budget", "budget, tokens (log scale)", mine)
    x = alt.X("place:Q", title=x["title"], scale=x["scale"], axis=x["axis"])
    y = axis_of(measure, mine, level)
    layers = rule({field: level}, "full", horizontal=True) if level is not None else []
    layers += [*whiskers(mine, field, x, y, legend), *lines(values(mine), x, y, "series", legend)]
    form = {"change": ".3f", "points": "+.2f", "ratio": ".3f", "amount": ",.4~g"}[measure.axis]
    shown = [("policy:N", "policy", ""), (f"{field}:Q", measure.title.replace(", %", " (ratio)"), form)]
    if measure.axis != "amount":
        shown += [(f"{field}_low:Q", "from", form), (f"{field}_high:Q", "to", form)]
    layers[-1] = layers[-1].encode(tooltip=tips(*shown))
    about = f"{measure.title} against the budget, {measure.better} is better:"
    return panel(
        setting, f"{measure.title}{where(measure, mine[0])}", layers, about + spoken(mine, "policy", field), HEIGHT
    )


def axis_of(measure: Measure, rows: list[Row], level: float | None) -> Any:
    """The measure's axis; its title is the panel's, above it."""
    field = measure.field
    if measure.axis == "change":
        return change_axis(alt.Y, field, "", rows)
    if measure.axis == "ratio":
        return ratio_axis(alt.Y, field, "", rows, 1.2)
    if measure.axis == "amount":
        return log_y(field, "", [*rows, {field: level}] if level is not None else rows, 1.5)
    found = [0.0, *ends(rows, field, f"{field}_low", f"{field}_high")]
    room = 0.08 * (max(found) - min(found) or 1)
    scale = alt.Scale(domain=[min(found) - room, max(found) + room], nice=False)
    return alt.Y(f"{field}:Q", title="", scale=scale, axis=SIGNED)


def where(measure: Measure, row: Row) -> str:
    """At which context and batch a panel's values were taken."""
    if measure.field == "throughput":
        return f" · batch {row['packed']}, {row['packed_context']:,} tokens"
    if measure.axis == "ratio":
        return f" · {row['context']:,} tokens"
    return f" · {row['kv_tokens']:,} tokens" if measure.field == "kv_mb" else ""
