"""Forest plots: one line a series, its point, its whisker, its number in print beside it."""

from typing import Any, Literal

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import middle
from analysis.charts.marks import Legend, Panel, Row
from analysis.charts.theme import INK
from analysis.words.wording import bound

LINE = 30  # pixels of height a series takes
NAMES = alt.Axis(labelLimit=240, domain=False, ticks=False, labelPadding=8)  # of an axis that names what it shows


def forest(
    title: str, rows: list[Row], x: alt.X, origin: float | None, tooltip: Any, about: str, legend: Legend
) -> Panel:
    """A line per row in their order, each with its `label`; and a rule at `origin`, if any.

    legend: the whole figure's, as in a file its panels share one scale of colours.
    """
    field = marks.field_of(x)
    y = alt.Y("series:N", title=None, sort=[row["series"] for row in rows], axis=NAMES)
    layers = marks.points(rows, x, y, legend, tooltip, size=95, key=None)
    line = [] if origin is None else marks.rule(alt.X, field, origin)
    return marks.panel(rows[0]["setting"], title, [*line, *layers, *beside(rows, field, x, y)], about, LINE * len(rows))


def beside(rows: list[Row], field: str, x: alt.X, y: alt.Y) -> list[Any]:
    """The labels, on the roomier side of the whisker, neither covering it nor leaving the panel."""
    found = []
    sides: tuple[tuple[str, Literal["left", "right"], int], ...] = (("high", "left", 9), ("low", "right", -9))
    for end, align, shift in sides:
        mine = [row for row in rows if (center(row, field, x) <= middle(x["scale"])) == (align == "left")]
        # Where nothing is known of the spread, the label stands beside the point.
        placed = [
            row | {"end": row[field] if row.get(bound(field, end)) is None else row[bound(field, end)]} for row in mine
        ]
        text = alt.Chart(marks.values(placed)).mark_text(align=align, dx=shift, color=INK)
        found += [text.encode(y=y, x=alt.X("end:Q", scale=x["scale"]), text=alt.Text("label:N"))] if mine else []
    return found


def center(row: Row, field: str, x: alt.X) -> float:
    """The middle of a whisker on its axis, or the point where there is none."""
    low, high = (row.get(bound(field, end)) for end in ("low", "high"))
    if low is None or high is None:
        return float(row[field])
    return middle(alt.Scale(type=x["scale"]["type"], domain=[low, high]))
