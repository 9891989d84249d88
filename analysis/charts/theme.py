"""How series look: colour, shape and dash of each policy, and the Vega theme. Colours hold on white and on near-black.

STYLES and POLICIES hold preferred looks and decide nothing else: a policy in neither gets a look of its own. A colour
means the same policy in every chart, on the page and in docs/results.

Hues follow Okabe and Ito's palette for colour-blind readers (https://jfly.uni-koeln.de/color/), shifted until each
has a contrast of about 3:1 on both grounds; shape and dash repeat the distinction without colour.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import altair as alt


@dataclass(frozen=True)
class Style:
    """One series' colour, point shape (a Vega symbol) and line dash."""

    colour: str
    shape: str
    dash: tuple[int, ...] = (1, 0)


STYLES: dict[str, Style] = {
    "full": Style("#868b94", "square", (6, 3)),
    "DynamicCache": Style("#8a6d4b", "triangle-right", (1, 3)),
    "streaming_llm, 0 sinks": Style("#5e8fa3", "cross", (4, 3)),
    "streaming_llm, 1 sink": Style("#2b98c9", "triangle-up", (4, 2)),
    "streaming_llm, 2 sinks": Style("#4a86e0", "diamond", (8, 2)),
    "streaming_llm, 4 sinks": Style("#2273c3", "circle"),
    "streaming_llm, 8 sinks": Style("#5a5fd0", "triangle-down", (8, 2, 2, 2)),
    "recent_only": Style("#d55e00", "square", (9, 2)),
    "fix_size_l2 keep_low": Style("#009e73", "diamond", (7, 2, 2, 2)),
    "fix_size_l2 keep_high": Style("#a97b00", "triangle-down", (5, 3)),
    "fix_size_l2 random": Style("#c2609a", "cross", (2, 2)),
}
# Of these policies all series have one colour, and the first shape and dash, too.
POLICIES: dict[str, Style] = {
    "h2o": Style("#b04a4a", "triangle-up", (4, 1)),
    "tova": Style("#5c8a2e", "triangle-right", (5, 2, 1, 2)),
    "snapkv": Style("#8b8418", "triangle-left", (2, 3)),
    "keydiff": Style("#8f63c9", "cross", (7, 1)),
    "sink_l2": Style("#1f8f8f", "square", (3, 3)),
    "sink_random": Style("#c2547c", "triangle-down", (2, 1)),
    "l2_compress": Style("#a06f3d", "cross", (11, 3)),
}
SPARE = ("#7a78d6", "#4f8c6b", "#a0628a", "#b5764a", "#5f7fa8", "#7d7f45", "#a3566b", "#4c86a8")  # for any other policy
SPARE_DASHES = ((3, 1), (5, 1, 1, 1), (1, 2), (6, 1), (10, 3))
BUDGET_COLOURS = ("#6f7680", "#8d949e")
BUDGET_DASHES = ((1, 0), (4, 2), (8, 2), (2, 2), (8, 2, 2, 2))
VARIANT_STYLES = {
    "cache": Style("#6f7680", "circle"),
    "absolute": Style("#8d949e", "diamond"),
    "frozen": Style("#868b94", "square"),
}
SKIPPING = {"cache": "triangle-right", "absolute": "triangle-up", "frozen": "triangle-down"}  # where layers never evict
INK, MUTED, GRID, RULE = "#22262b", "#5b626c", "#e4e7eb", "#868b94"
FONT = "Helvetica, Arial, sans-serif"

SHAPES = ("circle", "square", "diamond", "cross", "triangle-up", "triangle-down", "triangle-right", "triangle-left")
_met: ContextVar[tuple[str, ...]] = ContextVar("met", default=())


@contextmanager
def looks(series: Iterable[str]) -> Iterator[None]:
    """Within, each of these series that STYLES does not know has a look of its own, the same in every chart."""
    before = _met.set(tuple(sorted({name for name in series if name not in STYLES}, key=order)))
    try:
        yield
    finally:
        _met.reset(before)


