"""The charts of speed and memory against the context or the batch. Rows in, panels out."""

import altair as alt

from analysis.charts.axes import bound, ends, log2_x, log_y, ratio_axis
from analysis.charts.forest import LINE, forest
from analysis.charts.marks import (
    Figure,
    Panel,
    Row,
    budget_title,
    groups,
    legend_of,
    lines,
    most_budgets,
    panel,
    rule,
    spoken,
    tips,
    values,
)
from analysis.words.wording import change, times, with_caveat

RATIO = (
    ("tpot_ratio:Q", "÷ full’s, paired by round", ".3f"),
    ("tpot_ratio_low:Q", "from", ".3f"),
    ("tpot_ratio_high:Q", "to", ".3f"),
)


def tpot(rows: list[Row]) -> Figure:
    """Time per output token: milliseconds over the context, or at a single context multiples of full's."""
    rows = with_caveat(rows, "contender")
    panels = []
    for (setting, _), mine in groups(rows, "setting", "budget"):
        whole = [row for row in rows if row["setting"] == setting]
        if len({row["context"] for row in whole}) > 1:
            y = log_y("tpot_ms", "TPOT, ms (log scale)", whole, least=2)
            panels.append(over_contexts(mine, whole, y, "tpot_ms", "TPOT, ms", RATIO))
            continue
        x = ratio_axis(alt.X, "tpot_ratio", "time per token ÷ full’s (log scale)", whole, 1.1)
        low, high = x["scale"]["domain"]
        placed = [row | {"label": times(row["tpot_ratio"])} for row in mine if row["tpot_ratio"] is not None]
        tooltip = tips(("contender:N", "policy", ""), ("tpot_ms:Q", "TPOT, ms", ",.4~g"), *RATIO)
        layers = forest(
            sorted(placed, key=lambda row: row["tpot_ratio"]), "tpot_ratio", x, (low * high) ** 0.5, 1, tooltip
        )
        about = "time per output token as a multiple of full’s:" + spoken(placed, "contender", "tpot_ratio", ".3f")
        panels.append(at_context(mine, layers, about))
    return Figure(panels, legend_of(row["series"] for row in rows), most_budgets(rows), named=one_context(rows))


def peak_memory(rows: list[Row]) -> Figure:
    """Peak bytes of serving a request beyond the weights, measured; from zero, so that a saving shows as what it is."""
    rows = with_caveat([row for row in rows if row["peak_mb"] is not None], "contender")
    kept = (("kv_mb:Q", "KV, MB", ",.4~g"),)
    panels = []
    for (setting, _), mine in groups(rows, "setting", "budget"):
        whole = [row for row in rows if row["setting"] == setting]
        scale = alt.Scale(domain=[0, 1.25 * max(row["peak_mb"] for row in whole)], nice=False)
        axis = alt.Axis(tickCount=5, format=",~g", grid=True)
        if len({row["context"] for row in whole}) > 1:
            y = alt.Y("peak_mb:Q", title="peak, MB", scale=scale, axis=axis)
            panels.append(over_contexts(mine, whole, y, "peak_mb", "peak, MB", kept))
            continue
        x = alt.X("peak_mb:Q", title="peak, MB", scale=scale, axis=axis)
        placed = [
            row | {"label": f"{row['peak_mb']:,.3g}" + (" grows" if row["skip_layers"] else "")}
            for row in sorted(mine, key=lambda row: row["peak_mb"])
        ]
        tooltip = tips(("contender:N", "policy", ""), ("peak_mb:Q", "peak, MB", ",.4~g"), *kept)
        layers = forest(placed, "peak_mb", x, scale["domain"][1], None, tooltip)
        panels.append(at_context(mine, layers, "peak memory of a request:" + spoken(placed, "contender", "peak_mb")))
    return Figure(panels, legend_of(row["series"] for row in rows), most_budgets(rows), named=one_context(rows))


