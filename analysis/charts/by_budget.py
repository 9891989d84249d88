"""What a larger budget buys: perplexity and accuracy against the full cache's, over the budget."""

from typing import Any

import altair as alt

from analysis.charts.axes import bound, change_axis, ends, log2_x
from analysis.charts.marks import (
    CORPUS,
    Figure,
    Row,
    groups,
    legend_of,
    lines,
    panel,
    rule,
    spoken,
    tips,
    values,
    whiskers,
)
from analysis.words.wording import with_caveat

HEIGHT = 230
DODGE, SPAN = 1.035, 1.16  # between neighbouring series at one budget, whose whiskers stand side by side; between all
MEASURES = (
    ("ppl_change_percent", "perplexity against full, %", "lower"),
    ("accuracy_change_points", "accuracy against full, points", "higher"),
)


def by_budget(rows: list[Row]) -> Figure:
    """Two panels for each setting, full as a rule across each."""
    rows = with_caveat(rows, "policy")
    legend = legend_of(row["series"] for row in rows)
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        order = [name for name, _ in legend if any(row["series"] == name for row in mine)]
        for field, title, better in MEASURES:
            known = [placed(row, order) for row in mine if row[field] is not None]
            if not known:
                continue
            x = log2_x("budget", "budget, tokens (log scale)", known)
            x = alt.X("place:Q", title=x["title"], scale=x["scale"], axis=x["axis"])
            y = change_axis(alt.Y, field, "", known) if field.endswith("percent") else points_axis(field, known)
            layers: list[Any] = rule({field: 0.0}, "full", horizontal=True)
            layers += [*whiskers(known, field, x, y, legend), *lines(values(known), x, y, "series", legend)]
            shown = [("policy:N", "policy", ""), CORPUS, (f"{field}:Q", title, "+.2f")]
            shown += [(f"{bound(field, end)}:Q", word, "+.2f") for end, word in (("low", "from"), ("high", "to"))]
            layers[-1] = layers[-1].encode(tooltip=tips(*shown))
            about = f"{title} against the budget, {better} is better:" + spoken(known, "policy", field)
            panels.append(panel(setting, title, layers, about, HEIGHT))
    return Figure(panels, legend, min(2, len(panels)))


def placed(row: Row, order: list[str]) -> Row:
    """The row with the place at which it is drawn: its budget, moved aside a little by its series."""
    step = min(DODGE, SPAN ** (1 / max(1, len(order) - 1)))
    return row | {"place": row["budget"] * step ** (order.index(row["series"]) - (len(order) - 1) / 2)}


def points_axis(field: str, rows: list[Row]) -> alt.Y:
    """A linear axis around all differences in points, and zero."""
    found = [0.0, *ends(rows, field, bound(field, "low"), bound(field, "high"))]
    room = 0.08 * (max(found) - min(found) or 1)
    scale = alt.Scale(domain=[min(found) - room, max(found) + room], nice=False)
    signed = alt.Axis(tickCount=5, labelExpr="datum.value ? format(datum.value, '+~g') : '0'")
    return alt.Y(f"{field}:Q", title="", scale=scale, axis=signed)
