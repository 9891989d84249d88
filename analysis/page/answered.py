"""The pages of `docs/results`: the answer to a question, its chart, table, command, machine, limits, what is open."""

from typing import Any

from analysis.charts.figures import CHARTS
from analysis.page.questions import QUESTIONS
from analysis.words import findings, wording
from analysis.words.findings import Frames
from analysis.words.visible import in_markdown

REPORT = "python analysis/report.py"


def page(name: str, frames: Frames, about: dict[str, Any]) -> str:
    """The Markdown page of a question, from the kept tables of its sweep and what is known of their making.

    about: as `analysis.page.kept` tells it, of the first machine, and `beside` it of others.
    """
    question = QUESTIONS[name]
    frames = in_markdown(frames)
    first, *further = question.answer(frames)
    headings, rows, texts = question.table(frames)
    of_all = f" of {about['planned']}" if about["cells"] != about["planned"] else ""
    cells = f"{about['cells']}{of_all} cells"
    table = wording.table(headings, rows, texts, [])
    chart = CHARTS[question.chart]
    measured, whiskers = about["standing"][chart.kind]
    ends = f"In brackets: {question.brackets or chart.whiskers or whiskers}"
    ends += "" if question.brackets else " ([of what](README.md))"
    machines = [about, *about.get("beside", [])]

    def of(what: str, one: dict[str, Any]) -> str:
        return f"{what}, {one['hardware']}" if len(machines) > 1 else what

    facts = [
        *((of("Command", one), f"`{one['command']}`, then `{REPORT} --records {one['records']}`") for one in machines),
        ("Measured on", f"{measured}; {cells}"),
        ("Full cache’s perplexity", findings.levels(frames)),
        *(("Machine", one["machine"]) for one in machines),
        ("Limits", question.limits),
        ("Open", question.unknown),
    ]
    lines = [
        f"# {question.title}\n",
        f"**{first}**\n",
        *(f"{line}\n" for line in further),
        f"![{chart.heading}]({name}.png)\n",
        f"{chart.caption}\n",
        *table,
        "",
        *([f"{ends}.\n"] if any("[" in line for line in table) else []),
        *([f"{question.notes}\n"] if question.notes else []),
        "| | |\n|---|---|",
        *(f"| {what} | {told} |" for what, told in facts if told),
    ]
    return "\n".join(lines) + "\n"


def index(answers: dict[str, str]) -> str:
    """The list of all questions with their answers."""
    lines = [
        "# Results\n",
        "Each page has the question, the answer, a chart, a table with intervals, and the command that measured it.",
        "All of them are written by `python analysis/results.py` from what `kept/` holds of the records; no number is "
        "typed. A policy has another number on a page of shorter texts: what is lost grows with the text beside the "
        "budget, at first ([length](length.md)).\n",
        "Intervals of quality are of 95 %, over documents: each document’s loss is compared with full’s, or with "
        "another policy’s, on the same tokens, and documents are drawn again at random (BCa bootstrap, from ten "
        "documents on). Intervals of time are over rounds. “Measurably”: the interval of a difference leaves out zero; "
        "of times, it is not within what full differs from itself.\n",
    ]
    for name, answer in answers.items():
        lines.append(f"- [{QUESTIONS[name].title}]({name}.md) {answer}")
    return "\n".join(lines) + "\n"
