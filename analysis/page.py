"""The HTML page: what every section is called, and the rows of the queries laid out for `template.html`.

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

from analysis import charts, database, wording
from analysis.records import Records
from analysis.stats import MIN_DOCUMENTS
from analysis.summary import problems, title_of
from analysis.theme import SYMBOLS

HERE = Path(__file__).parent
Row = dict[str, Any]
# What each figure is called, how to read it, what it needs, and the flags of sweeps/full.py that fill it.
SECTIONS: dict[str, tuple[str, str, str, str]] = {
    "budget": (
        "Perplexity against budget",
        "Lower is better; the dashed line is the full cache.",
        "a policy with a budget",
        "",
    ),
    "cross_method": (
        "Methods at equal budget",
        "1 is the full cache; further right is worse. Labels: change of perplexity.",
        "two methods at one budget",
        "",
    ),
    "position": (
        "Loss along the text",
        "Where a policy starts to lose, and whether it keeps losing. Lower is better.",
        "the full cache and another policy on the same document",
        "",
    ),
    "excess": (
        "Loss over the full cache’s, on the same tokens",
        "Zero is the full cache. Hard and easy passages cancel out; what remains is the policy’s doing.",
        "the full cache and another policy on the same document",
        "",
    ),
    "start_size": (
        "How many attention sinks",
        "Sinks and recent tokens share one budget; zero sinks is recent_only. Lower is better.",
        "several start sizes at one budget",
        "--start-sizes 0,1,2,4,8",
    ),
    "length": (
        "Perplexity by length of text",
        "The first L tokens of the same runs. Lower is better.",
        "several lengths",
        "--lengths 512,1024,2048,4096",
    ),
    "position_modes": (
        "Position modes",
        "How cached keys are numbered. “cache”: by their place in the cache, as StreamingLLM is published. "
        "“absolute”: by their place in the text, as the seed report measured. "
        "“frozen”: never renumbered, the bug of naive implementations.",
        "one policy in several position modes",
        "--positions cache,absolute,frozen",
    ),
}  # fmt: skip
COLUMNS: tuple[tuple[str, str, str, wording.Format], ...] = (
    ("policy", "Policy", "", wording.plain),
    ("variant", "Positions", "How cached keys are numbered, and layers that never evict", wording.plain),
    ("budget", "Budget", "Tokens kept", wording.whole),
    ("kv_mb", "KV, MB", "KV bytes over all layers after the whole run, 10⁶ bytes", wording.fixed(1)),
    ("kv_percent", "KV, % of full", "The same as a share of the full cache's", wording.percent),
    ("ppl_corpus", "PPL corpus", "exp(sum of losses ÷ number of tokens), all documents together", wording.ppl),
    (
        "ppl_change_percent",
        "vs full, %",
        "Relative change of corpus PPL against full on the same documents",
        wording.change,
    ),
    ("ppl_mean", "PPL mean of docs", "Mean over documents of exp(a document's mean loss)", wording.ppl),
    ("ppl_mean_change_percent", "vs full, %", "Relative change of the mean-of-documents PPL", wording.change),
    ("accuracy_percent", "Accuracy", "Share of tokens that the model ranks first", wording.percent),
    ("accuracy_change_percent", "vs full, %", "Relative change of accuracy against full", wording.change),
    ("accuracy_change_points", "vs full, points", "Absolute change of accuracy, percentage points", wording.points),
    ("documents", "Docs", "Documents; of these, shared with full", wording.plain),
    ("invalid", "Invalid", "Tokens whose loss was NaN or infinite: counted, kept out of every mean", wording.whole),
)
SMALL_PRINT = {
    "ppl_change_percent": ("ppl_change_low_percent", "ppl_change_high_percent"),
    "ppl_mean_change_percent": ("ppl_mean_change_low_percent", "ppl_mean_change_high_percent"),
    "accuracy_change_points": ("accuracy_change_low_points", "accuracy_change_high_points"),
}


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
        several=len(overview["settings"]) > 1,
        models=frames["models"],
        commits=next((row["values"] for row in frames["environment"] if row["name"] == "commit"), []),
        environment=frames["environment"],
        problems=problems(records, frames),
        planned=len(records.sweep.get("cells", [])),
        answers=[wording.answer(row, len(overview["settings"]) > 1) for row in frames["answer"]],
        within=within,
        figures={name: view(name, figure, overview) for name, figure in figures.items()},
        table=main_table(frames["main"], {row["policy"] for row in frames["answer"]}),
        columns=[(name, heading, about) for name, heading, about, _ in COLUMNS],
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
    heading, caption, needs, flags = SECTIONS[name]
    command = (
        f"python sweeps/full.py --models {','.join(overview['models'])} --text {overview['texts'][0]} {flags}".rstrip()
    )
    query = charts.FIGURES[name][0]
    panels = [(panel.title, escape_json(charts.for_page(panel))) for panel in figure.panels] if figure else []
    return {
        "name": name, "heading": heading, "caption": caption, "needs": needs, "command": command,
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
        cells = []
        for name, _, _, show in COLUMNS:
            small = between_of(row, name)
            text = show(row[name])
            if name == "documents" and row["paired_documents"] != row["documents"]:
                small = f"{row['paired_documents']} shared with full"
            elif name == "documents" and row["full_documents"] not in (None, row["documents"]):
                small = f"of {row['full_documents']}"
            if row["policy_name"] == "full" and (name == "variant" or "change" in name):
                text = wording.NONE
            cells.append({"name": name, "text": text, "value": row[name], "small": small})
        pick = row["policy"] in picks and row["longest"]
        found.append(
            {
                "setting": row["setting"],
                "length": row["length"],
                "longest": row["longest"],
                "pick": pick,
                "cells": cells,
            }
        )
    return found


def between_of(row: Row, name: str) -> str:
    """The spread that belongs beneath a change, if it has one."""
    if name not in SMALL_PRINT:
        return ""
    low, high = SMALL_PRINT[name]
    return wording.between(row[low], row[high], wording.points if name.endswith("points") else wording.change)


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
