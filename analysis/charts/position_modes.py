"""The same policy under each way of numbering its cached keys: cache, absolute, frozen."""

from typing import Any

import altair as alt

from analysis.charts.axes import bound, change_axis
from analysis.charts.marks import (
    CHANGE,
    CORPUS,
    Figure,
    Row,
    emphasis,
    groups,
    panel,
    rule,
    scales,
    spoken,
    tips,
    values,
)
from analysis.charts.theme import variant_style
from analysis.words.wording import with_caveat

FIELD = "ppl_change_percent"
MODES = {"cache": "as the paper means it", "absolute": "as the seed measured", "frozen": "the bug"}


def mode_name(variant: str) -> str:
    """A position mode and whose it is, for a legend."""
    mode, _, rest = variant.partition(", ")
    return f"{mode}{', ' + rest if rest else ''}: {MODES[mode]}" if mode in MODES else variant


def position_modes(rows: list[Row]) -> Figure:
    """One line a policy, one point a mode."""
    modes = [*MODES, *sorted({row["variant"].split(",")[0] for row in rows} - set(MODES))]
    variants = sorted({row["variant"] for row in rows}, key=lambda name: (modes.index(name.split(",")[0]), name))
    legend = [(mode_name(name), variant_style(name)) for name in variants]
    scale, named = scales(legend), alt.Legend(title=None, columns=1)
    rows = [row | {"mode": mode_name(row["variant"])} for row in with_caveat(rows, "policy")]
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        x = change_axis(alt.X, FIELD, "perplexity against full", mine)
        y = alt.Y("base:N", title=None, sort=None,
                  axis=alt.Axis(labelLimit=240, domain=False, ticks=False, labelPadding=8))  # fmt: skip
        base: Any = alt.Chart(values(mine)).encode(
            y=y,
            yOffset=alt.YOffset("mode:N", sort=[name for name, _ in legend]),
            color=alt.Color("mode:N", scale=scale["color"], legend=named),
            opacity=emphasis("mode"),
        )
        layers: list[Any] = rule({FIELD: 0.0}, "")[:1]
        if known := [row for row in mine if row[bound(FIELD, "low")] is not None]:
            low = alt.X(f"{bound(FIELD, 'low')}:Q", scale=x["scale"], title=x["title"], axis=x["axis"])
            whisker = base.properties(data=values(known)).mark_rule(strokeWidth=2)
            layers.append(whisker.encode(x=low, x2=alt.X2(f"{bound(FIELD, 'high')}:Q")))
        point = base.mark_point(filled=True, size=95).encode(
            x=x,
            shape=alt.Shape("mode:N", scale=scale["shape"], legend=named),
            tooltip=tips(("policy:N", "policy", ""), CORPUS, CHANGE, ("kv_percent:Q", "KV kept, %", ".1f")),
        )
        about = "perplexity of the same policy under each position mode against the full cache’s, in per cent:"
        about += spoken(mine, "policy", FIELD, "+.1f", " %")
        panels.append(panel(setting, "", [*layers, point], about, max(60, 24 * len(mine))))
    return Figure(panels, legend, min(2, len(panels)))
