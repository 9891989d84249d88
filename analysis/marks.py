"""The marks that every figure is made of: panels, lines with points, reference rules, log axes, labels.

Knows the theme and nothing of policies or queries.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from analysis.theme import INK, MUTED, Style, order, style

Row = dict[str, Any]
HEIGHT = 270


@dataclass(frozen=True)
class Panel:
    """One small chart: what sets it apart (may be empty) and the layers."""

    title: str
    chart: Any


@dataclass(frozen=True)
class Figure:
    """The panels of one figure and its legend: (name, style) in reading order, lines or points."""

    panels: list[Panel]
    legend: list[tuple[str, Style]]
    columns: int = 1


def values(rows: Iterable[Row]) -> alt.Data:
    """Inline data; the queries have already aggregated it."""
    return alt.Data(values=list(rows))


def groups(rows: list[Row], *names: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by the values of `names`, in order of first appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(found.items())


def most_budgets(rows: list[Row]) -> int:
    """How many budgets the setting with the most of them has: the columns of a plate of panels, at most three."""
    return min(3, max(len(groups(mine, "budget")) for _, mine in groups(rows, "setting")))


def heading(rows: list[Row], setting: str, budget: int | None = None) -> str:
    """What a panel must say about itself: the model when there are several, and the budget when panels go by it."""
    several = len({row["setting"] for row in rows}) > 1
    parts = ([setting] if several else []) + ([f"budget {budget:,} tokens"] if budget is not None else [])
    return " · ".join(parts)


def legend_of(names: Iterable[str], find: Callable[[str], Style] = style) -> list[tuple[str, Style]]:
    """Legend entries of the series in reading order."""
    return [(name, find(name)) for name in sorted(set(names), key=order)]


def scales(legend: list[tuple[str, Style]]) -> dict[str, alt.Scale]:
    """Colour, shape and dash scales with one shared domain, so that Vega merges them into one legend."""
    names = [name for name, _ in legend]
    return {
        "color": alt.Scale(domain=names, range=[look.colour for _, look in legend]),
        "shape": alt.Scale(domain=names, range=[look.shape for _, look in legend]),
        "strokeDash": alt.Scale(domain=names, range=[list(look.dash) for _, look in legend]),
    }


def lines(
    data: alt.Data, x: alt.X, y: alt.Y, field: str, legend: list[tuple[str, Style]], marks: alt.Data | None = None
) -> list[alt.Chart]:
    """A line per series with its dash, and points with their shape: at every value, or at those of `marks`."""
    scale = scales(legend)
    named = alt.Legend(title=None, columns=3)
    colour = alt.Color(f"{field}:N", scale=scale["color"], legend=named)
    base = alt.Chart(data).encode(x=x, y=y, color=colour)
    drawn = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash(f"{field}:N", scale=scale["strokeDash"], legend=None)
    )
    points = base.mark_point(filled=True, size=75 if marks is None else 55, opacity=1)
    points = points if marks is None else points.properties(data=marks)
    return [drawn, points.encode(shape=alt.Shape(f"{field}:N", scale=scale["shape"], legend=named))]


def rule(
    position: Row, label: str, horizontal: bool = False, leftward: bool = False, line_of_text: int = 0
) -> list[alt.Chart]:
    """A thin reference line at the one field of `position`, named at its end, on the left of it if `leftward`."""
    (name,) = position
    data = values([{**position, "label": label}])
    line = alt.Chart(data).mark_rule(color="#868b94", strokeDash=[5, 3], strokeWidth=1.5)
    if horizontal:
        text = alt.Chart(data).mark_text(align="right", baseline="top", dx=-2, dy=4, color=MUTED)
        return [line.encode(y=f"{name}:Q"), text.encode(y=f"{name}:Q", x=alt.value("width"), text="label:N")]
    text = alt.Chart(data).mark_text(
        align="right" if leftward else "left", baseline="top", dx=-4 if leftward else 4, color=MUTED
    )
    return [line.encode(x=f"{name}:Q"), text.encode(x=f"{name}:Q", y=alt.value(16 * line_of_text), text="label:N")]


def log_ticks(numbers: Iterable[float]) -> list[float]:
    """At most seven round tick values that span `numbers` on a log axis."""
    found = sorted(numbers)
    low, high = found[0], found[-1]
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in range(-3, 12) for step in steps]
        inside = [tick for tick in ticks if low / 1.02 <= tick <= high * 1.02]
        if len(inside) <= 7:
            break
    if len(inside) >= 3:
        return inside
    power = 10.0 ** math.floor(math.log10(max(high - low, 1e-9)))
    for step in (power * part for part in (1, 0.5, 0.2, 0.1)):
        inside = [round(step * place, 9) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(inside) >= 3:
            break
    return inside[:: max(1, len(inside) // 6)]


def log_y(field: str, title: str, rows: list[Row], least: float = 1) -> alt.Y:
    """A log axis just around the data, its ends at least a factor of `least` apart: noise should not fill a panel."""
    numbers = [row[field] for row in rows if row[field] is not None and row[field] > 0]
    low, high = min(numbers), max(numbers)
    if high < least * low:
        low, high = (low * high / least) ** 0.5, (low * high * least) ** 0.5
    room = max((high / low) ** 0.08, 1.01)
    scale = alt.Scale(type="log", domain=[low / room, high * room], nice=False)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=log_ticks([low, high]), format="~g"))


def log2_x(field: str, title: str, rows: list[Row]) -> alt.X:
    """A log2 axis that marks exactly the values present."""
    found = sorted({row[field] for row in rows})
    scale = alt.Scale(type="log", base=2, domain=[found[0] / 1.15, found[-1] * 1.15], nice=False)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=found, format=",d"))


def tips(*fields: tuple[str, str, str]) -> list[alt.Tooltip]:
    """Tooltips from (field with type, title, number format)."""
    return [alt.Tooltip(name, title=title, format=form or alt.Undefined) for name, title, form in fields]


def rings(rows: list[Row], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """A ring around each point that was measured on a busy machine."""
    noisy = [row for row in rows if row["noisy"]]
    ring = alt.Chart(values(noisy)).mark_point(size=230, filled=False, stroke=MUTED, strokeWidth=1, opacity=0.8)
    return [ring.encode(x=x, y=y, tooltip=tips(("noisy:N", "noisy", "")))] if noisy else []


def panel(title: str, layers: list[alt.Chart], description: str, height: int = HEIGHT) -> Panel:
    """Layers of one panel, described for readers who do not see it."""
    return Panel(
        title, alt.layer(*layers).properties(height=height, description=f"{title}: {description}".removeprefix(": "))
    )


def slim(rows: list[Row], *names: str) -> list[Row]:
    """Only the fields that a dense chart draws, numbers to five decimals: the page carries each of them."""
    return [
        {name: round(row[name], 5) if isinstance(row[name], float) else row[name] for name in names} for row in rows
    ]


def sparse(rows: list[Row]) -> list[Row]:
    """About eight rows of each series, each series starting elsewhere, so that shapes tell dense lines apart."""
    found: list[Row] = []
    for index, (_, mine) in enumerate(groups(rows, "series")):
        step = max(1, len(mine) // 8)
        found += mine[(index * step // 3) % step :: step]
    return found


def beside(rows: list[Row], field: str, y: alt.Y, across: alt.Scale, middle: float) -> list[alt.Chart]:
    """The labels of a forest plot, on the roomier side of the whisker, neither covering it nor leaving the panel."""
    found = []
    sides: tuple[tuple[str, Literal["left", "right"], int], ...] = (("high", "left", 9), ("low", "right", -9))
    for end, align, shift in sides:
        mine = [row for row in rows if (row[field] <= middle) == (align == "left")]
        text = alt.Chart(values(mine)).mark_text(align=align, dx=shift, color=INK)
        found += [text.encode(y=y, x=alt.X(f"{end}:Q", scale=across), text="label:N")] if mine else []
    return found


def forest(
    rows: list[Row],
    field: str,
    x: alt.X,
    across: alt.Scale,
    middle: float,
    origin: float | None,
    tooltip: list[alt.Tooltip],
) -> list[alt.Chart]:
    """A point per series, its whisker from `low` to `high`, its `label`; and a rule at `origin`, if any."""
    scale = scales(legend_of(row["series"] for row in rows))
    # Where nothing is known of the spread, the label stands beside the point.
    placed = [row | {end: row[field] if row[end] is None else row[end] for end in ("low", "high")} for row in rows]
    y = alt.Y(
        "series:N",
        title=None,
        sort=[row["series"] for row in rows],
        axis=alt.Axis(labelLimit=240, domain=False, ticks=False, labelPadding=8),
    )
    line = alt.Chart(values([{"origin": origin}])).mark_rule(color="#868b94", strokeDash=[5, 3], strokeWidth=1.5)
    base = alt.Chart(values(placed)).encode(y=y, color=alt.Color("series:N", scale=scale["color"], legend=None))
    whisker = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=across), x2="high:Q")
    shape = alt.Shape("series:N", scale=scale["shape"], legend=None)
    point = base.mark_point(filled=True, size=95, opacity=1).encode(x=x, shape=shape, tooltip=tooltip)
    around = [] if origin is None else [line.encode(x="origin:Q")]
    return [*around, whisker, point, *beside(placed, field, y, across, middle)]
