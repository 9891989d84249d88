"""Which method stays closest to the full cache at the same budget: one line a method, one panel a budget."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import change_axis
from analysis.charts.forest import forest
from analysis.charts.marks import Figure, Row
from analysis.words.wording import change, with_caveat

FIELD = "ppl_change_percent"


def equal_budget(rows: list[Row]) -> Figure:
    """The change against full with its spread, best first, ties with the best named."""
    rows = with_caveat(rows, "policy")
    x = change_axis(alt.X, FIELD, "perplexity against full", rows)
    tooltip = marks.tips(marks.POLICY, marks.CORPUS, marks.CHANGE, ("spread:N", "whisker", ""))
    legend, panels = marks.legend_of(rows), []
    for _, size, mine, _ in marks.by_budgets(rows):
        placed = [row | {"label": change(row[FIELD]) + (", tie" if row["tied_with_best"] else "")} for row in mine]
        about = "perplexity of each method against the full cache’s in per cent, best first:" + marks.spoken(
            mine, FIELD
        )
        panels.append(forest(marks.budget_title(size), placed, x, 0, tooltip, about, legend))
    return Figure(panels, legend, marks.most_budgets(rows), named=True)
