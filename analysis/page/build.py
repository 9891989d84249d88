"""The HTML page: the rows of the queries laid out for `template/page.html`.

One self-contained file: Vega once, specs as JSON, scripts allowed by their hash alone, no request to anywhere.
"""

import base64
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from analysis.charts.figures import CHARTS, QUERIES
from analysis.charts.marks import Figure
from analysis.charts.theme import SYMBOLS, theme
from analysis.charts.tradeoff import AXES
from analysis.numbers import database
from analysis.numbers.order import by
from analysis.numbers.rounds import MIN_ROUNDS
from analysis.numbers.stats import MIN_DOCUMENTS
from analysis.page import result_rows
from analysis.page.columns import BUDGET, COLUMNS, LATENCY_COLUMNS
from analysis.page.views import code, escape_json, model_of, view
from analysis.read.records import Records
from analysis.words import claims, divergence, protection, recall, serving, speed, wording
from analysis.words.answers import answers
from analysis.words.card_sentences import CASES, card
from analysis.words.metric import METRICS
from analysis.words.summary import problems, subtitle_of, title_of
from analysis.words.visible import visible

TEMPLATE = Path(__file__).parent.parent / "template"
SCRIPTS = ("charts.js", "choices.js", "zoom.js", "tables.js")
Row = dict[str, Any]


def page(
    records: Records,
    frames: dict[str, list[Row]],
    figures: dict[str, Figure | None],
    thresholds: tuple[float, float, float, str],
    out: Path,
) -> str:
    """The HTML page; thresholds as `database.open_database` takes them, `out` the folder that it will stand in."""
    ours = "\n".join((TEMPLATE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    scripts = [vega(), f'"use strict";\n{ours}']
    overview = frames["overview"][0]
    fields = fields_of(records)
    kinds = {"quality": bool(overview["quality_cells"]), "speed": bool(overview["latency_cells"])}
    template = environment().get_template("page.html")
    return template.render(
        frames=frames,
        title=title_of(records),
        subtitle=subtitle_of(frames),
        idle=[row for row in frames["perplexity"] if row["longest"] and not row["evicts"]],
        overview=overview,
        **kinds,
        hardware=sorted({row["hardware"] for row in frames["noise"] if row["hardware"]}),
        several=len(overview["settings"]) > 1,
        switch=list(dict.fromkeys(map(model_of, overview["settings"]))),
        model_of=model_of,
        commits=next((row["values"] for row in frames["environment"] if row["name"] == "commit"), []),
        problems=problems(records, frames),
        planned=len(records.sweep.get("cells", [])),
        answers=answers(frames),
        cards={setting: cards_of(frames, setting, fields) for setting in overview["settings"]},
        looked_at=serving.looked_at(),
        served_by=serving.served_by,
        budget_about=BUDGET,
        cases=CASES,
        thresholds=dict(zip(("within", "quality_within", "memory", "metric"), thresholds)),
        metric=METRICS[thresholds[-1]],
        figures={name: view(name, figure, overview) for name, figure in figures.items()},
        sections={CHARTS[name].section for name, figure in figures.items() if figure and figure.panels},
        tradeoffs=[axis for axis in AXES if (plate := figures[f"tradeoff_{axis}"]) and plate.panels],
        kinds=[kind for kind, held in kinds.items() if held] + ["both"] * all(kinds.values()),
        axes=AXES,
        table=result_rows.main_table(frames["perplexity"], picks(frames)),
        columns=COLUMNS,
        latency_table=result_rows.latency_table(frames["latency"]),
        latency_columns=LATENCY_COLUMNS,
        again=[speed.again(row) for row in frames["noise"]],
        protected=protection.sentences(frames["protection"], len(overview["settings"]) > 1),
        diverged=divergence.sentences(frames["divergence"], len(overview["settings"]) > 1),
        worst=by(frames["worst"], "setting", "policy").items(),
        recalled=recall.sentences(frames["recall"], len(overview["settings"]) > 1),
        claims=claims.CLAIMS,
        claimed_here=claims.measured(frames["published_latency"], frames["equal_budget"]),
        comparable=[row for row in frames["published"] if row["verdict"] in ("reproduced", "differs")],
        min_rounds=MIN_ROUNDS,
        spread=result_rows.spread_note(frames["perplexity"]),
        min_documents=MIN_DOCUMENTS,
        queries={path.stem: code(database.sql(path.stem)) for path in sorted(database.QUERIES.glob("*.sql"))},
        shown={"perplexity", "divergence", "worst", "latency", "noise", "differences", "published", "cards", *QUERIES},
        folder=folder_of(records, out),
        show=wording,
        symbols=SYMBOLS,
        look=escape_json(theme()["config"]),
        style=Markup((TEMPLATE / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(text) for text in scripts],
        hashes=" ".join(map(script_hash, scripts)),
    )


@cache
def vega() -> str:
    """The scripts that draw charts in a browser; bundling them takes a second."""
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return bundle.replace("\r\n", "\n")


@cache
def environment() -> jinja2.Environment:
    """The template's: what it prints is escaped, and no character of it is invisible."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )


def cards_of(frames: dict[str, list[Row]], setting: str, fields: dict[str, Row]) -> list[Row]:
    """The cards of one setting, and where what they took is served; none where there is no quality to choose by."""
    if not any(row["setting"] == setting for row in frames["perplexity"]):
        return []
    mine = [row for row in frames["cards"] if row["setting"] == setting]
    places = [serving.places(row["policy_name"], fields[row["policy"]]) if row["policy"] else [] for row in mine]
    return [card(row) | {"places": served} for row, served in zip(mine, places)]


def fields_of(records: Records) -> dict[str, Row]:
    """By a policy's label, as it is printed, what each of its fields holds."""
    recorded = [commit["fields"] for commit in records.commits["quality"]]
    return {visible(fields["policy"]): fields["policy_fields"] for fields in recorded}


def picks(frames: dict[str, list[Row]]) -> dict[tuple[str, str], list[str]]:
    """By setting and policy, the cards that took it."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in frames["cards"]:
        if row["policy"]:
            found.setdefault((row["setting"], row["policy"]), []).append(CASES[row["card"]].title.lower())
    return found


def folder_of(records: Records, out: Path) -> Row:
    """Where the token-level records are: a link when they lie beside the report, else only in words."""
    path = os.path.relpath(records.folder.resolve(), out.resolve())
    beside = "://" not in records.where and path.split(os.sep).count("..") <= 1
    return {"path": records.where, "link": Path(path).as_posix() if beside else None}


def script_hash(text: str) -> str:
    """The CSP source that allows exactly this inline script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
