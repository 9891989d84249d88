"""The HTML page: the rows of the queries laid out for `template.html`.

One self-contained file: Vega once, specs as JSON, scripts allowed by their hash alone, no request to anywhere.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from analysis import charts, database, speed_words, wording
from analysis.records import Records
from analysis.rounds import MIN_ROUNDS
from analysis.sections import COLUMNS, LATENCY_COLUMNS, SECTIONS, Column
from analysis.stats import MIN_DOCUMENTS
from analysis.summary import answers, problems, title_of
from analysis.theme import SYMBOLS

HERE = Path(__file__).parent
Row = dict[str, Any]


def page(
    records: Records, frames: dict[str, list[Row]], figures: dict[str, charts.Figure | None], within: float
) -> str:
    """The HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    vega: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    scripts = [vega.replace("\r\n", "\n"), (HERE / "page.js").read_text(encoding="utf-8")]
    overview = frames["overview"][0]
    return environment.get_template("template.html").render(
        title=title_of(records),
        question=records.sweep.get("question"),
        overview=overview,
        quality=bool(overview["quality_cells"]),
        speed=bool(overview["latency_cells"]),
        hardware=sorted({row["hardware"] for row in frames["noise"] if row["hardware"]}),
        several=len(overview["settings"]) > 1,
        models=frames["models"],
        commits=next((row["values"] for row in frames["environment"] if row["name"] == "commit"), []),
        environment=frames["environment"],
        problems=problems(records, frames),
        planned=len(records.sweep.get("cells", [])),
        answers=answers(frames),
        within=within,
        figures={name: view(name, figure, overview) for name, figure in figures.items()},
        table=main_table(frames["main"], {row["policy"] for row in frames["answer"]}),
        columns=COLUMNS,
        latency_table=latency_table(frames["latency"]),
        latency_columns=LATENCY_COLUMNS,
        again=[speed_words.again(row) for row in frames["noise"]],
        again_span=speed_words.again_span(frames["noise"]),
        fronts=speed_words.fronts(frames["tradeoff"]),
        claimed=speed_words.claims(frames["published_latency"]),
        min_rounds=MIN_ROUNDS,
        spread=spread_note(frames["main"]),
        incomplete=any(
            row["documents"] != row["paired_documents"] or row["ppl_placed"] != row["ppl_corpus"]
            for row in frames["main"]
        ),
        cross=frames["cross_method"],
        published=[row for row in frames["published"] if row["ours"] is not None],
        unmatched=[row for row in frames["published"] if row["ours"] is None],
        min_documents=MIN_DOCUMENTS,
        queries={path.stem: path.read_text(encoding="utf-8") for path in sorted(database.QUERIES.glob("*.sql"))},
        show=wording,
        symbols=SYMBOLS,
        scripts=[Markup(text) for text in scripts],
        hashes=" ".join(map(script_hash, scripts)),
    )


def view(name: str, figure: charts.Figure | None, overview: Row) -> Row:
    """What the page needs of one figure."""
    section = SECTIONS[name]
    text = overview["texts"][0] if overview["texts"] else "pg19"
    command = section.command.format(models=",".join(overview["models"]), text=text)
    query = charts.FIGURES[name][0]
    panels = [(panel.title, escape_json(charts.for_page(panel))) for panel in figure.panels] if figure else []
    return {
        "name": name, "heading": section.heading, "caption": section.caption, "needs": section.needs,
        "command": command,
        "panels": panels, "legend": figure.legend if figure else [], "columns": figure.columns if figure else 1,
        "query": query, "question": database.question(query), "sql": database.sql(query),
    }  # fmt: skip


def escape_json(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def script_hash(text: str) -> str:
    """The CSP source that allows exactly this inline script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def main_table(rows: list[Row], picks: set[str]) -> list[Row]:
    """The main table's rows as text: each cell with its value for sorting and its small print."""
    found = []
    for row in rows:
        cells = [cell(row, column) for column in COLUMNS]
        for one in cells:
            if one["name"] == "documents" and row["paired_documents"] != row["documents"]:
                one["small"] = f"{row['paired_documents']} shared with full"
            elif one["name"] == "documents" and row["full_documents"] not in (None, row["documents"]):
                one["small"] = f"of {row['full_documents']}"
            if row["policy_name"] == "full" and (one["name"] == "variant" or "change" in one["name"]):
                one["text"] = wording.NONE
        tag = "the answer" if row["policy"] in picks and row["longest"] else ""
        place = {name: row[name] for name in ("setting", "length", "longest")}
        growth = wording.growth(row["skip_layers"])
        found.append(place | {"tag": tag, "growth": growth, "noisy": None, "cells": cells})
    return found


def latency_table(rows: list[Row]) -> list[Row]:
    """The latency table's rows as text, in the shape of the main table's."""
    found = []
    for row in rows:
        cells = [cell(row, column) for column in LATENCY_COLUMNS]
        for one in cells:
            if row["contender"] == "full" and one["name"] in ("ttft_ratio", "tpot_ratio"):
                one["text"] = wording.NONE
        place = {"setting": row["setting"], "length": row["context"], "longest": row["headline"]}
        growth = wording.growth(row["skip_layers"])
        found.append(place | {"tag": "", "growth": growth, "noisy": row["noisy"], "cells": cells})
    return found


def cell(row: Row, column: Column) -> Row:
    """One table cell: what is printed, what is sorted by, and the interval beneath."""
    small = wording.between(row[column.spread[0]], row[column.spread[1]], column.show) if column.spread else ""
    return {
        "name": column.field,
        "text": column.show(row[column.field]),
        "value": row[column.field],
        "small": small,
    }


def spread_note(rows: list[Row]) -> str:
    """What the small print and the whiskers are, in a sentence."""
    paired = [row["paired_documents"] for row in rows if row["longest"] and row["spread"]]
    if not paired:
        return "No policy shares a document with full: no changes can be given."
    interval = f"paired 95 % BCa bootstrap interval over documents, from {MIN_DOCUMENTS} documents on"
    if min(paired) >= MIN_DOCUMENTS:
        return f"Small print and whiskers: {interval}."
    few = f"{min(paired)} document{'s' if min(paired) > 1 else ''}: too few for an interval"
    if max(paired) < MIN_DOCUMENTS:
        return f"{few}. Small print and whiskers: the per-document range (min … max)."
    return f"{few}; there, small print and whiskers are the per-document range (min … max). Elsewhere: {interval}."
