"""The README's results block, of one setting: answer, picture, cards, a few rows, and where they come from."""

from pathlib import Path
from typing import Any

from analysis.read.records import Records, RecordsError
from analysis.words import card_sentences
from analysis.words.answers import answers
from analysis.words.metric import metric_of
from analysis.words.summary import SAID, measured, quality_table
from analysis.words.visible import in_markdown

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PICTURE = Path("docs/report.png")  # beside the README
ROWS = 5
Row = dict[str, Any]


def readme_parts(readme: Path) -> tuple[str, str]:
    """The text before and after the results block."""
    if not readme.is_file():
        raise RecordsError(f"--readme: no file '{readme}'; pass the README to rewrite")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RecordsError(f"--readme: '{readme}' must hold one {BEGIN} and after it one {END}; add these two lines")
    return text.split(BEGIN)[0], text.split(END)[1]


def block(records: Records, frames: dict[str, list[Row]], picture: bool) -> str:
    """The block as Markdown, its markers included; without quality in the records, the sentences on speed alone."""
    frames = {name: in_markdown(frames[name]) for name in SAID}
    first, *others = answers(frames) or [{"setting": None, "headline": "Nothing to compare.", "more": [""]}]
    lines = [BEGIN, f"**{first['headline']}** {first['more'][0]}", ""]
    if picture:
        lines += [f"![Quality against KV memory, both against the full cache]({PICTURE.as_posix()})", ""]
    mine = [row for row in frames["perplexity"] if row["setting"] == first["setting"] and row["longest"]]
    chosen = [row for row in frames["cards"] if row["setting"] == first["setting"]]
    if mine:
        rows = quality_table(shortlist(mine, {row["policy"] for row in chosen}), frames["tradeoff"], False)
        lines += [*card_sentences.table(chosen, False), "", *rows, "", f"{measured(frames)} {brackets(chosen)}".strip()]
    elsewhere = f"; of {len(others)} more, see the report" if others else ""
    return "\n".join([*lines, f"{provenance(records)}{elsewhere}.", END])


def shortlist(rows: list[Row], picked: set[str]) -> list[Row]:
    """At most ROWS of them: full, what the cards took, the best of each other method, then the best; in their order."""
    best: dict[str, str] = {}
    for row in sorted(rows, key=lost):
        best.setdefault(row["policy_name"], row["policy"])

    def place(row: Row) -> tuple[Any, ...]:
        first = (row["budget"] is not None, row["policy"] not in picked, row["policy"] not in best.values())
        return *first, *lost(row)

    wanted = sorted(rows, key=place)[:ROWS]
    return [row for row in rows if row in wanted]


def lost(row: Row) -> tuple[bool, Any]:
    """By perplexity; where no token has a number, last."""
    return row["ppl_corpus"] is None, row["ppl_corpus"]


def brackets(rows: list[Row]) -> str:
    """What stands in brackets in the cards' table."""
    taken = [row for row in rows if row["policy"]]
    said = []
    if any(row["cost_low"] is not None and row["paired_documents"] > 1 for row in taken):
        said.append(f"behind {metric_of(taken[0]).named} " + (card_sentences.too_few(taken) or "a 95\u00a0% interval"))
    if any(row["tpot_ratio_low"] is not None for row in taken):
        said.append("behind time a 95\u00a0% interval over rounds")
    return f"In brackets: {'; '.join(said)}." if said else ""


def provenance(records: Records) -> str:
    """The commands behind the block."""
    name = in_markdown(records.sweep.get("name"))
    sweep = f"`python sweeps/{name}.py`, then " if name else ""
    return f"From {sweep}`python analysis/report.py --records {in_markdown(records.where)} --readme README.md`"
