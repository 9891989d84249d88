"""The charts of speed and memory against the context or the batch. Rows in, panels out."""

import altair as alt

from analysis.charts.axes import log2_x, log_y
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
from analysis.words.wording import change, with_caveat


def against_context(
    rows: list[Row], field: str, title: str, about: str, extra: tuple[tuple[str, str, str], ...]
) -> Figure:
    """A quantity against the context, both on log axes, one panel per budget beside full and DynamicCache."""
    rows = with_caveat([row for row in rows if row[field] is not None], "contender")
    legend = legend_of(row["series"] for row in rows)
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        whole = [row for row in rows if row["setting"] == setting]
        contexts = sorted({row["context"] for row in whole})
        if len(contexts) == 1:
            panels.append(at_one_context(mine, whole, field, title, budget_title(size), about))
            continue
        x = log2_x("context", "context, tokens (log scale)", whole)
        y = log_y(field, f"{title} (log scale)", whole, least=2)
        layers = lines(values(mine), x, y, "series", legend)
        named = (("contender:N", "policy", ""), ("context:Q", "context", ",d"), (f"{field}:Q", title, ",.4~g"))
        layers[-1] = layers[-1].encode(tooltip=tips(*named, *extra))
        if contexts[0] < size < contexts[-1]:
            layers += rule({"context": size}, "budget full", leftward=size * size > contexts[0] * contexts[-1])
        panels.append(panel(setting, budget_title(size), layers, about))
    alone = len({row["context"] for row in rows}) == 1
    return Figure(panels, legend, most_budgets(rows), named=alone)


def at_one_context(mine: list[Row], whole: list[Row], field: str, title: str, name: str, about: str) -> Panel:
    """Dots on a line from zero, one line a series, where there is no second context to draw a curve to."""
    top = 1.25 * max(row[field] for row in whole)
    across = alt.Scale(domain=[0, top], nice=False)
    x = alt.X(f"{field}:Q", title=title, scale=across, axis=alt.Axis(tickCount=5, format="~g", grid=True))
    placed = [
        {
            **row,
            "low": None,
            "high": None,
            "label": f"{row[field]:,.3g}" + beside_value(row, field),
        }
        for row in sorted(mine, key=lambda row: row[field])
    ]
    layers = forest(placed, field, x, across, top, None, tips(("contender:N", "policy", ""), (f"{field}:Q", title, "")))
    where = f"{mine[0]['context']:,} tokens of context"
    said = about + ":" + spoken(placed, "contender", field)
    return panel(mine[0]["setting"], f"{name} · {where}", layers, said, LINE * len(mine))


def beside_value(row: Row, field: str) -> str:
    """What a value at a single context does not show: that a memory grows with the text."""
    return " grows" if field in ("kv_mb", "peak_mb") and row["skip_layers"] else ""


RATIO = "÷ full's, paired by round"


def tpot(rows: list[Row]) -> Figure:
    """Time per output token."""
    extra = (("tpot_ratio:Q", RATIO, ".3f"), ("tpot_ratio_low:Q", "from", ".3f"), ("tpot_ratio_high:Q", "to", ".3f"))
    return against_context(rows, "tpot_ms", "TPOT, ms", "time per output token against the context", extra)


def ttft(rows: list[Row]) -> Figure:
    """Time to the first token."""
    extra = (("ttft_ratio:Q", RATIO, ".3f"), ("ttft_ratio_low:Q", "from", ".3f"), ("ttft_ratio_high:Q", "to", ".3f"))
    return against_context(rows, "ttft_ms", "TTFT, ms", "time to the first token against the prompt's length", extra)


def kv_memory(rows: list[Row]) -> Figure:
    """Bytes of keys and values, computed. DynamicCache keeps what full keeps."""
    kept = [row for row in rows if row["series"] != "DynamicCache"]
    extra = (("allocated_mb:Q", "allocated, MB", ",.4~g"),)
    return against_context(kept, "kv_mb", "KV, MB", "bytes of keys and values against the context", extra)


def peak_memory(rows: list[Row]) -> Figure:
    """Peak bytes of serving a request, measured, beyond the weights."""
    extra = (("kv_mb:Q", "KV, MB", ",.4~g"),)
    return against_context(rows, "peak_mb", "peak, MB", "peak memory of a request against the context", extra)


def throughput(rows: list[Row]) -> Figure:
    """Output tokens per second against the batch size, one panel per budget beside full and DynamicCache."""
    legend = legend_of(row["series"] for row in rows)
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        whole = [row for row in rows if row["setting"] == setting]
        x = log2_x("batch", "batch, texts at once (log scale)", whole)
        y = log_y("throughput", "output tokens per second (log scale)", whole, least=2)
        layers = lines(values(mine), x, y, "series", legend)
        layers[-1] = layers[-1].encode(
            tooltip=tips(
                ("contender:N", "policy", ""),
                ("batch:Q", "batch", ",d"),
                ("throughput:Q", "output tokens per second", ",.1f"),
                ("tpot_ms:Q", "TPOT, ms", ".2f"),
            )
        )
        title = f"{budget_title(size)} · {mine[0]['context']:,} tokens of context"
        panels.append(panel(setting, title, layers, "output tokens per second against the batch size"))
    return Figure(panels, legend, most_budgets(rows))


def eviction(rows: list[Row]) -> Figure:
    """Forest plot of what eviction adds to a step, one panel per budget."""
    names = ("eviction_percent", "eviction_low_percent", "eviction_high_percent")
    ends = [0.0, *(row[name] for row in rows for name in names if row[name] is not None)]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low or 1)
    across = alt.Scale(domain=[low - room, high + room], nice=False)
    axis = alt.Axis(tickCount=6, grid=True, labelExpr="datum.value ? format(datum.value, '+~g') : '0'")
    x = alt.X("eviction_percent:Q", title="eviction adds to a step, %", scale=across, axis=axis)
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        placed = [
            {**row, "low": row["eviction_low_percent"], "high": row["eviction_high_percent"],
             "label": change(row["eviction_percent"])}
            for row in mine
        ]  # fmt: skip
        tooltip = tips(
            ("contender:N", "policy", ""),
            ("eviction_percent:Q", "eviction adds, %", "+.2f"),
            ("eviction_low_percent:Q", "from", "+.2f"),
            ("eviction_high_percent:Q", "to", "+.2f"),
            ("context:Q", "context", ",d"),
        )
        layers = forest(placed, "eviction_percent", x, across, (low + high) / 2, 0, tooltip)
        about = "what eviction adds to a step in per cent, least first:"
        about += spoken(mine, "contender", "eviction_percent", "+.1f", " %")
        panels.append(panel(setting, budget_title(size), layers, about, LINE * len(mine)))
    return Figure(panels, legend_of(row["series"] for row in rows), most_budgets(rows), named=True)
