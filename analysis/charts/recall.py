"""How far back a policy recalls: answers right by the distance to their fact, and loss where a text repeats itself."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import linear_axis, log2_x
from analysis.charts.by_budget import placed
from analysis.charts.marks import Figure, Row

RECALLED, EXTRA = "recalled_percent", "extra_nats"


def recall(rows: list[Row]) -> Figure:
    """The share of answers that are right, full beside the policies of each budget."""
    ends = [(f"recalled_{end}_percent:Q", word, ".1f") for end, word in (("low", "from"), ("high", "to"))]
    counts = [("recalled:Q", "right", ",d"), ("answers:Q", "of answers", ",d")]
    share = ("distance:Q", "distance", ",d"), (f"{RECALLED}:Q", "right, %", ".1f")
    axis = alt.Axis(tickCount=5, grid=True, labelExpr="datum.value + ' %'")
    y = alt.Y(f"{RECALLED}:Q", title="answers right", scale=alt.Scale(domain=[-2, 102], nice=False), axis=axis)
    tooltip = marks.tips(marks.POLICY, *share, *ends, *counts)
    return by_distance(rows, y, "from the fact to its answer, tokens (log scale)", tooltip)


def repeats(rows: list[Row]) -> Figure:
    """Loss over full's on tokens that end a repeated stretch."""
    title = "loss over full’s, nats per token"
    y = linear_axis(alt.Y, EXTRA, title, rows)
    losses = (f"{EXTRA}:Q", title, "+.3f"), ("full_nll_nats:Q", "full’s loss", ".3f"), ("scored:Q", "tokens", ",d")
    tooltip = marks.tips(marks.POLICY, ("distance:Q", "distance from", ",d"), *losses)
    return by_distance(rows, y, "since it stood there last, tokens (log scale; up to twice as many)", tooltip)


def by_distance(rows: list[Row], y: alt.Y, title: str, tooltip: list[alt.Tooltip]) -> Figure:
    """A panel for each budget, which is a rule in it; points at one distance stand side by side, for their whiskers."""
    legend, panels = marks.legend_of(rows), []
    for setting, size, mine, whole in marks.by_budgets(rows):
        order = [name for name, _ in legend if any(row["series"] == name for row in mine)]
        x = log2_x("distance", title, whole)
        x = alt.X("place:Q", title=x["title"], scale=x["scale"], axis=x["axis"])
        drawn = [placed(row, order, "distance") for row in mine]
        layers = [marks.lines(drawn, x, y, legend), *marks.points(drawn, x, y, legend, tooltip)]
        if size:
            layers += marks.rule(alt.X, "place", size, "budget", 2 * size > max(row["distance"] for row in whole))
        about = f"{y['title']} by distance, one line a policy:{marks.spoken(mine, marks.field_of(y), '.3g', '')}"
        panels.append(marks.panel(setting, marks.budget_title(size) if size else "no fixed budget", layers, about))
    return Figure(panels, legend, marks.most_budgets(rows))
