"""What the page needs of each figure: its words, panels as JSON, legend, query, and the command that fills it."""

import json
from typing import Any

from markupsafe import Markup

from analysis.charts.figures import CHARTS
from analysis.charts.marks import Figure, Panel
from analysis.charts.specs import for_page
from analysis.numbers import database

Row = dict[str, Any]


def view(name: str, figure: Figure | None, overview: Row) -> Row:
    """One figure for the template."""
    chart = CHARTS[name]
    text = overview["texts"][0] if overview["texts"] else "pg19"
    drawn = figure or Figure([], [])
    return vars(chart) | {
        "name": name,
        "short": chart.heading.partition(":")[0],
        "command": chart.command.format(models=",".join(overview["models"]), text=text),
        "panels": [panel(one) for one in drawn.panels],
        "legend": [] if drawn.named else drawn.legend,
        "columns": drawn.columns,
        "several": drawn.several,
        "sql": code(database.sql(chart.query)),
    }


def panel(one: Panel) -> Row:
    """One panel for the template."""
    spec = for_page(one)
    shown = {"setting": one.setting, "of": model_of(one.setting), "title": one.title}
    return shown | {"height": spec["height"], "spec": escape_json(spec)}


def model_of(setting: str) -> str:
    """The model of a setting, by which the page's switch goes."""
    return setting.split(" · ")[0]


def escape_json(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def code(text: str) -> Markup:
    """SQL, escaped; its line ends are no characters to be made visible."""
    return Markup(str(Markup.escape(text)))
