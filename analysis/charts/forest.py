"""Forest plots: one line a series, its point, its whisker, its number in print beside it."""

from typing import Any, Literal

import altair as alt

from analysis.charts.axes import bound
from analysis.charts.marks import Row, emphasis, legend_of, scales, values
from analysis.charts.theme import INK, RULE

LINE = 30  # pixels of height a series takes


def forest(
    rows: list[Row], field: str, x: alt.X, middle: float, origin: float | None, tooltip: list[alt.Tooltip]
) -> list[Any]:
    """A point per series, its whisker over the field's interval, its `label`; and a rule at `origin`, if any."""
    scale, across = scales(legend_of(row["series"] for row in rows)), x["scale"]
    # Where nothing is known of the spread, the label stands beside the point.
    ends = {end: bound(field, end) for end in ("low", "high")}
    placed = [row | {end: row[field] if row.get(of) is None else row[of] for end, of in ends.items()} for row in rows]
    y = alt.Y(
        "series:N",
        title=None,
        sort=[row["series"] for row in rows],
        axis=alt.Axis(labelLimit=240, domain=False, ticks=False, labelPadding=8),
    )
    colour = alt.Color("series:N", scale=scale["color"], legend=None)
    base = alt.Chart(values(placed)).encode(y=y, color=colour, opacity=emphasis("series"))
    whisker = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=across), x2=alt.X2("high:Q"))
    shape = alt.Shape("series:N", scale=scale["shape"], legend=None)
    point = base.mark_point(filled=True, size=95).encode(x=x, shape=shape, tooltip=tooltip)
    layers = [whisker, point, *beside(placed, field, y, across, middle)]
    if origin is None:
        return layers
    line = alt.Chart(values([{"origin": origin}])).mark_rule(color=RULE, strokeDash=[5, 3], strokeWidth=1.5)
    return [line.encode(x=alt.X("origin:Q")), *layers]


def beside(rows: list[Row], field: str, y: alt.Y, across: alt.Scale, middle: float) -> list[Any]:
    """The labels, on the roomier side of the whisker, neither covering it nor leaving the panel."""
    found = []
    sides: tuple[tuple[str, Literal["left", "right"], int], ...] = (("high", "left", 9), ("low", "right", -9))
    for end, align, shift in sides:
        mine = [row for row in rows if (row[field] <= middle) == (align == "left")]
        text = alt.Chart(values(mine)).mark_text(align=align, dx=shift, color=INK)
        found += [text.encode(y=y, x=alt.X(f"{end}:Q", scale=across), text=alt.Text("label:N"))] if mine else []
    return found
