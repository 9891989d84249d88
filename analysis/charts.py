"""Rows of a query → charts. One function per figure returns its panels; nothing here computes a number.

A figure is a list of panels (small multiples). The page lays panels out itself, each as wide as its column; files for
papers are the same panels side by side at a fixed width with one legend.
"""

from collections.abc import Callable
from typing import Any

import altair as alt

from analysis import speed_charts
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
    rule,
    scales,
    slim,
    sparse,
    tips,
    values,
)
from analysis.theme import BUDGET_STYLES, variant_style
from analysis.wording import change, with_caveat

FILE_WIDTH = 400


CHANGE = ("ppl_change_percent:Q", "PPL change against full, %", "+.2f")
CORPUS = ("ppl_corpus:Q", "PPL, corpus", ".3f")


def budget(rows: list[Row]) -> Figure:
    """Perplexity against budget, full as a horizontal rule."""
    legend = legend_of(row["series"] for row in rows if row["budget"] is not None)
    rows = with_caveat(rows, "policy")
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        bounded = [row for row in mine if row["budget"] is not None]
        if not bounded:
            continue
        x = log2_x("budget", "budget, tokens (log scale)", bounded)
        layers = lines(values(bounded), x, log_y("ppl_placed", "perplexity (log scale)", mine), "series", legend)
        layers[-1] = layers[-1].encode(
            tooltip=tips(("policy:N", "policy", ""), CORPUS, CHANGE, ("kv_percent:Q", "KV kept, %", ".1f"))
        )
        for row in mine:
            if row["budget"] is None:
                layers += rule(
                    {"ppl_placed": row["ppl_placed"]}, f"full cache {row['ppl_corpus']:.2f}", horizontal=True
                )
        panels.append(panel(heading(rows, setting), layers, "perplexity of each policy against its budget in tokens"))
    return Figure(panels, legend, min(3, len(panels)))


def cross_method(rows: list[Row]) -> Figure:
    """Forest plot: one panel per budget, the ratio to full with its spread."""
    rows = with_caveat(rows, "policy")
    ends = [
        row[name] for row in rows for name in ("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high") if row[name] is not None
    ]
    low, high = min([1.0, *ends]), max(ends)
    room = max((high / low) ** 0.04, 1.005)
    across = alt.Scale(type="log", domain=[low / room, high * room], nice=False)
    axis = alt.Axis(values=log_ticks([low, high]), format="~g", grid=True)
    x = alt.X("ppl_ratio:Q", title="perplexity ÷ full's (log scale)", scale=across, axis=axis)
    tooltip = tips(("policy:N", "policy", ""), CORPUS, CHANGE, ("spread:N", "whisker", ""))
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        placed = [
            {**row, "low": row["ppl_ratio_low"], "high": row["ppl_ratio_high"],
             "label": change(row["ppl_change_percent"])}
            for row in mine
        ]  # fmt: skip
        layers = forest(placed, "ppl_ratio", x, across, (low * high) ** 0.5, 1, tooltip)
        about = "perplexity of each method as a multiple of the full cache's, best first"
        panels.append(panel(heading(rows, setting, size), layers, about, 30 * len(mine)))
    return Figure(panels, [], most_budgets(rows))


