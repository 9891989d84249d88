"""Where eviction hurts: full's attention to evicted tokens, a heat map a policy."""

from typing import Any

import altair as alt

from analysis.charts import marks
from analysis.charts.marks import Figure, Panel, Row
from analysis.numbers.order import by
from analysis.words.wording import percent

FIELD, LINE, MOST = "lost_percent", 9, 12


def attention(rows: list[Row]) -> Figure:
    """A panel a policy, at most MOST: of the smallest budget first, and there by how much is lost."""
    panels = []
    for setting, whole in by(rows, "setting").items():
        panels += [heat_map(setting, policy, mine) for policy, mine in list(by(whole, "policy").items())[:MOST]]
    return Figure(panels, [], 3)


def heat_map(setting: str, policy: str, rows: list[Row]) -> Panel:
    """A row a layer, a column a head."""
    highest = rows[0]["highest_percent"] or 1  # where nothing is lost, a scale all the same
    scale = alt.Scale(domain=[0, highest], scheme="viridis", reverse=True)
    key = alt.Legend(title="attention lost, %", orient="bottom", gradientLength=140, format=".3~g")
    lost = alt.Color(f"{FIELD}:Q", scale=scale, legend=key)
    tooltip = marks.tips(
        marks.POLICY, ("layer:O", "layer", ""), ("head:O", "head", ""), (f"{FIELD}:Q", "lost, %", ".2f")
    )
    places = {"x": along(alt.X, "head", rows), "y": along(alt.Y, "layer", rows)}
    heat = alt.Chart(marks.values(rows)).mark_rect().encode(**places, color=lost, tooltip=tooltip)
    mean = percent(rows[0]["mean_percent"])
    about = f"the full cache’s attention on tokens that {policy} has evicted, by layer and head: {mean} on average"
    return marks.panel(setting, f"{policy}: {mean}", [heat], about, max(90, LINE * len({row["layer"] for row in rows})))


def along(channel: Any, field: str, rows: list[Row]) -> Any:
    """An axis of layers or heads, of which some eight are numbered."""
    count = 1 + max(row[field] for row in rows)
    axis = alt.Axis(values=list(range(0, count, -(-count // 8))), labelAngle=0, domain=False, ticks=False)
    return channel(f"{field}:O", title=field, axis=axis)
