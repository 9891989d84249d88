"""How many attention sinks are enough: perplexity by the number of sinks, which share one budget with recent tokens."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import change_axis
from analysis.charts.marks import Figure, Row
from analysis.charts.theme import budget_style
from analysis.numbers.order import by

FIELD = "ppl_change_percent"


def sinks(rows: list[Row]) -> Figure:
    """Points without a line, as numbers of sinks are tried one by one; budgets in greys, as colours are methods'."""
    sizes = sorted({row["budget"] for row in rows})
    legend = [(f"budget {size:,}", budget_style(place)) for place, size in enumerate(sizes)]
    tooltip = marks.tips(marks.POLICY, marks.CORPUS, marks.CHANGE)
    panels = []
    for setting, every in by(rows, "setting").items():
        mine = [row | {"of": f"budget {row['budget']:,}", "sinks": str(row["start_size"])} for row in every]
        counts = [str(one) for one in sorted({row["start_size"] for row in mine})]
        x = alt.X("sinks:O", title="sinks, inside the same budget", sort=counts)
        x = x.axis(labelAngle=0).scale(padding=0.4)
        y = change_axis(alt.Y, FIELD, "perplexity against full", mine)
        layers = [*marks.rule(alt.Y, FIELD, 0.0, "full"), *marks.points(mine, x, y, legend, tooltip, by="of")]
        about = "perplexity against the full cache’s, in per cent, by the number of attention sinks at equal budget:"
        panels.append(marks.panel(setting, "", layers, about + marks.spoken(mine, FIELD)))
    return Figure(panels, legend, min(3, len(panels)))