def start_size(rows: list[Row]) -> Figure:
    """Perplexity against the number of sinks at equal total budget."""
    sizes = sorted({row["budget"] for row in rows})
    legend = [(f"budget {size:,}", BUDGET_STYLES[index % len(BUDGET_STYLES)]) for index, size in enumerate(sizes)]
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        marked = [{**row, "of": f"budget {row['budget']:,}", "sinks": str(row["start_size"])} for row in mine]
        every = sorted({row["start_size"] for row in mine})
        x = alt.X("sinks:O", title="sinks (start_size), inside the same budget", sort=[str(one) for one in every],
                  axis=alt.Axis(labelAngle=0), scale=alt.Scale(padding=0.4))  # fmt: skip
        around = mine + [{**row, "ppl_placed": row["full_ppl"]} for row in mine if row["full_ppl"]]
        layers = lines(values(marked), x, log_y("ppl_placed", "perplexity (log scale)", around), "of", legend)
        layers[-1] = layers[-1].encode(tooltip=tips(("policy:N", "policy", ""), CORPUS, CHANGE))
        if mine[0]["full_ppl"]:
            layers += rule(
                {"ppl_placed": mine[0]["full_ppl"]}, f"full cache {mine[0]['full_ppl']:.2f}", horizontal=True
            )
        panels.append(
            panel(heading(rows, setting), layers, "perplexity against the number of attention sinks at equal budget")
        )
    return Figure(panels, legend, min(3, len(panels)))


def along(rows: list[Row], field: str, title: str) -> Figure:
    """A quantity along the sequence; rules where the budget and the trained context are exceeded."""
    legend = legend_of(row["series"] for row in rows)
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        whole = [row for row in rows if row["setting"] == setting]
        context = mine[0]["trained_context"]
        last = max(row["position"] for row in whole)
        numbers = [row[field] for row in whole if row[field] is not None]
        room = 0.06 * (max(numbers) - min(numbers) or 1)
        x = alt.X("position:Q", title="position in the text, tokens", scale=alt.Scale(domain=[0, last], nice=False),
                  axis=alt.Axis(format=",d", tickCount=5))  # fmt: skip
        y = alt.Y(
            f"{field}:Q",
            title=title,
            scale=alt.Scale(
                domain=[min(numbers) - room, max(numbers) + (3.5 if context < last else 2) * room], nice=False
            ),
        )
        mine = slim(mine, "series", "policy", "position", field)
        layers = lines(values(mine), x, y, "series", legend, marks=values(sparse(mine)))
        layers[0] = layers[0].encode(
            tooltip=tips(("policy:N", "policy", ""), ("position:Q", "position", ",d"), (f"{field}:Q", title, ".3f"))
        )
        layers += rule({"position": size}, "budget full", leftward=size > last / 2)
        if context < last:
            layers += rule(
                {"position": context},
                "trained context ends",
                leftward=context > last / 2,
                line_of_text=1,
            )
        panels.append(panel(heading(rows, setting, size), layers, f"{title} along the text"))
    return Figure(panels, legend, most_budgets(rows))


def position(rows: list[Row]) -> Figure:
    """Loss along the sequence."""
    return along(rows, "nll_placed_nats", "NLL, nats per token")


def excess(rows: list[Row]) -> Figure:
    """Loss over the full cache's on the same tokens, along the sequence."""
    return along([row for row in rows if row["policy"] != "full"], "excess_nats", "NLL over full's, nats per token")


def length(rows: list[Row]) -> Figure:
    """Perplexity at each length asked for."""
    legend = legend_of(row["series"] for row in rows)
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        whole = [row for row in rows if row["setting"] == setting]
        x = log2_x("length", "length of the text, tokens (log scale)", mine)
        layers = lines(values(mine), x, log_y("ppl_placed", "perplexity (log scale)", whole), "series", legend)
        layers[-1] = layers[-1].encode(
            tooltip=tips(("policy:N", "policy", ""), ("length:Q", "length", ",d"), CORPUS, CHANGE)
        )
        context, longest = mine[0]["trained_context"], max(row["length"] for row in mine)
        if context < longest:
            layers += rule({"length": context}, "trained context ends", leftward=True)
        panels.append(panel(heading(rows, setting, size), layers, "perplexity of the first L tokens against L"))
    return Figure(panels, legend, most_budgets(rows))