def one_context(rows: list[Row]) -> bool:
    """Whether an axis names the series, as it does where there is no second context to draw a curve to."""
    return len({row["context"] for row in rows}) == 1


def over_contexts(
    mine: list[Row], whole: list[Row], y: alt.Y, field: str, title: str, extra: tuple[tuple[str, str, str], ...]
) -> Panel:
    """A quantity against the context, beside full and DynamicCache; a rule where the budget is exceeded."""
    setting, size = mine[0]["setting"], mine[0]["budget"]
    contexts = sorted({row["context"] for row in whole})
    x = log2_x("context", "context, tokens (log scale)", whole)
    layers = lines(values(mine), x, y, "series", legend_of(row["series"] for row in whole))
    named = (("contender:N", "policy", ""), ("context:Q", "context", ",d"), (f"{field}:Q", title, ",.4~g"))
    layers[-1] = layers[-1].encode(tooltip=tips(*named, *extra))
    if contexts[0] < size < contexts[-1]:
        layers += rule({"context": size}, "budget full", leftward=size * size > contexts[0] * contexts[-1])
    return panel(setting, budget_title(size), layers, f"{title}, of a request against its context")


def at_context(mine: list[Row], layers: list[alt.Chart], about: str) -> Panel:
    """A forest of the one context that was run."""
    title = f"{budget_title(mine[0]['budget'])} · {mine[0]['context']:,} tokens of context"
    return panel(mine[0]["setting"], title, layers, about, LINE * len(mine))


def throughput(rows: list[Row]) -> Figure:
    """Output tokens per second against the batch size, one panel per budget beside full and DynamicCache."""
    legend = legend_of(row["series"] for row in rows)
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        whole = [row for row in rows if row["setting"] == setting]
        x = log2_x("batch", "batch, texts at once (log scale)", whole)
        y = log_y("throughput", "output tokens per second (log scale)", whole, least=2)
        layers = lines(values(mine), x, y, "series", legend)
        shown = [("contender:N", "policy", ""), ("batch:Q", "batch", ",d"), ("tpot_ms:Q", "TPOT, ms", ".2f")]
        layers[-1] = layers[-1].encode(tooltip=tips(*shown, ("throughput:Q", "output tokens per second", ",.1f")))
        title = f"{budget_title(size)} · {mine[0]['context']:,} tokens of context"
        panels.append(panel(setting, title, layers, "output tokens per second against the batch size"))
    return Figure(panels, legend, most_budgets(rows))


def eviction(rows: list[Row]) -> Figure:
    """Forest plot of what eviction adds to a step, one panel per budget, the series in one order."""
    field = "eviction_percent"
    legend = legend_of(row["series"] for row in rows)
    places = {name: place for place, (name, _) in enumerate(legend)}
    found = [0.0, *ends(rows, field, bound(field, "low"), bound(field, "high"))]
    low, high = min(found), max(found)
    room = 0.06 * (high - low or 1)
    scale = alt.Scale(domain=[low - room, high + room], nice=False)
    axis = alt.Axis(tickCount=6, grid=True, labelExpr="datum.value ? format(datum.value, '+~g') : '0'")
    x = alt.X(f"{field}:Q", title="eviction adds to a step, %", scale=scale, axis=axis)
    tooltip = tips(
        ("contender:N", "policy", ""),
        (f"{field}:Q", "eviction adds, %", "+.2f"),
        (f"{bound(field, 'low')}:Q", "from", "+.2f"),
        (f"{bound(field, 'high')}:Q", "to", "+.2f"),
        ("context:Q", "context", ",d"),
    )
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        placed = [row | {"label": change(row[field])} for row in sorted(mine, key=lambda row: places[row["series"]])]
        layers = forest(placed, field, x, (low + high) / 2, 0, tooltip)
        about = "what eviction adds to a step in per cent:" + spoken(placed, "contender", field, "+.1f", " %")
        panels.append(panel(setting, budget_title(size), layers, about, 22 * len(mine)))
    return Figure(panels, legend, most_budgets(rows), named=True)
