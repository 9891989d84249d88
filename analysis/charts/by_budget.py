"""What a larger budget buys: perplexity and accuracy against the full cache's, over the budget."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import change_axis, linear_axis, log2_x
from analysis.charts.marks import Figure, Row
from analysis.numbers.order import by
from analysis.words.wording import with_caveat

HEIGHT = 230
MEASURES = (
    ("ppl_change_percent", "perplexity against full, %", "lower", change_axis),
    ("accuracy_change_points", "accuracy against full, points", "higher", linear_axis),
)


def by_budget(rows: list[Row]) -> Figure:
    """Two panels for each setting, full as a rule across each."""
    rows = with_caveat(rows, "policy")
    legend = marks.legend_of(rows)
    panels = []
    for setting, whole in by(rows, "setting").items():
        placed = marks.side_by_side(whole, legend, "budget")
        for field, title, better, axis in MEASURES:
            known = [row for row in placed if row[field] is not None]
            if not known:
                continue
            x = log2_x("budget", "budget, tokens (log scale)", known, at="place")
            y = axis(alt.Y, field, "", known)
            value = (f"{field}:Q", title, "+.2f")
            tooltip = marks.tips(marks.POLICY, marks.CORPUS, value, *marks.interval(field))
            layers = [*marks.rule(alt.Y, field, 0.0, "full"), marks.lines(known, x, y, legend)]
            layers += marks.points(known, x, y, legend, tooltip)
            about = f"{title} against the budget, {better} is better:" + marks.spoken(known, field, ".3g", "")
            panels.append(marks.panel(setting, title, layers, about, HEIGHT))
    return Figure(panels, legend, min(2, len(panels)))
