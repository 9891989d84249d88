"""The marks that every figure is made of: panels, points with whiskers, lines, reference rules, tooltips.

Channels are objects, `alt.X("field:Q")`: strings are looked up among all of Altair's classes, for milliseconds each.

Knows the theme and nothing of policies or queries. Each mark of a series fades while another series is emphasised; the
page sets which (the signal `emphasis`), and a file never does.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
from altair.utils.schemapi import debug_mode

from analysis.charts.theme import MUTED, RULE, Style, order, style, theme
from analysis.numbers.order import by
from analysis.words.wording import bound

Row = dict[str, Any]
Legend = list[tuple[str, Style]]
HEIGHT = 270
KEY = alt.Legend(title=None, columns=3)
POLICY = ("policy:N", "policy", "")  # what many tooltips say
CONTENDER = ("contender:N", "policy", "")
CORPUS = ("ppl_corpus:Q", "PPL, corpus", ".3f")
CHANGE = ("ppl_change_percent:Q", "PPL against full, %", "+.2f")
DODGE, SPAN = 1.035, 1.16  # between neighbouring series at one place, whose whiskers stand side by side; between all
SPOKEN = 14  # as many values of a chart are read out; beyond, its table serves better


@dataclass(frozen=True)
class Panel:
    """One small chart: whose it is, what sets it apart from the figure's others (may be empty), its Vega-Lite spec."""

    setting: str
    title: str
    spec: Row


@dataclass(frozen=True)
class Figure:
    """The panels of one figure and its legend: (name, style) in reading order; `named` if an axis names the series.

    among: whether the report has more than one setting, of which the figure may show one alone.
    """

    panels: list[Panel]
    legend: Legend
    columns: int = 1
    named: bool = False
    among: bool = False

    @property
    def several(self) -> bool:
        """Whether panels must say whose they are."""
        return self.among or len({one.setting for one in self.panels}) > 1

    @property
    def whiskers(self) -> bool:
        """Whether any are drawn: an interval may be unknown, or the figure be of a quantity that has none."""
        return any({"x2", "y2"} & layer["encoding"].keys() for one in self.panels for layer in one.spec["layer"])


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


def by_budgets(rows: list[Row]) -> Iterator[tuple[str, int, list[Row], list[Row]]]:
    """The panels of a plate: setting, budget, its rows, and all rows of its setting, which share their axes."""
    for setting, whole in by(rows, "setting").items():
        for size, mine in by(whole, "budget").items():
            yield setting, size, mine, whole


def most_budgets(rows: list[Row]) -> int:
    """The columns of a plate of panels: as many as the most budgets of a setting, up to three, and two for four."""
    most = max((len(by(mine, "budget")) for mine in by(rows, "setting").values()), default=1)
    return 2 if most == 4 else min(3, most)


def budget_title(budget: int) -> str:
    """The title of a panel when panels go by budget."""
    return f"budget {budget:,} tokens"


def legend_of(rows: list[Row]) -> Legend:
    """Legend entries of the rows' series in reading order."""
    return [(name, style(name)) for name in sorted({row["series"] for row in rows}, key=order)]


def scales(legend: Legend) -> dict[str, alt.Scale]:
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


def points(
    rows: list[Row], x: alt.X, y: alt.Y, legend: Legend, tooltip: Any = alt.Undefined, by: str = "series",
    size: int = 75, key: alt.Legend | None = KEY, clip: bool = False, **more: Any,
) -> list[alt.Chart]:  # fmt: skip
    """A point per row in its series' colour and shape, with whiskers along each axis whose field has an interval."""
    scale = scales(legend)
    colour = alt.Color(f"{by}:N", scale=scale["color"], legend=key)
    base = alt.Chart(values(rows)).encode(x=x, y=y, color=colour, opacity=emphasis(by), **more)
    layers = []
    for axis in (x, y):
        low, high = (bound(field_of(axis), end) for end in ("low", "high"))
        if known := [row for row in rows if row.get(low) is not None]:
            start = type(axis)(f"{low}:Q", scale=axis["scale"], title=axis["title"], axis=axis["axis"])
            ends = {"x": start, "x2": alt.X2(f"{high}:Q")} if axis is x else {"y": start, "y2": alt.Y2(f"{high}:Q")}
            layers.append(base.properties(data=values(known)).mark_rule(strokeWidth=1.5).encode(**ends))
    shape = alt.Shape(f"{by}:N", scale=scale["shape"], legend=key)
    return [*layers, base.mark_point(filled=True, size=size, clip=clip).encode(shape=shape, tooltip=tooltip)]


def field_of(axis: Any) -> str:
    """The field of a channel."""
    return str(axis["shorthand"]).partition(":")[0]