def style(series: str) -> Style:
    """The style of a policy series: that of STYLES or of its policy, else one that no other series in `looks` has."""
    if series in STYLES:
        return STYLES[series]
    met, policy = _met.get(), policy_of(series)
    if series == policy and series not in met:  # a policy by its name: as its first series
        series = next((name for name in met if policy_of(name) == policy), series)
    if policy in POLICIES:
        look = POLICIES[policy]
        alike = [name for name in met if policy_of(name) == policy]
        turn = alike.index(series) if series in alike else 0
        dash = SPARE_DASHES[turn % len(SPARE_DASHES)] if turn else look.dash
        return replace(look, shape=SHAPES[(SHAPES.index(look.shape) + turn) % len(SHAPES)], dash=dash)
    unknown = [name for name in met if policy_of(name) not in POLICIES]
    place = unknown.index(series) if series in unknown else sum(map(ord, series))
    turn = place + place // len(SPARE)  # the same colour again comes with another shape
    return Style(SPARE[place % len(SPARE)], SHAPES[-1 - turn % len(SHAPES)], SPARE_DASHES[turn % len(SPARE_DASHES)])


def policy_of(series: str) -> str:
    """The name of a series' policy: `h2o` of `h2o, 4 sinks`."""
    return series.partition(",")[0].partition(" ")[0]


def order(series: str) -> tuple[int, list[int], str]:
    """Sort key that lists series as STYLES and POLICIES do, unknown ones last, and counts sinks as numbers."""
    listed = [*STYLES, *POLICIES]
    known = series if series in STYLES else policy_of(series)
    numbers = [int(number) for number in re.findall(r"\d+", series)]
    return listed.index(known) if known in listed else len(listed), numbers, series


def budget_style(place: int) -> Style:
    """The style of the budget at that place among all of a chart: no two of the first sixteen points are alike."""
    shape = SHAPES[place % len(SHAPES)]
    colour = BUDGET_COLOURS[(place + place // len(SHAPES)) % len(BUDGET_COLOURS)]
    return Style(colour, shape, BUDGET_DASHES[place % len(BUDGET_DASHES)])


def variant_styles(variants: Iterable[str]) -> dict[str, Style]:
    """Styles of position modes, whatever follows their names: each its mode's shape, or one that no other has yet."""
    found: dict[str, Style] = {}
    for variant in sorted(variants, key=lambda name: "," in name):  # the modes themselves choose first
        mode, _, rest = variant.partition(",")
        look = VARIANT_STYLES.get(mode, Style(SPARE[0], "cross"))
        if rest:
            look = replace(look, shape=SKIPPING.get(mode, "triangle-left"), dash=(4, 2))
        lap, place = divmod(len(found), len(SHAPES))
        if lap:  # all shapes are taken: they come again in other colours
            look = Style(SPARE[lap % len(SPARE)], look.shape, SPARE_DASHES[lap % len(SPARE_DASHES)])
        taken = {one.shape for one in list(found.values())[len(found) - place :]}
        free = [shape for shape in (look.shape, *reversed(SHAPES)) if shape not in taken]
        found[variant] = replace(look, shape=free[0])
    return found


@alt.theme.register("kvstream", enable=True)
def theme() -> alt.theme.ThemeConfig:
    """Plain axes, light grid, readable type; the page recolours text and grid for dark grounds by CSS."""
    label = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500}
    ink = {"labelColor": MUTED, "titleColor": INK, "gridColor": GRID, "domainColor": "#9aa1ab", "tickColor": "#9aa1ab"}
    heading = {"fontSize": 13, "fontWeight": 600, "color": INK, "anchor": "start", "offset": 10}
    config: Any = {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {**label, **ink, "titlePadding": 8},
        "axisX": {"grid": False},
        "legend": {**label, "labelColor": INK, "labelLimit": 400, "symbolSize": 90, "orient": "bottom"},
        "title": {"font": FONT, **heading},
        "text": {"font": FONT, "fontSize": 12},
        "line": {"strokeWidth": 2},
    }
    return {"config": config}


# The outlines of Vega's point symbols in a box from −5 to 5, for the page's own legend.
SYMBOLS: dict[str, str] = {
    "circle": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "square": "M-3.6,-3.6h7.2v7.2h-7.2z",
    "diamond": "M0,-5L4,0L0,5L-4,0z",
    "cross": "M-5,-1.7h3.3v-3.3h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3z",
    "triangle-up": "M0,-4.4L4.6,3.6H-4.6z",
    "triangle-down": "M0,4.4L4.6,-3.6H-4.6z",
    "triangle-right": "M4.4,0L-3.6,4.6V-4.6z",
    "triangle-left": "M-4.4,0L3.6,4.6V-4.6z",
}
