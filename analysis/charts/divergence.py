"""How far predictions are from the full cache's: the tail of the distribution."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import log_axis
from analysis.charts.marks import Figure, Row

SHARE = "share_percent"
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
        x = log_axis(alt.X, "kl_nats", "KL from the full cache, nats", whole)
        y = log_axis(alt.Y, SHARE, "tokens at least that far away", whole, " %")
        layers = marks.along_lines(mine, x, y, legend, tooltip)
        about = "the share of tokens at least so many nats from the full cache, by policy; lower is better"
        panels.append(marks.panel(setting, marks.budget_title(size), layers, about))
    return Figure(panels, legend, marks.most_budgets(rows))
