"""What stands outside the page: `summary.md`, the README's results block, and the list of what went wrong."""

from pathlib import Path
from typing import Any

from analysis import wording
from analysis.records import Records, RecordsError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
Row = dict[str, Any]


def problems(records: Records, frames: dict[str, list[Row]]) -> list[tuple[str, list[str]]]:
    """Badges and what is behind each."""
    failed = []
    for record in records.failed:
        fields = record.get("fields") or {}
        where = " · ".join(str(fields.get(name)) for name in ("model", "policy", "document"))
        failed.append(f"{where}: {record.get('error')} (after {record.get('attempts')} attempts)")
    invalid = []
    for row in frames["invalid"]:
        where = " · ".join(row[name] for name in ("setting", "policy", "document"))
        rows = f"{row['invalid']} row{'s' if row['invalid'] > 1 else ''}"
        invalid.append(f"{where}: {rows}, first at position {row['first_position']}")
    missing = [f"cell {key}: not run yet; run the sweep again" for key in records.missing]
    left_out = [f"{name}: {why}" for name, why in records.excluded]
    count = sum(row["invalid"] for row in frames["invalid"])
    found = [
        (f"{len(failed)} failed", failed),
        (f"{len(missing)} missing", missing),
        (f"{len(left_out)} left out", left_out),
        (f"{count} invalid row{'s' if count != 1 else ''}", invalid),
    ]
    return [(badge, lines) for badge, lines in found if lines]


def summarise(records: Records, frames: dict[str, list[Row]]) -> str:
    """The answer and the main table at the longest length, as Markdown."""
    overview = frames["overview"][0]
    several = len(overview["settings"]) > 1
    answers = [wording.answer(row, several) for row in frames["answer"]]
    lines = [f"**{answer['headline']}** {' '.join(answer['more'])}\n" for answer in answers]
    lines += [
        f"| {'Model | ' if several else ''}Policy | KV kept, MB | of full | PPL | against full | Accuracy | points |",
        f"|{'---|' if several else ''}---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (row for row in frames["main"] if row["longest"]):
        shown = [wording.fixed(1)(row["kv_mb"]), wording.percent(row["kv_percent"]), wording.ppl(row["ppl_corpus"])]
        shown += [wording.change(row["ppl_change_percent"]), wording.percent(row["accuracy_percent"])]
        shown.append(wording.points(row["accuracy_change_points"]))
        if row["policy_name"] == "full":
            shown[3] = shown[5] = wording.NONE
        lines.append(f"| {row['setting'] + ' | ' if several else ''}`{row['policy']}` | {' | '.join(shown)} |")
    length = max(overview["lengths"])
    notes = [f"{row['model']}: {row['note']}." for row in frames["models"] if row["note"]]
    what = f"{', '.join(overview['models'])} on {', '.join(overview['texts'])}"
    size = f"{overview['documents']} document{'s' if overview['documents'] > 1 else ''} of {length:,} tokens"
    where = f"{', '.join(overview['devices'])}, {', '.join(overview['dtypes'])}"
    lines.append(f"\n{what}, {size}, {where}. PPL is corpus perplexity. {' '.join(notes)}")
    bad = [badge for badge, _ in problems(records, frames)]
    if bad:
        lines.append(f"\nIncomplete: {', '.join(bad)}.")
    return "\n".join(lines).rstrip()


def provenance(records: Records) -> str:
    """The commands behind the README's block."""
    name = records.sweep.get("name")
    sweep = f"`python sweeps/{name}.py`, then " if name else ""
    return f"From {sweep}`python analysis/report.py --records {records.folder.as_posix()} --readme README.md`."


def readme_parts(readme: Path) -> tuple[str, str]:
    """The text before and after the results block."""
    if not readme.is_file():
        raise RecordsError(f"--readme: no file '{readme}'; pass the README to rewrite")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RecordsError(f"--readme: '{readme}' must hold one {BEGIN} and after it one {END}; add these two lines")
    return text.split(BEGIN)[0], text.split(END)[1]


def title_of(records: Records) -> str:
    """The sweep's name, or the folder's."""
    return str(records.sweep.get("name") or records.folder.name)
