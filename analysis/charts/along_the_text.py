"""What eviction costs along the text: by position, with an overview to zoom by, and by length.

The page sets `zoom_from` and `zoom_to` of the detail charts from the brush of the overview; a file shows all of it.
"""

from collections.abc import Callable
from typing import Any

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import NATS, SHARE, change_axis, ends, log2_x
from analysis.charts.marks import Figure, Row
from analysis.charts.theme import STYLES
from analysis.numbers.order import by

STRETCH = "stretch_change_percent"
OVERVIEW_HEIGHT = 70


def excess(rows: list[Row]) -> Figure:
    """Loss over the full cache's, a panel a budget; rules where the budget and the trained context are exceeded."""
    title = "loss over full’s, nats per token"
    return by_position(
        [row for row in rows if row["policy"] != "full"],
        lambda whole, above: change_axis(alt.Y, "excess_nats", "loss over full’s, nats", whole, NATS, 0.01, above),
        ("excess_nats:Q", title, ".3f"),
        f"{title}, along the text, by policy",
    )


def far(rows: list[Row]) -> Figure:
    """The share of tokens more than a tenth of a nat from full, a panel a budget, with the same rules."""
    return by_position(
        rows,
        lambda whole, above: change_axis(alt.Y, "far_percent", "tokens beyond 0.1 nats", whole, SHARE, above=above),
        ("far_percent:Q", "tokens, %", ".2f"),
        "the share of tokens more than a tenth of a nat from the full cache, along the text, by policy",
    )


def stream(rows: list[Row]) -> Figure:
    """Loss itself, of texts on which full was not run, a panel a budget; a rule where the trained context ends."""
    return by_position(
        rows,
        lambda whole, _: alt.Y("nll_nats:Q", title="loss, nats per token", scale=roomy(ends(whole, "nll_nats"), 2)),
        ("nll_nats:Q", "nats per token", ".3f"),
        "loss along the text, by policy",
        of_full=False,
    )


def by_position(
    rows: list[Row], axis: Callable[[list[Row], float], alt.Y], tip: tuple[str, str, str], about: str,
    of_full: bool = True,
) -> Figure:  # fmt: skip
    """Lines along the text, a panel a budget, with rules where the trained context ends and, beside full, the budget.

    axis: that of a setting's rows, with so much room above them for the rules' names.
    """
    legend = marks.legend_of(rows)
    tooltip = marks.tips(marks.POLICY, ("position:Q", "position", ",d"), tip)
    panels = []
    for setting, size, mine, whole in marks.by_budgets(rows):
        context, last = mine[0]["trained_context"], max(row["position"] for row in whole)
        rules = [(size, "budget full")] * of_full + [(context, "trained context ends")] * (context < last)
        x, y = position_x(), axis(whole, 0.5 + len(rules))
        layers = marks.along_lines(mine, x, y, legend, tooltip)
        for line, (value, name) in enumerate(rules):
            layers += marks.rule(alt.X, "position", value, name, value > last / 2, line)
        zoom = {"zoom_from": 0, "zoom_to": round(1.01 * last)}  # beyond the last point, lest it be cut in half
        panels.append(marks.panel(setting, marks.budget_title(size), layers, about, signals=zoom))
    return Figure(panels, legend, marks.most_budgets(rows))


def position_x() -> alt.X:
    """The detail charts' axis, whose ends the page may move."""
    scale = alt.Scale(domainMin=alt.ExprRef("zoom_from"), domainMax=alt.ExprRef("zoom_to"), nice=False, zero=False)
    axis = alt.Axis(format=",d", tickCount=5)
    return alt.X("position:Q", title="position in the text, tokens", scale=scale, axis=axis)


def roomy(numbers: list[float], above: float) -> alt.Scale:
    """A linear scale around `numbers` with room for words above them."""
    room = 0.06 * (max(numbers) - min(numbers) or 1)
    return alt.Scale(domain=[min(numbers) - room, max(numbers) + above * room], nice=False)


def overview(rows: list[Row]) -> Figure:
    """The full cache's loss over the whole text, small, with a brush: the detail charts show what is brushed."""
    panels = []
    for setting, mine in by(rows, "setting").items():
        sizes = sorted({row["budget"] for row in mine})
        full = [row for row in mine if row["policy"] == "full" and row["budget"] == sizes[0]]
        last, context = max(row["position"] for row in mine), mine[0]["trained_context"]
        axis = alt.Axis(format=",d", tickCount=8)
        x = alt.X("position:Q", title=None, scale=alt.Scale(domain=[0, last], nice=False), axis=axis)
        y = alt.Y("nll_nats:Q", title=None, axis=None, scale=roomy(ends(full, "nll_nats"), 1))
        line = alt.Chart(marks.values(full)).encode(x=x, y=y)
        brush = alt.selection_interval(name="brush", encodings=["x"])
        layers: list[Any] = [line.mark_line(color=STYLES["full"].colour, strokeWidth=1.5).add_params(brush)]
        for size in [*sizes, *([context] if context < last else [])]:
            layers += marks.rule(alt.X, "position", size)
        about = "the full cache’s loss over the whole text; the number fields beside it zoom as its brush does"
        panels.append(marks.panel(setting, "", layers, about, OVERVIEW_HEIGHT))
    return Figure(panels, [], 1)


def length(rows: list[Row]) -> Figure:
    """Perplexity against full's on the tokens between each length asked for and the one before."""
    legend = marks.legend_of(rows)
    since, until = ("since:Q", "tokens since", ",d"), ("length:Q", "until", ",d")
    tooltip = marks.tips(marks.POLICY, since, until, (f"{STRETCH}:Q", "PPL against full, %", "+.2f"))
    panels = []
    for setting, size, mine, whole in marks.by_budgets(rows):
        x = log2_x("length", "tokens up to here (log scale)", mine)
        y = change_axis(alt.Y, STRETCH, "perplexity against full", whole)
        layers = [marks.lines(mine, x, y, legend), *marks.points(mine, x, y, legend, tooltip)]
        context, longest = mine[0]["trained_context"], max(row["length"] for row in mine)
        if context < longest:
            layers += marks.rule(alt.X, "length", context, "trained context ends", leftward=True)
        about = "perplexity between one length and the next against the full cache’s, in per cent"
        panels.append(marks.panel(setting, marks.budget_title(size), layers, about))
    return Figure(panels, legend, marks.most_budgets(rows))
