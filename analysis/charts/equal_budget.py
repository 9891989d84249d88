"""Which method stays closest to the full cache at the same budget: one line a method, one panel a budget."""

import altair as alt

from analysis.charts.axes import change_axis, middle
from analysis.charts.forest import LINE, forest
from analysis.charts.marks import (
    CHANGE,
    CORPUS,
    Figure,
    Row,
    budget_title,
    groups,
    legend_of,
    most_budgets,
    panel,
    spoken,
    tips,
)
from analysis.words.wording import change, with_caveat

FIELD = "ppl_change_percent"


def equal_budget(rows: list[Row]) -> Figure:
    """The change against full with its spread, best first, ties with the best named."""
    rows = with_caveat(rows, "policy")
    x = change_axis(alt.X, FIELD, "perplexity against full", rows)
    tooltip = tips(("policy:N", "policy", ""), CORPUS, CHANGE, ("spread:N", "whisker", ""))
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        placed = [row | {"label": change(row[FIELD]) + (", tie" if row["tied_with_best"] else "")} for row in mine]
        layers = forest(placed, FIELD, x, middle(x["scale"]), 0, tooltip)
        about = "perplexity of each method against the full cache’s in per cent, best first:"
        about += spoken(mine, "policy", FIELD, "+.1f", " %")
        panels.append(panel(setting, budget_title(size), layers, about, LINE * len(mine)))
    return Figure(panels, legend_of(row["series"] for row in rows), most_budgets(rows), named=True)
