"""The same policy under each way of numbering its cached keys: cache, absolute, frozen."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import change_axis
from analysis.charts.forest import NAMES
from analysis.charts.marks import Figure, Row
from analysis.charts.theme import variant_styles
from analysis.numbers.order import by
from analysis.words.wording import with_caveat

FIELD = "ppl_change_percent"
MODES = {"cache": "place in the cache, as published", "absolute": "place in the text", "frozen": "never numbered anew"}


def mode_name(variant: str) -> str:
    """A position mode and whose it is, for a legend."""
    mode, _, rest = variant.partition(", ")
    return f"{mode}{', ' + rest if rest else ''}: {MODES[mode]}" if mode in MODES else variant


def position_modes(rows: list[Row]) -> Figure:
    """One line a policy, one point a mode."""
    modes = [*MODES, *sorted({row["variant"].split(",")[0] for row in rows} - set(MODES))]
    variants = sorted({row["variant"] for row in rows}, key=lambda name: (modes.index(name.split(",")[0]), name))
    styles = variant_styles(variants)
    legend = [(mode_name(name), styles[name]) for name in variants]
    rows = [row | {"mode": mode_name(row["variant"])} for row in with_caveat(rows, "policy")]
    tooltip = marks.tips(marks.POLICY, marks.CORPUS, marks.CHANGE, ("kv_percent:Q", "KV kept, %", ".1f"))
    y = alt.Y("base:N", title=None, sort=None, axis=NAMES)
    aside = alt.YOffset("mode:N", sort=[name for name, _ in legend])
    key = alt.Legend(title=None, columns=1)
    panels = []
    for setting, mine in by(rows, "setting").items():
        x = change_axis(alt.X, FIELD, "perplexity against full", mine)
        layers = marks.points(mine, x, y, legend, tooltip, by="mode", size=95, key=key, yOffset=aside)
        about = "perplexity of the same policy under each position mode against the full cache’s, in per cent:"
        about += marks.spoken(mine, FIELD)
        height = max(60, 24 * len(mine))
        panels.append(marks.panel(setting, "", [*marks.rule(alt.X, FIELD, 0.0), *layers], about, height))
    return Figure(panels, legend, min(2, len(panels)))