def position_modes(rows: list[Row]) -> Figure:
    """The same policy under each way of numbering its cached keys."""
    names = sorted(
        {row["variant"] for row in rows},
        key=lambda name: (("cache", "absolute", "frozen").index(name.split(",")[0]), name),
    )
    legend = [(name, variant_style(name)) for name in names]
    scale = scales(legend)
    rows = with_caveat(rows, "policy")
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        ends = [row[name] for row in mine for name in ("ppl_ratio_low", "ppl_ratio_high") if row[name] is not None]
        low, high = min([1.0, *ends]), max([1.001, *ends])
        room = max((high / low) ** 0.05, 1.005)
        across = alt.Scale(type="log", domain=[low / room, high * room], nice=False)
        axis = alt.Axis(values=log_ticks([low, high]), format="~g", grid=True)
        y = alt.Y(
            "base:N", title=None, sort=None, axis=alt.Axis(labelLimit=240, domain=False, ticks=False, labelPadding=8)
        )
        dodge = alt.YOffset("variant:N", sort=names)
        named = alt.Legend(title=None, columns=1)
        base = alt.Chart(values(mine)).encode(
            y=y, yOffset=dodge, color=alt.Color("variant:N", scale=scale["color"], legend=named)
        )
        line = (
            alt.Chart(values([{"one": 1}]))
            .mark_rule(color="#868b94", strokeDash=[5, 3], strokeWidth=1.5)
            .encode(x="one:Q")
        )
        whisker = base.mark_rule(strokeWidth=2).encode(x=alt.X("ppl_ratio_low:Q", scale=across), x2="ppl_ratio_high:Q")
        point = base.mark_point(filled=True, size=95, opacity=1).encode(
            x=alt.X("ppl_ratio:Q", title="perplexity ÷ full's (log scale)", scale=across, axis=axis),
            shape=alt.Shape("variant:N", scale=scale["shape"], legend=named),
            tooltip=tips(("policy:N", "policy", ""), CORPUS, CHANGE, ("kv_percent:Q", "KV kept, %", ".1f")),
        )
        about = "perplexity of the same policy under each position mode, as a multiple of the full cache's"
        panels.append(panel(heading(rows, setting), [line, whisker, point], about, 22 * len(mine)))
    return Figure(panels, legend, min(3, len(panels)))


FIGURES: dict[str, tuple[str, Callable[[list[Row]], Figure]]] = {
    "tradeoff": ("tradeoff", speed_charts.tradeoff),
    "budget": ("budget", budget),
    "cross_method": ("cross_method", cross_method),
    "position": ("position", position),
    "excess": ("position", excess),
    "start_size": ("start_size", start_size),
    "length": ("length", length),
    "position_modes": ("position_modes", position_modes),
    "tpot": ("context", speed_charts.tpot),
    "ttft": ("context", speed_charts.ttft),
    "eviction": ("eviction", speed_charts.eviction),
    "throughput": ("throughput", speed_charts.throughput),
    "kv_memory": ("context", speed_charts.kv_memory),
    "peak_memory": ("context", speed_charts.peak_memory),
}


def for_page(one: Panel) -> Row:
    """A panel's spec for the page: as wide as its container, no legend (the page draws one per figure)."""
    chart = one.chart.properties(width="container", autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    spec = chart.to_dict(validate=False)
    for layer in spec["layer"]:
        for channel in ("color", "shape", "strokeDash"):
            if channel in layer.get("encoding", {}):
                layer["encoding"][channel]["legend"] = None
    return spec


def for_file(figure: Figure, title: str) -> Row:
    """All panels of a figure with one legend, on white."""
    charts = [one.chart.properties(width=FILE_WIDTH, title=one.title or title) for one in figure.panels]
    if len(charts) == 1 and figure.panels[0].title:
        charts[0] = charts[0].properties(title=alt.Title(title, subtitle=figure.panels[0].title))
    whole: Any = charts[0] if len(charts) == 1 else alt.concat(*charts, columns=figure.columns, title=title)
    return whole.configure(background="white", padding=14).to_dict(validate=False)
