"""What the page needs of each figure: its words, panels as JSON, legend, query, and the command that fills it."""

import json
from typing import Any

from markupsafe import Markup

from analysis.charts import figures
from analysis.numbers import database
from analysis.page.sections import SECTIONS

Row = dict[str, Any]


def view(name: str, figure: figures.Figure | None, overview: Row) -> Row:
    """One figure for the template."""
    section = SECTIONS[name]
    text = overview["texts"][0] if overview["texts"] else "pg19"
    query = figures.FIGURES[name][0]
    return {
        "name": name,
        "heading": section.heading,
        "caption": section.caption,
        "needs": section.needs,
        "command": section.command.format(models=",".join(overview["models"]), text=text),
        "panels": [panel(one) for one in figure.panels] if figure else [],
        "legend": figure.legend if figure and not figure.named else [],
        "columns": figure.columns if figure else 1,
        "several": figure.several if figure else False,
        "query": query,
        "question": database.question(query),
        "sql": code(database.sql(query)),
    }


def panel(one: figures.Panel) -> Row:
    """One panel for the template."""
    return {
        "setting": one.setting,
        "of": model_of(one.setting),
        "title": one.title,
        "height": one.spec["height"],
        "spec": escape_json(figures.for_page(one)),
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
