"""Axes: where they begin and end, and which of their values are named. Log axes need care, or they show one number.

Knows rows and fields, nothing of policies or queries.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import altair as alt

from analysis.words.wording import bound

Row = dict[str, Any]
Ends = tuple[float, float]


def spaced(candidates: Iterable[float], place: Callable[[float], float], ends: Ends, most: int) -> list[float]:
    """Of candidates, the best first, those that stand between two ends, a `most`th of the axis apart."""
    low, high = ends
    found: list[float] = []
    for one in candidates:
        at = place(one)
        if low <= at <= high and all(abs(at - place(other)) >= (high - low) / most for other in found):
            found.append(one)
    return sorted(found)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between two ends of a log axis, at most eight, and four where there is room for them."""
    for steps in ((1, 5, 2), (1, 5, 2, 3, 7, 4, 6, 8, 9)):
        ticks = (round(step * 10.0**power, 9) for step in steps for power in range(-4, 12))
        found = spaced(ticks, math.log, (math.log(low), math.log(high)), 7)
        if len(found) >= 4:
            return found
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    even = (round(step * place, 9) for place in range(math.ceil(low / step), math.floor(high / step) + 1))
    return spaced(even, math.log, (math.log(low), math.log(high)), 7)


def ends(rows: Iterable[Row], field: str) -> list[float]:
    """All known values of a field and of the ends of its interval, if it has any."""
    names = (field, bound(field, "low"), bound(field, "high"))
    return [row[name] for row in rows for name in names if row.get(name) is not None]


def log_scale(numbers: list[float], least: float = 1, room: float = 0.08) -> tuple[alt.Scale, list[float]]:
    """A log scale just around `numbers`, its ends at least a factor `least` apart (noise fills no panel), and ticks."""
    low, high = min(numbers), max(numbers)
    if high < least * low:
        low, high = (low * high / least) ** 0.5, (low * high * least) ** 0.5
    margin = max((high / low) ** room, 1.01)
    domain = [low / margin, high * margin]
    return alt.Scale(type="log", domain=domain, nice=False), log_ticks(*domain)


def log_y(field: str, title: str, rows: list[Row], least: float = 1) -> alt.Y:
    """A log axis just around the data."""
    scale, ticks = log_scale([value for value in ends(rows, field) if value > 0], least)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, format=",~g"))


def log2_x(field: str, title: str, rows: list[Row], beside: Iterable[float] = (), at: str = "") -> alt.X:
    """A log2 axis that marks exactly the values present, with room for those `beside` them. at: a field to draw by."""
    found = sorted({row[field] for row in rows})
    room = [*found, *beside]
    scale = alt.Scale(type="log", base=2, domain=[min(room) / 1.15, max(room) * 1.15], nice=False)
    axis = alt.Axis(values=found, format=",d", labelOverlap=True)
    return alt.X(f"{at or field}:Q", title=title, scale=scale, axis=axis)


def log_axis(channel: Any, field: str, title: str, rows: list[Row], unit: str = "") -> Any:
    """A log axis around a field's values, named at powers of ten."""
    scale, _ = log_scale([row[field] for row in rows if row[field] > 0], 10, 0.03)
    words = f"format(datum.value, '~g') + '{unit}'"
    axis = alt.Axis(values=[10.0**power for power in range(-6, 4)], labelExpr=words, grid=True)
    return channel(f"{field}:Q", title=f"{title} (log scale)", scale=scale, axis=axis)


def ratio_axis(channel: Any, field: str, title: str, rows: list[Row], around: float = 1.02) -> Any:
    """A log axis around all ratios, their whiskers, and one."""
    scale, ticks = log_scale([1.0, *ends(rows, field)], around, 0.09)
    return channel(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, format="~g", grid=True))


def linear_axis(channel: Any, field: str, title: str, rows: list[Row], room: float = 0.07) -> Any:
    """A linear axis around all differences, their whiskers, and zero; room: beyond these, of their span."""
    found = [0.0, *ends(rows, field)]
    beyond = room * (max(found) - min(found) or 1)
    scale = alt.Scale(domain=[min(found) - beyond, max(found) + beyond], nice=False)
    axis = alt.Axis(tickCount=5, grid=True, labelExpr="datum.value ? format(datum.value, '+~g') : '0'")
    return channel(f"{field}:Q", title=title, scale=scale, axis=axis)


PER_CENT = "datum.value ? format(datum.value, '+,~g') + ' %' : '0 %'", "1 %"
SHARE = "format(datum.value, ',~g') + ' %'", "1 %"
NATS = "datum.value ? format(datum.value, '+,~g') : '0'", "0.01"


def change_axis(
    channel: Any, field: str, title: str, rows: list[Row], named: tuple[str, str] = PER_CENT,
    one: float = 1, above: float = 1,
) -> Any:  # fmt: skip
    """The axis of a change in per cent: linear around zero and logarithmic beyond 1 %: losses span 0.1 to 1,000 %.

    named: how its values are called, and how a change of `one` is, beyond which it is logarithmic. above: how much more
    room there is above the values than below, for words.
    """
    found = [bent(value / one) for value in (0.0, *ends(rows, field))]
    low, high = min(found), max(found)
    room = max(0.06 * (high - low), (bent(1) - (high - low)) / 2)  # noise fills no panel
    low, high = low - room, high + above * room
    scale = alt.Scale(type="symlog", constant=one, domain=[one * unbent(low), one * unbent(high)], nice=False)
    ticks = [round(one * tick, 9) for tick in change_ticks(low, high, most=6 if channel is alt.X else 16)]
    words, first = named
    axis = alt.Axis(values=ticks, labelExpr=words, grid=True, labelOverlap=False)
    if channel is alt.X:
        axis.labelBound = True  # a name is left out rather than cut off
    return channel(f"{field}:Q", title=f"{title} (log scale beyond {first})" if title else "", scale=scale, axis=axis)


def change_ticks(low: float, high: float, most: int) -> list[float]:
    """Round changes between two bent ones; no change is always among them."""
    sizes = [step * 10.0**power for step in (1, 5, 2) for power in (0, 1, 2, 3, 4, 5, -1, -2)]
    return spaced((0.0, *(tick for size in sizes for tick in (size, -size))), bent, (low, high), most)


def bent(percent: float) -> float:
    """Where a change stands on a change axis."""
    return math.copysign(math.log1p(abs(percent)), percent)


def unbent(place: float) -> float:
    """The change that stands there."""
    return math.copysign(math.expm1(abs(place)), place)


def middle(scale: alt.Scale) -> float:
    """The value in the middle of an axis."""
    low, high = scale["domain"]
    if scale["type"] == "log":
        return float((low * high) ** 0.5)
    return unbent((bent(low) + bent(high)) / 2) if scale["type"] == "symlog" else (low + high) / 2
