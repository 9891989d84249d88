"""How many attention sinks are enough: perplexity by the number of sinks, which share one budget with recent tokens."""

from typing import Any

import altair as alt

from analysis.charts.axes import change_axis
from analysis.charts.marks import (
    CHANGE,
    CORPUS,
    Figure,
    Row,
    groups,
    lines,
    panel,
    rule,
    spoken,
    tips,
    values,
    whiskers,
)
from analysis.charts.theme import BUDGET_STYLES

FIELD = "ppl_change_percent"


def sinks(rows: list[Row]) -> Figure:
    """Points without a line, as numbers of sinks are tried one by one; budgets in greys, as colours are methods'."""
    sizes = sorted({row["budget"] for row in rows})
    legend = [(f"budget {size:,}", BUDGET_STYLES[index % len(BUDGET_STYLES)]) for index, size in enumerate(sizes)]
    panels = []
    for (setting,), every in groups(rows, "setting"):
        mine = [row | {"of": f"budget {row['budget']:,}", "sinks": str(row["start_size"])} for row in every]
        counts = [str(one) for one in sorted({row["start_size"] for row in mine})]
        axis = alt.Axis(labelAngle=0)
        x = alt.X(
            "sinks:O", title="sinks, inside the same budget", sort=counts, axis=axis, scale=alt.Scale(padding=0.4)
        )
        y = change_axis(alt.Y, FIELD, "perplexity against full", mine)
        _, points = lines(values(mine), x, y, "of", legend)
        tooltip = tips(("policy:N", "policy", ""), CORPUS, CHANGE)
        layers: list[Any] = rule({FIELD: 0.0}, "full", horizontal=True)
        layers += [*whiskers(mine, FIELD, x, y, legend, by="of"), points.encode(tooltip=tooltip)]
        about = "perplexity against the full cache’s, in per cent, by the number of attention sinks at equal budget:"
        panels.append(panel(setting, "", layers, about + spoken(mine, "policy", FIELD, "+.1f", " %")))
    return Figure(panels, legend, min(3, len(panels)))
