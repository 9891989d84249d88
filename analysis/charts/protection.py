"""Does the scorer matter once the ends are protected: perplexity by the share of newest tokens kept, by scorer."""

import altair as alt

from analysis.charts import marks
from analysis.charts.axes import change_axis
from analysis.charts.marks import Figure, Row
from analysis.charts.theme import style
from analysis.numbers.order import by
from analysis.words.wording import counted

FIELD = "ppl_change_percent"
UNSCORED = "unscored_change_percent"
APART = 1.2  # per cent of the budget between the lines of two scorers, else their whiskers hide one another


def protection(rows: list[Row]) -> Figure:
    """A panel for each budget and number of sinks; across it, what the same budget costs if nothing is scored."""
    looks = {row["scorer"]: style(row["policy"].partition("(")[0]) for row in rows}
    legend = sorted(looks.items(), key=lambda one: order(one[0]))
    offsets = {name: APART * (place - (len(legend) - 1) / 2) for place, (name, _) in enumerate(legend)}
    rows = [row | {"series": row["scorer"], "across": row["recent_percent"] + offsets[row["scorer"]]} for row in rows]
    over = ("over_random_percent:Q", "PPL against random, %", "+.2f")
    tooltip = marks.tips(marks.POLICY, marks.CORPUS, marks.CHANGE, over, *marks.interval("over_random_percent"))
    panels = []
    for setting, whole in by(rows, "setting").items():
        for (budget, sinks), mine in by(whole, "budget", "start_size").items():
            x = alt.X("across:Q", title="newest tokens that always stay, % of the budget")
            x = x.scale(domain=[2 * min(offsets.values()), 100], nice=False).axis(values=[0, 25, 50, 75, 100])
            also = [{FIELD: row[UNSCORED]} for row in whole if row[UNSCORED] is not None]
            y = change_axis(alt.Y, FIELD, "perplexity against full", whole + also)
            layers = [marks.lines(mine, x, y, legend), *marks.points(mine, x, y, legend, tooltip)]
            if mine[0][UNSCORED] is not None:
                layers += marks.rule(alt.Y, FIELD, mine[0][UNSCORED], "no scorer")
            about = "perplexity against full in per cent, by the share of newest tokens protected, one line a scorer:"
            title = f"{marks.budget_title(budget)}, {counted(sinks, 'sink')}"
            panels.append(marks.panel(setting, title, layers, about + marks.spoken(mine, FIELD)))
    return Figure(panels, legend, min(2, len(panels)))


def order(scorer: str) -> tuple[bool, str]:
    """The control first."""
    return scorer != "random", scorer