def lines(rows: list[Row], x: alt.X, y: alt.Y, legend: Legend) -> alt.Chart:
    """A line per series with its colour and dash."""
    scale = scales(legend)
    colour = alt.Color("series:N", scale=scale["color"], legend=KEY)
    dash = alt.StrokeDash("series:N", scale=scale["strokeDash"], legend=None)
    line = alt.Chart(values(rows)).mark_line(strokeWidth=2, clip=True)
    return line.encode(x=x, y=y, color=colour, strokeDash=dash, opacity=emphasis("series"))


def along_lines(rows: list[Row], x: alt.X, y: alt.Y, legend: Legend, tooltip: list[alt.Tooltip]) -> list[alt.Chart]:
    """Lines through too many rows for a point each: a few points tell them apart, and each row has its tooltip.

    Of a line Vega would show the first row's, wherever the pointer is.
    """
    near = alt.Chart(values(rows)).mark_point(filled=True, opacity=0, size=150, clip=True)
    seen = points(sparse(rows), x, y, legend, tooltip, size=55, clip=True)
    return [lines(rows, x, y, legend), near.encode(x=x, y=y, tooltip=tooltip), *seen]


def rule(
    axis: type, field: str, value: float, label: str = "", leftward: bool = False, line_of_text: int = 0
) -> list[alt.Chart]:
    """A thin line across the panel at a value of alt.X or alt.Y, named at its end, on the left of it if `leftward`."""
    upright = axis is alt.X
    data = alt.Chart(values([{field: value, "label": label}]))
    place = {"x" if upright else "y": axis(f"{field}:Q")}
    line = data.mark_rule(color=RULE, strokeDash=[5, 3], strokeWidth=1.5, clip=True).encode(**place)
    align: Literal["left", "right"] = "left" if upright and not leftward else "right"
    baseline: Literal["top", "bottom"] = "top" if upright else "bottom"
    text = data.mark_text(align=align, baseline=baseline, dx=4 if align == "left" else -4, color=MUTED, clip=upright)
    text = text.encode(text=alt.Text("label:N"))
    beside = {"y": alt.YValue(16 * line_of_text)} if upright else {"x": alt.XValue("width")}
    return [line, text.encode(**place, **beside)] if label else [line]


def side_by_side(rows: list[Row], legend: Legend, field: str, span: float = SPAN) -> list[Row]:
    """Rows with the `place` at which each is drawn: the field's value, moved aside a little in the legend's order."""
    names = [name for name, _ in legend if any(row["series"] == name for row in rows)]
    step = min(DODGE, span ** (1 / max(1, len(names) - 1)))
    return [row | {"place": row[field] * step ** (names.index(row["series"]) - (len(names) - 1) / 2)} for row in rows]


def sparse(rows: list[Row]) -> list[Row]:
    """About eight rows of each series, each series starting elsewhere, so that shapes tell dense lines apart."""
    found: list[Row] = []
    for index, mine in enumerate(by(rows, "series").values()):
        step = max(1, len(mine) // 8)
        found += mine[(index * step // 3) % step :: step]
    return found


def interval(field: str, form: str = "+.2f") -> list[tuple[str, str, str]]:
    """What a tooltip says of the ends of a field's interval."""
    return [(f"{bound(field, end)}:Q", word, form) for end, word in (("low", "from"), ("high", "to"))]


def tips(*fields: tuple[str, str, str]) -> list[alt.Tooltip]:
    """Tooltips from (field with type, title, number format)."""
    return [alt.Tooltip(name, title=title, format=form or alt.Undefined) for name, title, form in fields]


def panel(
    setting: str, title: str, layers: list[Any], description: str, height: int = HEIGHT, signals: Row | None = None
) -> Panel:
    """Layers of one panel, described for readers who do not see it; `signals`: what the page sets, and first values."""
    about = ": ".join((", ".join(filter(None, (setting, title))), description))
    set_by_page = [{"name": name, "value": value} for name, value in ({"emphasis": None} | (signals or {})).items()]
    spec = layered(layers) | {"height": height, "description": about, "params": set_by_page}
    return Panel(setting, title, spec)


def layered(layers: list[alt.Chart]) -> Row:
    """The spec of layers above one another, each with rows of its own or all with the same; selections stay in theirs.

    `alt.layer` would copy each of them four times.
    """
    specs = [layer.to_dict(validate=False, context={"top_level": False}) for layer in layers]
    whole: Row = {**theme(), "$schema": alt.SCHEMA_URL}
    if all(one["data"]["values"] is specs[0]["data"]["values"] for one in specs):
        whole["data"] = specs[0]["data"]
        specs = [{name: value for name, value in one.items() if name != "data"} for one in specs]
    return whole | {"layer": specs}


def spoken(rows: list[Row], field: str, form: str = "+.1f", unit: str = " %", name: str = "policy") -> str:
    """The values of a small chart in words; where there are too many, how many, and that its table has them."""
    known = [row for row in rows if row[field] is not None]
    if len(known) > SPOKEN:
        return f" {len(known)} points; the CSV beside the chart holds them."
    return " " + "; ".join(f"{row[name]} {row[field]:{form}}{unit}" for row in known) + "."
