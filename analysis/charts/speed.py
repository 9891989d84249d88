"""The charts of speed and memory against the context or the batch. Rows in, panels out."""

from typing import Any

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import linear_axis, log2_x, log_y, ratio_axis
from analysis.charts.forest import forest
from analysis.charts.marks import CONTENDER, Figure, Panel, Row, interval, spoken, tips
from analysis.words.wording import change, times, with_caveat

RATIO = (("tpot_ratio:Q", "÷ full’s, paired by round", ".3f"), *interval("tpot_ratio", ".3f"))
BATCH = ("batch:Q", "batch", ",d")


def tpot(rows: list[Row]) -> Figure:
    """Time per token: milliseconds over the context, or at a single context multiples of full's."""
    rows = with_caveat(rows, "contender")
    shown = (BATCH, ("tpot_ms:Q", "time per token, ms", ",.4~g"), *RATIO)
    legend, panels = marks.legend_of(rows), []
    for _, _, mine, whole in marks.by_budgets(rows):
        if has_several(whole, "context"):
            y = log_y("tpot_ms", "time per token, ms (log scale)", whole, 2)
            panels.append(over("context", mine, whole, y, shown, legend))
            continue
        x = ratio_axis(alt.X, "tpot_ratio", "time per token ÷ full’s (log scale)", whole, 1.1)
        known = sorted((row for row in mine if row["tpot_ratio"] is not None), key=lambda row: row["tpot_ratio"])
        placed = [row | {"label": times(row["tpot_ratio"])} for row in known]
        about = "time per token as a multiple of full’s:" + spoken(placed, "tpot_ratio", ".3f", "", "contender")
        panels.append(forest(titled(mine[0], "context", "batch"), placed, x, 1, tips(CONTENDER, *shown), about, legend))
    return plate(rows, panels, not has_several(rows, "context"))


def peak_memory(rows: list[Row]) -> Figure:
    """Peak bytes of serving a request beyond the weights, measured; from zero, so that a saving shows as what it is."""
    rows = with_caveat([row for row in rows if row["peak_mb"] is not None], "contender")
    shown = (BATCH, ("peak_mb:Q", "peak, MB", ",.4~g"), ("kv_mb:Q", "KV, MB", ",.4~g"))
    legend, panels = marks.legend_of(rows), []
    for _, _, mine, whole in marks.by_budgets(rows):
        several = has_several(whole, "context")
        scale = alt.Scale(domain=[0, 1.25 * max(row["peak_mb"] for row in whole)], nice=False)
        look = alt.Axis(tickCount=5, format=",~r", grid=True)
        axis: Any = (alt.Y if several else alt.X)("peak_mb:Q", title="peak, MB", scale=scale, axis=look)
        if several:
            panels.append(over("context", mine, whole, axis, shown, legend))
            continue
        placed = [
            row | {"label": f"{row['peak_mb']:,.3g}" + (" grows" if row["skip_layers"] else "")}
            for row in sorted(mine, key=lambda row: row["peak_mb"])
        ]
        about = "peak memory of a request:" + spoken(placed, "peak_mb", ".3g", "", "contender")
        title, tooltip = titled(mine[0], "context", "batch"), tips(CONTENDER, *shown)
        panels.append(forest(title, placed, axis, None, tooltip, about, legend))
    return plate(rows, panels, not has_several(rows, "context"))


def throughput(rows: list[Row]) -> Figure:
    """Output tokens per second against the batch size, one panel per budget beside full and DynamicCache."""
    shown = (("tpot_ms:Q", "time per token, ms", ".2f"), ("throughput:Q", "output tokens per second", ",.1f"))
    panels = []
    for _, _, mine, whole in marks.by_budgets(rows):
        y = log_y("throughput", "output tokens per second (log scale)", whole, least=2)
        panels.append(over("batch", mine, whole, y, shown, marks.legend_of(rows)))
    return plate(rows, panels)


def eviction(rows: list[Row]) -> Figure:
    """Forest plot of what eviction adds to a step, one panel per budget, the series in one order."""
    field = "eviction_percent"
    legend = marks.legend_of(rows)
    places = {name: place for place, (name, _) in enumerate(legend)}
    x = linear_axis(alt.X, field, "eviction adds to a step, %", rows, room=0.3)  # for the numbers in print
    adds, where = (f"{field}:Q", "eviction adds, %", "+.2f"), (("context:Q", "context", ",d"), BATCH)
    tooltip = tips(CONTENDER, adds, *interval(field), *where)
    panels = []
    for _, _, mine, _ in marks.by_budgets(rows):
        placed = [row | {"label": change(row[field])} for row in sorted(mine, key=lambda row: places[row["series"]])]
        about = "what eviction adds to a step in per cent:" + spoken(placed, field, name="contender")
        panels.append(forest(titled(mine[0], "batch"), placed, x, 0, tooltip, about, legend))
    return plate(rows, panels, True)


def has_several(rows: list[Row], field: str) -> bool:
    """Whether there is a curve to draw; where there is not, an axis names the series."""
    return len({row[field] for row in rows}) > 1


def plate(rows: list[Row], panels: list[Panel], named: bool = False) -> Figure:
    """Panels by budget and the legend of all."""
    return Figure(panels, marks.legend_of(rows), marks.most_budgets(rows), named)


def titled(row: Row, *alike: str) -> str:
    """The title of a panel by its budget, whose rows are all of one context or batch; which is named unless it is 1."""
    context = [f"{row['context']:,} tokens of context"] if "context" in alike else []
    batch = [f"batch {row['batch']}"] if "batch" in alike and row["batch"] > 1 else []
    return " · ".join([marks.budget_title(row["budget"]), *context, *batch])


def over(field: str, mine: list[Row], whole: list[Row], y: alt.Y, shown: Any, legend: marks.Legend) -> Panel:
    """A quantity against the context or the batch, beside full and DynamicCache; a rule where a context fills it.

    legend: the whole figure's, as in a file its panels share one scale of colours.
    """
    setting, size = mine[0]["setting"], mine[0]["budget"]
    title = {"context": "context, tokens", "batch": "batch, texts at once"}[field]
    x = log2_x(field, f"{title} (log scale)", whole)
    layers = [marks.lines(mine, x, y, legend)]
    layers += marks.points(mine, x, y, legend, tips(CONTENDER, (f"{field}:Q", field, ",d"), *shown))
    about = f"{y['title']} against the {field}"
    if field == "batch":
        return marks.panel(setting, titled(mine[0], "context"), layers, about)
    first, *_, last = sorted({row["context"] for row in whole})
    if first < size < last:
        layers += marks.rule(alt.X, "context", size, "budget full", leftward=size * size > first * last)
    return marks.panel(setting, titled(mine[0], "batch"), layers, about)
