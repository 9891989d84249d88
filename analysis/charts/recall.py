"""How far back a policy recalls: answers right by the distance to their fact, and loss where a text repeats itself."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import linear_axis, log2_x
from analysis.charts.marks import Figure, Row

RECALLED, EXTRA = "recalled_percent", "extra_nats"


def recall(rows: list[Row]) -> Figure:
    """The share of answers that are right, full beside the policies of each budget."""
    counts = [("recalled:Q", "right", ",d"), ("answers:Q", "of answers", ",d")]
    share = ("distance:Q", "distance", ",d"), (f"{RECALLED}:Q", "right, %", ".1f")
    axis = alt.Axis(tickCount=5, grid=True, labelExpr="datum.value + ' %'")
    y = alt.Y(f"{RECALLED}:Q", title="answers right", scale=alt.Scale(domain=[-2, 102], nice=False), axis=axis)
    tooltip = marks.tips(marks.POLICY, *share, *marks.interval(RECALLED, ".1f"), *counts)
    return by_distance(rows, y, "from the fact to its answer, tokens (log scale)", tooltip)


def repeats(rows: list[Row]) -> Figure:
    """Loss over full's on tokens that end a repeated stretch."""
    title = "loss over full’s, nats per token"
    y = linear_axis(alt.Y, EXTRA, title, rows)
    losses = (f"{EXTRA}:Q", title, "+.3f"), ("full_nll_nats:Q", "full’s loss", ".3f"), ("scored:Q", "tokens", ",d")
    tooltip = marks.tips(marks.POLICY, ("distance:Q", "distance from", ",d"), *losses)
    return by_distance(rows, y, "since it stood there last, tokens (log scale)", tooltip)


def by_distance(rows: list[Row], y: alt.Y, title: str, tooltip: list[alt.Tooltip]) -> Figure:
    """A panel for each budget, a rule in it if any distance is near; points at one distance stand side by side."""
    legend, panels = marks.legend_of(rows), []
    for setting, size, mine, whole in marks.by_budgets(rows):
        near = [budget for budget in {row["budget"] for row in whole} if within(budget, whole)]
        x = log2_x("distance", title, whole, near, at="place")
        drawn = marks.side_by_side(mine, legend, "distance")
        layers = [marks.lines(drawn, x, y, legend), *marks.points(drawn, x, y, legend, tooltip)]
        if size in near:
            layers += marks.rule(alt.X, "place", size, "budget", 2 * size > max(row["distance"] for row in whole))
        about = f"{y['title']} by distance, one line a policy:{marks.spoken(mine, marks.field_of(y), '.3g', '')}"
        panels.append(marks.panel(setting, titled(size, whole), layers, about))
    return Figure(panels, legend, marks.most_budgets(rows))


def within(budget: int | None, rows: list[Row]) -> bool:
    """Whether a budget is at least half the shortest distance, and at most twice the longest: an axis shows it."""
    distances = [row["distance"] for row in rows]
    return budget is not None and min(distances) <= 2 * budget <= 4 * max(distances)


def titled(budget: int | None, rows: list[Row]) -> str:
    """A panel's title, which says where its budget has no place on the axis."""
    if not budget:
        return "no fixed budget"
    longest = max(row["distance"] for row in rows)
    beside = "" if within(budget, rows) else f", {'longer' if budget > longest else 'shorter'} than all distances"
    return marks.budget_title(budget) + beside
