"""Charts that compare like with like: methods at one budget, numbers of sinks, position modes. Rows in, panels out."""

from typing import Any

import altair as alt

from analysis.charts.along import CHANGE, CORPUS
from analysis.charts.axes import change_axis, ends, log_y
from analysis.charts.forest import LINE, forest
from analysis.charts.marks import (
    Figure,
    Row,
    budget_title,
    emphasis,
    groups,
    legend_of,
    lines,
    most_budgets,
    panel,
    scales,
    spoken,
    tips,
    values,
)
from analysis.charts.theme import BUDGET_STYLES, RULE, variant_style
from analysis.words.wording import change, with_caveat

LOST = "ppl_change_percent"
MODES = {"cache": "as the paper means it", "absolute": "as the seed measured", "frozen": "the bug"}


def cross_method(rows: list[Row]) -> Figure:
    """Forest plot: one panel per budget, the change against full with its spread, ties with the best named."""
    rows = with_caveat(rows, "policy")
    x = change_axis(alt.X, "ppl_ratio", "perplexity against full (log scale)", rows)
    low, high = x["scale"]["domain"]
    tooltip = tips(("policy:N", "policy", ""), CORPUS, CHANGE, ("spread:N", "whisker", ""))
    panels = []
    for (setting, size), mine in groups(rows, "setting", "budget"):
        placed = [
            {**row, "low": row["ppl_ratio_low"], "high": row["ppl_ratio_high"],
             "label": change(row["ppl_change_percent"]) + (", tie" if row["tied_with_best"] else "")}
            for row in mine
        ]  # fmt: skip
        layers = forest(placed, "ppl_ratio", x, x["scale"], (low * high) ** 0.5, 1, tooltip)
        about = "perplexity of each method against the full cache’s in per cent, best first:"
        about += spoken(mine, "policy", "ppl_change_percent", "+.1f", " %")
        panels.append(panel(setting, budget_title(size), layers, about, LINE * len(mine)))
    return Figure(panels, legend_of(row["series"] for row in rows), most_budgets(rows), named=True)


def start_size(rows: list[Row]) -> Figure:
    """What is lost against full, by the number of sinks at equal total budget."""
    sizes = sorted({row["budget"] for row in rows})
    legend = [(f"budget {size:,}", BUDGET_STYLES[index % len(BUDGET_STYLES)]) for index, size in enumerate(sizes)]
    panels = []
    for (setting,), every in groups(rows, "setting"):
        mine = [
            row | {"of": f"budget {row['budget']:,}", "sinks": str(row["start_size"]), "ratio": 1 + row[LOST] / 100}
            for row in every
            if row[LOST] is not None
        ]
        if not mine:
            continue
        counts = [str(one) for one in sorted({row["start_size"] for row in mine})]
        x = alt.X("sinks:O", title="sinks (start_size), inside the same budget", sort=counts,
                  axis=alt.Axis(labelAngle=0), scale=alt.Scale(padding=0.4))  # fmt: skip
        layers = lines(values(mine), x, loss_axis(mine), "of", legend)
        layers[-1] = layers[-1].encode(tooltip=tips(("policy:N", "policy", ""), CORPUS, CHANGE))
        about = "perplexity above the full cache’s, in per cent, by the number of attention sinks at equal budget:"
        panels.append(panel(setting, "", layers, about + spoken(mine, "policy", LOST, "+.1f", " %")))
    return Figure(panels, legend, min(3, len(panels)))


def loss_axis(rows: list[Row]) -> alt.Y:
    """The loss on a log scale of its own, since without sinks it is a hundred times what it is with them."""
    if min(row[LOST] for row in rows) > 0:
        axis = log_y(LOST, "perplexity above full’s, % (log scale)", rows, least=3)
        axis["axis"]["labelExpr"] = "'+' + datum.label + ' %'"
        return axis
    # Where a policy does not lose there is no logarithm of the loss.
    ends_of_none = [row | {"ratio_low": None, "ratio_high": None} for row in rows]
    return change_axis(alt.Y, "ratio", "perplexity against full (log scale)", ends_of_none)


def mode_name(variant: str) -> str:
    """A position mode and whose it is, for a legend."""
    mode, _, rest = variant.partition(", ")
    return f"{mode}{', ' + rest if rest else ''}: {MODES[mode]}" if mode in MODES else variant


def position_modes(rows: list[Row]) -> Figure:
    """The same policy under each way of numbering its cached keys."""
    modes = list(MODES)
    found = {row["variant"] for row in rows}
    names = sorted(
        found, key=lambda name: (modes.index(name.split(",")[0]) if name.split(",")[0] in modes else 9, name)
    )
    legend = [(mode_name(name), variant_style(name)) for name in names]
    scale = scales(legend)
    rows = [row | {"mode": mode_name(row["variant"])} for row in with_caveat(rows, "policy")]
    panels = []
    for (setting,), mine in groups(rows, "setting"):
        x = change_axis(alt.X, "ppl_ratio", "perplexity against full (log scale)", mine)
        y = alt.Y("base:N", title=None, sort=None,
                  axis=alt.Axis(labelLimit=240, domain=False, ticks=False, labelPadding=8))  # fmt: skip
        named = alt.Legend(title=None, columns=1)
        base: Any = alt.Chart(values(mine)).encode(
            y=y,
            yOffset=alt.YOffset("mode:N", sort=[name for name, _ in legend]),
            color=alt.Color("mode:N", scale=scale["color"], legend=named),
            opacity=emphasis("mode"),
        )
        line = alt.Chart(values([{"one": 1}])).mark_rule(color=RULE, strokeDash=[5, 3], strokeWidth=1.5)
        known = [row for row in mine if row["ppl_ratio_low"] is not None]
        low = alt.X("ppl_ratio_low:Q", scale=x["scale"], title=x["title"], axis=x["axis"])
        whisker = (
            base.properties(data=values(known)).mark_rule(strokeWidth=2).encode(x=low, x2=alt.X2("ppl_ratio_high:Q"))
        )
        point = base.mark_point(filled=True, size=95).encode(
            x=x,
            shape=alt.Shape("mode:N", scale=scale["shape"], legend=named),
            tooltip=tips(("policy:N", "policy", ""), CORPUS, CHANGE, ("kv_percent:Q", "KV kept, %", ".1f")),
        )
        layers = [line.encode(x=alt.X("one:Q")), *([whisker] if ends(known, "ppl_ratio_low") else []), point]
        about = "perplexity of the same policy under each position mode against the full cache’s, in per cent:"
        about += spoken(mine, "policy", "ppl_change_percent", "+.1f", " %")
        panels.append(panel(setting, "", layers, about, max(60, 24 * len(mine))))
    return Figure(panels, legend, min(2, len(panels)))
