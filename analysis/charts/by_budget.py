"""What a larger budget buys: perplexity and accuracy against the full cache's, over the budget."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import bound, change_axis, linear_axis, log2_x
from analysis.charts.marks import Figure, Row
from analysis.words.wording import with_caveat

HEIGHT = 230
DODGE, SPAN = 1.035, 1.16  # between neighbouring series at one budget, whose whiskers stand side by side; between all
MEASURES = (
    ("ppl_change_percent", "perplexity against full, %", "lower", change_axis),
    ("accuracy_change_points", "accuracy against full, points", "higher", linear_axis),
)


def by_budget(rows: list[Row]) -> Figure:
    """Two panels for each setting, full as a rule across each."""
    rows = with_caveat(rows, "policy")
    legend = marks.legend_of(rows)
    panels = []
    for (setting,), mine in marks.groups(rows, "setting"):
        order = [name for name, _ in legend if any(row["series"] == name for row in mine)]
        for field, title, better, axis in MEASURES:
            known = [placed(row, order) for row in mine if row[field] is not None]
            if not known:
                continue
            x = log2_x("budget", "budget, tokens (log scale)", known)
            x = alt.X("place:Q", title=x["title"], scale=x["scale"], axis=x["axis"])
            y = axis(alt.Y, field, "", known)
            shown = [(f"{bound(field, end)}:Q", word, "+.2f") for end, word in (("low", "from"), ("high", "to"))]
            tooltip = marks.tips(marks.POLICY, marks.CORPUS, (f"{field}:Q", title, "+.2f"), *shown)
            layers = [*marks.rule(alt.Y, field, 0.0, "full"), marks.lines(known, x, y, legend)]
            layers += marks.points(known, x, y, legend, tooltip)
            about = f"{title} against the budget, {better} is better:" + marks.spoken(known, field, ".3g", "")
            panels.append(marks.panel(setting, title, layers, about, HEIGHT))
    return Figure(panels, legend, min(2, len(panels)))


def placed(row: Row, order: list[str], field: str = "budget", span: float = SPAN) -> Row:
    """The row with the place at which it is drawn: its budget, or another field, moved aside a little by its series."""
    step = min(DODGE, span ** (1 / max(1, len(order) - 1)))
    return row | {"place": row[field] * step ** (order.index(row["series"]) - (len(order) - 1) / 2)}
