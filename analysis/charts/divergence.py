"""How far predictions are from the full cache's: the tail of the distribution, and where in the text it lies."""

from typing import Any

import altair as alt

from analysis.charts import marks
from analysis.charts.along_the_text import position_x, sparse
from analysis.charts.axes import SHARE as PERCENTS
from analysis.charts.axes import change_axis, log_scale
from analysis.charts.marks import Figure, Row

SHARE, FAR = "share_percent", "far_percent"
FEWEST = 10  # tokens that a share in the tail is of at least: that of fewer is chance, and lines cross


def tail(rows: list[Row]) -> Figure:
    """The share of tokens whose KL is at least so many nats, both axes logarithmic; a panel a budget."""
    rows = [row for row in rows if row["n"] >= FEWEST] or rows
    legend = marks.legend_of(rows)
    tooltip = marks.tips(
        marks.POLICY,
        ("kl_nats:Q", "KL at least, nats", ".4~g"),
        (f"{SHARE}:Q", "tokens, %", ".3~g"),
        ("n:Q", "tokens", ",d"),
    )
    panels = []
    for setting, size, mine, whole in marks.by_budgets(rows):
        x = log_axis(alt.X, "kl_nats", "KL from the full cache, nats", whole, "~g")
        y = log_axis(alt.Y, SHARE, "tokens at least that far away", whole, "~g", " %")
        layers = [marks.lines(mine, x, y, legend, tooltip), *marks.points(sparse(mine), x, y, legend, tooltip, size=55)]
        about = "the share of tokens at least so many nats from the full cache, by policy; lower is better"
        panels.append(marks.panel(setting, marks.budget_title(size), layers, about))
    return Figure(panels, legend, marks.most_budgets(rows))


def far(rows: list[Row]) -> Figure:
    """The share of tokens more than a tenth of a nat from full along the text; a rule where the budget is full."""
    legend = marks.legend_of(rows)
    tooltip = marks.tips(marks.POLICY, ("position:Q", "position", ",d"), (f"{FAR}:Q", "tokens, %", ".2f"))
    panels = []
    for setting, size, mine, whole in marks.by_budgets(rows):
        context, last = mine[0]["trained_context"], max(row["position"] for row in whole)
        y = change_axis(alt.Y, FAR, "tokens beyond 0.1 nats", whole, PERCENTS, above=2.5 if context < last else 1.5)
        layers = [marks.lines(mine, position_x(), y, legend, tooltip)]
        layers += marks.points(sparse(mine), position_x(), y, legend, size=55, clip=True)
        layers += marks.rule(alt.X, "position", size, "budget full", size > last / 2)
        if context < last:
            layers += marks.rule(alt.X, "position", context, "trained context ends", context > last / 2, line_of_text=1)
        zoom = {"zoom_from": 0, "zoom_to": round(1.01 * last)}
        about = "the share of tokens more than a tenth of a nat from the full cache, along the text, by policy"
        panels.append(marks.panel(setting, marks.budget_title(size), layers, about, signals=zoom))
    return Figure(panels, legend, marks.most_budgets(rows))


def log_axis(channel: Any, field: str, title: str, rows: list[Row], form: str, unit: str = "") -> Any:
    """A log axis around a field's values, named at powers of ten."""
    scale, _ = log_scale([row[field] for row in rows if row[field] > 0], 10, 0.03)
    words = f"format(datum.value, '{form}') + '{unit}'"
    axis = alt.Axis(values=[10.0**power for power in range(-6, 4)], labelExpr=words, grid=True)
    return channel(f"{field}:Q", title=f"{title} (log scale)", scale=scale, axis=axis)
