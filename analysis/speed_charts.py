"""The charts of speed and memory, and the trade-off of speed against perplexity. As in `charts`, rows in, panels out.

Points measured on a busy machine wear a ring.
"""

from typing import Any

import altair as alt

from analysis.marks import (
    Figure,
    Panel,
    Row,
    forest,
    groups,
    heading,
    legend_of,
    lines,
    log2_x,
    log_ticks,
    log_y,
    most_budgets,
    panel,
    rings,
    rule,
    scales,
    tips,
    values,
)
from analysis.theme import INK, MUTED
from analysis.wording import change, with_caveat


def tradeoff(rows: list[Row]) -> Figure:
    """Perplexity against time per token, both as multiples of full's, with the front that nothing measured beats."""
    legend = legend_of(row["series"] for row in rows)
    scale = scales(legend)
    named = alt.Legend(title=None, columns=3)
    rows = with_caveat(rows, "policy")
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        x = ratio_axis(alt.X, "tpot_ratio", "time per token ÷ full's (log scale)", mine)
        y = ratio_axis(alt.Y, "ppl_ratio", "perplexity ÷ full's (log scale)", mine)
        marked = [{**row, "label": "full" if row["budget"] is None else f"{row['budget']:,}"} for row in mine]
        front = alt.Chart(values(row for row in marked if row["unbeaten"]))
        layers: list[Any] = [
            front.mark_line(interpolate="step-after", color="#868b94", strokeWidth=1.5, opacity=0.8).encode(x=x, y=y)
        ]
        base = alt.Chart(values(marked)).encode(color=alt.Color("series:N", scale=scale["color"], legend=named))
        layers.append(base.mark_rule(strokeWidth=1.5).encode(x="tpot_ratio_low:Q", x2="tpot_ratio_high:Q", y=y))
        layers.append(base.mark_rule(strokeWidth=1.5).encode(y="ppl_ratio_low:Q", y2="ppl_ratio_high:Q", x=x))
        point = base.mark_point(filled=True, size=100, opacity=1).encode(
            x=x,
            y=y,
            shape=alt.Shape("series:N", scale=scale["shape"], legend=named),
            tooltip=tips(
                ("policy:N", "policy", ""),
                ("tpot_ratio:Q", "time per token ÷ full's", ".3f"),
                ("ppl_ratio:Q", "perplexity ÷ full's", ".3f"),
                ("tpot_ms:Q", "TPOT, ms", ".2f"),
                ("kv_percent:Q", "KV kept, %", ".1f"),
            ),
        )
        name = alt.Chart(values(apart(marked))).mark_text(
            align="left", baseline="bottom", dx=6, dy=-4, color=INK, fontSize=11
        )
        layers += [point, name.encode(x=x, y=y, text="label:N"), *rings(marked, x, y)]
        corner = alt.Chart(values([{"better": "faster, better"}])).mark_text(
            align="left", baseline="bottom", color=MUTED, fontWeight="bold"
        )
        layers.append(corner.encode(x=alt.value(6), y=alt.value(340 - 6), text="better:N"))
        where = f"{mine[0]['context']:,} tokens of context"
        title = " · ".join(filter(None, (heading(rows, setting), where)))
        about = "perplexity against time per token of each policy, both as multiples of the full cache's"
        panels.append(panel(title, layers, about, 340))
    return Figure(panels, legend, min(2, len(panels)))


def apart(rows: list[Row]) -> list[Row]:
    """Rows without those whose label would lie upon the same label of an earlier one."""
    found: list[Row] = []
    spans = {name: [row[name] for row in rows] for name in ("tpot_ratio", "ppl_ratio")}
    near = {name: (max(span) / min(span)) ** 0.06 for name, span in spans.items()}
    for row in rows:
        same = [other for other in found if other["label"] == row["label"]]
        if not any(all(max(row[n], o[n]) / min(row[n], o[n]) < near[n] for n in near) for o in same):
            found.append(row)
    return found


def ratio_axis(channel: Any, field: str, title: str, rows: list[Row]) -> Any:
    """A log axis around all ratios, their whiskers, and one."""
    names = (field, f"{field}_low", f"{field}_high")
    numbers = [1.0, *(row[name] for row in rows for name in names if row[name] is not None)]
    low, high = min(numbers), max(numbers)
    room = max((high / low) ** 0.09, 1.01)
    scale = alt.Scale(type="log", domain=[low / room, high * room], nice=False)
    axis = alt.Axis(values=log_ticks([low, high]), format="~g", grid=True)
    return channel(f"{field}:Q", title=title, scale=scale, axis=axis)


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
            panels.append(at_one_context(mine, whole, field, title, heading(rows, setting, size), about))
            continue
        x = log2_x("context", "context, tokens (log scale)", whole)
        y = log_y(field, f"{title} (log scale)", whole, least=2)
        layers = lines(values(mine), x, y, "series", legend)
        named = (("contender:N", "policy", ""), ("context:Q", "context", ",d"), (f"{field}:Q", title, ",.4~g"))
        layers[-1] = layers[-1].encode(tooltip=tips(*named, *extra))
        layers += [] if field in ("kv_mb", "peak_mb") else rings(mine, x, y)
        if contexts[0] < size < contexts[-1]:
            layers += rule({"context": size}, "budget full", leftward=size * size > contexts[0] * contexts[-1])
        panels.append(panel(heading(rows, setting, size), layers, about))
    curves = len({row["context"] for row in rows}) > 1
    return Figure(panels, legend if curves else [], most_budgets(rows))


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
    return panel(" · ".join(filter(None, (name, where))), layers, about, 30 * len(mine))


def beside_value(row: Row, field: str) -> str:
    """What a value at a single context does not show: a busy machine under a time, growth under a memory."""
    if field in ("kv_mb", "peak_mb"):
        return " grows" if row["skip_layers"] else ""
    return " noisy" if row["noisy"] else ""


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
        layers += rings(mine, x, y)
        title = f"{heading(rows, setting, size)} · {mine[0]['context']:,} tokens of context"
        panels.append(panel(title, layers, "output tokens per second against the batch size"))
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
             "label": change(row["eviction_percent"]) + (" noisy" if row["noisy"] else "")}
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
        about = "what eviction adds to a step, least first"
        panels.append(panel(heading(rows, setting, size), layers, about, 30 * len(mine)))
    return Figure(panels, [], most_budgets(rows))
