"""The trade-off: perplexity against what a smaller cache saves, both against the full cache's.

One chart for each thing that may be saved: KV memory, which the answer speaks of, and time per token. The page switches
between them. As in the other charts, rows in, panels out, and nothing is computed.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import PER_CENT, bent, change_axis, ratio_axis
from analysis.charts.marks import Figure, Panel, Row
from analysis.charts.theme import INK, MUTED, RULE
from analysis.numbers.order import by
from analysis.words.metric import metric_of
from analysis.words.wording import tokens_of, with_caveat

HEIGHT = 430
FIELD = "cost"
SPAN = 1.35  # between the first and the last of the policies that take as much memory; budgets are mostly twice apart
ALIKE = 1.02  # between memory that counts as equal, as in `tradeoff.sql`: what keeps a share of its tokens holds fewer
# How costs are called along y, by metric.
NAMED = {
    "ppl": PER_CENT,
    "kl": ("format(datum.value / 100, '~g')", "0.01"),
    "top1": ("datum.value + ' %'", "1 %"),
}
# axis → (what the page calls it, title of x, the better corner, title of its value in tooltips)
AXES = {
    "kv": (
        "KV memory",
        "KV memory ÷ full’s (log scale; equal ones side by side)",
        "smaller and closer to full",
        "KV kept, MB",
    ),
    "tpot": (
        "time per token",
        "time per token ÷ full’s (log scale)",
        "faster and closer to full",
        "time per token, ms",
    ),
}


def tradeoff(axis: str) -> Callable[[list[Row]], Figure]:
    """The drawing of one of `AXES`."""

    def draw(rows: list[Row]) -> Figure:
        mine = with_caveat([row for row in rows if row["axis"] == axis], "policy")
        legend = marks.legend_of(rows)  # that of all axes, so that it stays when the reader switches
        panels = [one_setting(setting, group, axis, legend) for setting, group in by(mine, "setting").items()]
        return Figure(panels, legend if panels else [], min(2, len(panels)))

    return draw


def one_setting(setting: str, rows: list[Row], axis: str, legend: marks.Legend) -> Panel:
    """One panel: whiskers, the step line of what nothing beats, points with budgets, the better corner in words."""
    name, title, corner, value = AXES[axis]
    if axis == "kv":
        rows = [row for mine in as_large(rows) for row in marks.side_by_side(mine, legend, "x", SPAN)]
    x = ratio_axis(alt.X, "place" if axis == "kv" else "x", title, rows)
    metric = metric_of(rows[0])
    y = change_axis(alt.Y, FIELD, metric.axis, rows, NAMED[rows[0]["metric"]])
    marked = [
        {**row, "label": "full" if row["budget"] is None else f"{row['budget']:,}", "told": metric.scale * row[FIELD]}
        for row in rows
    ]
    front = alt.Chart(marks.values(row for row in marked if row["unbeaten"]))
    step = front.mark_line(interpolate="step-after", color=RULE, strokeWidth=1.5).encode(x=x, y=y)
    tooltip = marks.tips(
        marks.POLICY,
        *([] if rows[0]["metric"] == "ppl" else [("told:Q", metric.axis, ".3~g")]),
        marks.CHANGE,
        ("x:Q", f"{name} ÷ full’s", ".3f"),
        *marks.interval("x", ".3f"),
        ("value:Q", value, ",.4~g"),
        ("kv_percent:Q", "KV kept, % of full", ".1f"),
    )
    better = alt.Chart(marks.values([{"better": f"better: {corner}"}]))
    better = better.mark_text(align="left", baseline="bottom", color=MUTED, fontWeight="bold")
    better = better.encode(x=alt.XValue(8), y=alt.YValue(HEIGHT - 8), text=alt.Text("better:N"))
    layers = [step, *marks.points(marked, x, y, legend, tooltip, size=110), *labels(marked, x, y), better]
    where = f"at {rows[0]['length']:,} tokens" if axis == "kv" else f"at {tokens_of(rows[0])}"
    about = f"{metric.axis}, by {name}, itself against full’s:" + marks.spoken(rows, FIELD, "+.1f", metric.counted)
    return marks.panel(setting, f"{name} {where}", layers, about, HEIGHT)


def as_large(rows: list[Row]) -> list[list[Row]]:
    """Put together what takes nearly as much memory; rows come in its order."""
    found: list[list[Row]] = []
    for row in rows:
        if found and row["x"] <= ALIKE * found[-1][0]["x"]:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def labels(rows: list[Row], x: alt.X, y: alt.Y) -> list[Any]:
    """Each point's budget, above it and to the right; below it for full, whose neighbours are those hardest to tell."""
    found = []
    places: tuple[tuple[bool, Literal["bottom", "top"], int], ...] = ((False, "bottom", -5), (True, "top", 7))
    for full, baseline, shift in places:
        mine = [row for row in apart(rows) if (row["budget"] is None) == full]
        text = alt.Chart(marks.values(mine))
        text = text.mark_text(align="left", baseline=baseline, dx=7, dy=shift, color=INK, fontSize=11)
        text = text.encode(x=x, y=y, text=alt.Text("label:N"), opacity=marks.emphasis("series"))
        found += [text] if mine else []
    return found


def apart(rows: list[Row]) -> list[Row]:
    """Of rows of equal memory and label the topmost, and none whose label would lie upon the same one of another."""
    highest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        stack = highest.setdefault((row["label"], row["x"]), row)
        if row[FIELD] > stack[FIELD]:
            highest[row["label"], row["x"]] = row
    rows = list(highest.values())
    places = [(row["label"], math.log(row["x"]), bent(row[FIELD])) for row in rows]
    across, up = (0.06 * (max(ends) - min(ends)) for ends in list(zip(*places))[1:])
    found: list[tuple[str, float, float]] = []
    for label, x, y in places:
        if not any(label == one and abs(x - left) <= across and abs(y - low) <= up for one, left, low in found):
            found.append((label, x, y))
    return [row for row, place in zip(rows, places) if place in found]
