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
    return {
        "name": name,
        "section": chart.section,
        "heading": chart.heading,
        "caption": chart.caption,
        "needs": chart.needs,
        "command": chart.command.format(models=",".join(overview["models"]), text=text),
        "panels": [panel(one) for one in figure.panels] if figure else [],
        "legend": figure.legend if figure and not figure.named else [],
        "columns": figure.columns if figure else 1,
        "several": figure.several if figure else False,
        "query": chart.query,
        "sql": code(database.sql(chart.query)),
    }


def panel(one: Panel) -> Row:
    """One panel for the template."""
    return {
        "setting": one.setting,
        "of": model_of(one.setting),
        "title": one.title,
        "height": one.spec["height"],
        "spec": escape_json(for_page(one)),
    }


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
