"""The marks that every figure is made of: panels, lines with points, whiskers, reference rules, tooltips.

Channels are objects, `alt.X("field:Q")`: strings are looked up among all of Altair's classes, for milliseconds each.

Knows the theme and nothing of policies or queries. Each mark of a series fades while another series is emphasised; the
page sets which (the signal `emphasis`), and a file never does.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
from altair.utils.schemapi import debug_mode

from analysis.charts.axes import bound
from analysis.charts.theme import MUTED, RULE, Style, order, style

Row = dict[str, Any]
HEIGHT = 270
WHISKER = 1.5
CORPUS = ("ppl_corpus:Q", "PPL, corpus", ".3f")  # what many tooltips say
CHANGE = ("ppl_change_percent:Q", "PPL against full, %", "+.2f")
SPOKEN = 14  # as many values of a chart are read out; beyond, its table serves better


@dataclass(frozen=True)
class Panel:
    """One small chart: whose it is, what sets it apart from the figure's others (may be empty), its Vega-Lite spec."""

    setting: str
    title: str
    spec: Row


@dataclass(frozen=True)
class Figure:
    """The panels of one figure and its legend: (name, style) in reading order; `named` if an axis names the series."""

    panels: list[Panel]
    legend: list[tuple[str, Style]]
    columns: int = 1
    named: bool = False

    @property
    def several(self) -> bool:
        """Whether panels must say whose they are."""
        return len({one.setting for one in self.panels}) > 1


class Rows:
    """Rows that Altair passes on as they are: it copies and checks each value of a list again and again."""

    _schema = {"type": "array"}  # noqa: RUF012  what Altair tells its own kind by

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def to_dict(self) -> list[Row]:
        """The rows, for the spec."""
        return self.rows


def values(rows: Iterable[Row]) -> alt.Data:
    """Inline data; the queries have already aggregated it."""
    return alt.Data(values=Rows(rows))


@contextmanager
def unchecked() -> Iterator[None]:
    """Draw without Altair's checks of every object that is built; the tests draw with them."""
    with debug_mode(False), alt.data_transformers.enable(consolidate_datasets=False):
        yield


def groups(rows: list[Row], *names: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by the values of `names`, in order of first appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(found.items())


def most_budgets(rows: list[Row]) -> int:
    """How many budgets the setting with the most of them has: the columns of a plate of panels, at most three."""
    return min(3, max(len(groups(mine, "budget")) for _, mine in groups(rows, "setting")))


def budget_title(budget: int) -> str:
    """The title of a panel when panels go by budget."""
    return f"budget {budget:,} tokens"


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


def emphasis(field: str) -> Any:
    """Opacity: full for every series while none is emphasised, else for that one only."""
    test = f"!isValid(emphasis) || datum[{field!r}] === emphasis"
    return alt.OpacityValue(0.13, condition={"test": test, "value": 1})


def lines(
    data: alt.Data, x: alt.X, y: alt.Y, field: str, legend: list[tuple[str, Style]], marks: alt.Data | None = None
) -> list[alt.Chart]:
    """A line per series with its dash, and points with their shape: at every value, or at those of `marks`."""
    scale = scales(legend)
    named = alt.Legend(title=None, columns=3)
    colour = alt.Color(f"{field}:N", scale=scale["color"], legend=named)
    base = alt.Chart(data).encode(x=x, y=y, color=colour, opacity=emphasis(field))
    drawn = base.mark_line(strokeWidth=2, clip=True).encode(
        strokeDash=alt.StrokeDash(f"{field}:N", scale=scale["strokeDash"], legend=None)
    )
    points = base.mark_point(filled=True, size=75 if marks is None else 55, clip=marks is not None)
    points = points if marks is None else points.properties(data=marks)
    return [drawn, points.encode(shape=alt.Shape(f"{field}:N", scale=scale["shape"], legend=named))]


def whiskers(
    rows: list[Row], field: str, x: Any, y: alt.Y, legend: list[tuple[str, Style]], by: str = "series"
) -> list[alt.Chart]:
    """Upright intervals of `field`, for the rows that have one."""
    known = [row for row in rows if row[bound(field, "low")] is not None]
    if not known:
        return []
    colour = alt.Color(f"{by}:N", scale=scales(legend)["color"], legend=alt.Legend(title=None, columns=3))
    rule = alt.Chart(values(known)).mark_rule(strokeWidth=WHISKER).encode(x=x, color=colour, opacity=emphasis(by))
    low = alt.Y(f"{bound(field, 'low')}:Q", scale=y["scale"], title=y["title"], axis=y["axis"])
    return [rule.encode(y=low, y2=alt.Y2(f"{bound(field, 'high')}:Q"))]


def rule(
    position: Row, label: str, horizontal: bool = False, leftward: bool = False, line_of_text: int = 0
) -> list[alt.Chart]:
    """A thin reference line at the one field of `position`, named at its end, on the left of it if `leftward`."""
    (name,) = position
    data = values([{**position, "label": label}])
    line = alt.Chart(data).mark_rule(color=RULE, strokeDash=[5, 3], strokeWidth=1.5, clip=True)
    if horizontal:
        text = alt.Chart(data).mark_text(align="right", baseline="top", dx=-2, dy=4, color=MUTED)
        return [
            line.encode(y=alt.Y(f"{name}:Q")),
            text.encode(y=alt.Y(f"{name}:Q"), x=alt.XValue("width"), text=alt.Text("label:N")),
        ]
    align: Literal["left", "right"] = "right" if leftward else "left"
    text = alt.Chart(data).mark_text(align=align, baseline="top", dx=-4 if leftward else 4, color=MUTED, clip=True)
    return [
        line.encode(x=alt.X(f"{name}:Q")),
        text.encode(x=alt.X(f"{name}:Q"), y=alt.YValue(16 * line_of_text), text=alt.Text("label:N")),
    ]


def tips(*fields: tuple[str, str, str]) -> list[alt.Tooltip]:
    """Tooltips from (field with type, title, number format)."""
    return [alt.Tooltip(name, title=title, format=form or alt.Undefined) for name, title, form in fields]


def panel(
    setting: str, title: str, layers: list[Any], description: str, height: int = HEIGHT, signals: Row | None = None
) -> Panel:
    """Layers of one panel, described for readers who do not see it; `signals`: what the page sets, and first values."""
    about = ": ".join((", ".join(filter(None, (setting, title))), description))
    spec = alt.layer(*layers).properties(height=height, description=about).to_dict(validate=False)
    set_by_page = [{"name": name, "value": value} for name, value in ({"emphasis": None} | (signals or {})).items()]
    return Panel(setting, title, spec | {"params": [*spec.get("params", []), *set_by_page]})


def spoken(rows: list[Row], name: str, field: str, form: str = ".3g", unit: str = "") -> str:
    """The values of a small chart in words; where there are too many, how many, and that its table has them."""
    known = [row for row in rows if row[field] is not None]
    if len(known) > SPOKEN:
        return f" {len(known)} points; the CSV beside the chart holds them."
    return " " + "; ".join(f"{row[name]} {row[field]:{form}}{unit}" for row in known) + "."


def sparse(rows: list[Row]) -> list[Row]:
    """About eight rows of each series, each series starting elsewhere, so that shapes tell dense lines apart."""
    found: list[Row] = []
    for index, (_, mine) in enumerate(groups(rows, "series")):
        step = max(1, len(mine) // 8)
        found += mine[(index * step // 3) % step :: step]
    return found
