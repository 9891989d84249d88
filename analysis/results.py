"""Records of the questions' sweeps → docs/results: what is kept of them, and the pages that are made from that.

    python analysis/results.py              writes every page anew from docs/results/kept
    python analysis/results.py --check      exit code 1 where a page is not what it would write
    python analysis/results.py --keep sinks records/sinks --command "python sweeps/sinks.py"
                                            first takes the report's tables of these records, which that command made
    python analysis/results.py --keep latency records/latency --command "…" --beside amd
                                            of times on another machine, beside those that are kept already

Records of tokens are too large for git. Kept are the tables of the report that a page is made from, and the sums of
each policy on each document, `documents`, each with its sha256 in about.json.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pyarrow as pa

from analysis.charts import pictures
from analysis.charts.figures import CHARTS
from analysis.charts.specs import for_file
from analysis.charts.theme import looks
from analysis.page.answered import index, page
from analysis.page.kept import BESIDE, About, Kept, all_kept, by_sweep, rows_of, store
from analysis.page.questions import QUESTIONS
from analysis.read.records import Records, RecordsError, read_records
from analysis.report import asked
from analysis.words.in_short import in_short
from analysis.words.visible import visible

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
BEGIN, END = "<!-- findings:begin -->", "<!-- findings:end -->"  # what is between them in the README
FOUND = (
    "![Share of facts recalled, by how far back they stand](docs/results/recall.png)\n"
    "**Found so far** with one small model, SmolLM2-135M, on the King James Bible; times are of other models "
    "([all results](docs/results/README.md), with intervals, commands and limits):\n{}"
)
ALWAYS = ("documents", "overview", "perplexity")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all is well, 1 where a page is out of date, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="results.py", description="Write the pages of docs/results.")
    sweeps = sorted({question.sweep for question in QUESTIONS.values()})
    parser.add_argument("--keep", nargs=2, metavar=("SWEEP", "RECORDS"), help=f"take records as {', '.join(sweeps)}")
    parser.add_argument("--command", help="the command that made the records to keep, as the page will print it")
    parser.add_argument("--beside", metavar="NAME", help="keep times of another machine under this name, too")
    parser.add_argument("--check", action="store_true", help="write nothing, and say which pages are out of date")
    options = parser.parse_args(arguments)
    if bool(options.keep) != bool(options.command):
        parser.error("--keep and --command: one needs the other; pass both, or none")
    if options.keep and options.keep[0] not in sweeps:
        parser.error(f"--keep: {options.keep[0]!r} is the sweep of no page; choose among {', '.join(sweeps)}")
    if options.beside is not None:
        refuse_beside(parser, options.keep, options.beside)
    try:
        folders = all_kept(RESULTS / "kept")
        taken: dict[str, pa.Table] = {}
        if options.keep:
            sweep, folder = options.keep
            taken, about = take(sweep, Path(folder), options.command)
            name = sweep if options.beside is None else f"{sweep}{BESIDE}{options.beside}"
            folders[name] = rows_of(taken), about
        held = by_sweep(folders)
        written = {RESULTS / name: text for name, text in pages(held).items()}
        written[ROOT / "README.md"] = readme(ROOT / "README.md", held)
        old = [path for path, text in written.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        if options.check:
            print("\n".join(f"results: {path} is out of date; run python analysis/results.py" for path in old))
            return 1 if old else 0
        if taken:
            store(taken, about, RESULTS / "kept" / name)
        for path in old:
            path.write_text(written[path], encoding="utf-8")
        draw(held)
    except (RecordsError, OSError) as problem:
        print(f"results: {problem}", file=sys.stderr)
        return 2
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def refuse_beside(parser: argparse.ArgumentParser, keep: list[str] | None, name: str) -> None:
    """Times alone differ by machine, and stand beside others that are kept."""
    several = sorted({question.sweep for question in QUESTIONS.values() if question.several})
    if not keep or keep[0] not in several:
        parser.error(f"--beside: only times of {', '.join(several)} are kept by machine; pass it with --keep of these")
    if not re.fullmatch(r"[a-z0-9-]+", name):
        parser.error(f"--beside: {name!r} is no name of small letters, digits and hyphens; pass one such as amd")
    if not (RESULTS / "kept" / keep[0]).exists():
        parser.error(f"--beside: nothing is kept of {keep[0]} to stand beside; leave it out")


def take(sweep: str, folder: Path, command: str) -> tuple[dict[str, pa.Table], About]:
    """Of these records the tables that the sweep's pages are made from, and what is known of their making.

    RecordsError where they are another sweep's, of several models, or say nothing on one of its questions.
    """
    records = read_records(folder)
    if (name := records.sweep.get("name")) != sweep:
        raise RecordsError(f"--keep: '{folder}' holds the sweep {name!r}, not {sweep!r}; pass the records of {sweep!r}")
    found, frames = asked(records)
    mine = {page: question for page, question in QUESTIONS.items() if question.sweep == sweep}
    settings = frames["overview"][0]["settings"]
    if len(settings) > 1 and not all(question.several for question in mine.values()):
        raise RecordsError(f"--keep: '{folder}' holds {', '.join(settings)}; a page is of one, sweep one of them alone")
    for page_name, question in mine.items():
        if not (frames[CHARTS[question.chart].query] and question.answer(frames)):
            raise RecordsError(
                f"--keep: '{folder}' says nothing for {page_name}.md; run python sweeps/{sweep}.py whole"
            )
    names = sorted({*ALWAYS, *(table for question in mine.values() for table in question.tables)})
    about = made(records) | {"command": command, "records": str(folder)}
    return {table: found[table] for table in names}, about


def made(records: Records) -> About:
    """When, where and with what cells were computed, and how many of those planned."""
    commits = [*records.commits["quality"], *records.commits["latency"]]
    environments = [commit.get("environment") or {} for commit in commits]

    def most(name: str) -> Any:
        return Counter(one.get(name) for one in environments).most_common(1)[0][0]

    computed = sum(commit.get("seconds") or 0 for commit in commits) / 60
    hardware = most("gpu") or most("cpu")
    machine = f"{hardware}, {most('cores')} cores; {computed:,.0f} minutes of cells, on all workers "
    machine += f"together; kvstream at `{most('commit')}`, torch {most('torch')}, transformers {most('transformers')}; "
    machine += max(commit.get("written_at") or "" for commit in commits)[:10]
    planned = len({*records.sweep.get("cells", []), *(commit["cell"] for commit in commits)})  # several commands, maybe
    return {"cells": len(commits), "planned": planned, "hardware": hardware, "machine": machine}


def answered(held: dict[str, Kept]) -> dict[str, Kept]:
    """The questions of whose sweep enough is kept, and what is kept for each."""
    found = {name: held[question.sweep] for name, question in QUESTIONS.items() if question.sweep in held}
    return {name: own for name, own in found.items() if QUESTIONS[name].tables <= own[0].keys()}


def pages(held: dict[str, Kept]) -> dict[str, str]:
    """The text of each page whose sweep is kept, and of their list, by file name."""
    texts = {f"{name}.md": page(name, *own) for name, own in answered(held).items()}
    return texts | {"README.md": index({name: texts[f"{name}.md"].split("**")[1] for name in answered(held)})}


def readme(path: Path, held: dict[str, Kept]) -> str:
    """The README with what was found in short between its markers, if it has them."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    told = in_short({sweep: frames for sweep, (frames, _) in held.items()})
    short = FOUND.format("\n".join(f"- {sentence}" for sentence in told))
    return f"{before}{BEGIN}{short}{END}{after}" if found else text


def draw(held: dict[str, Kept]) -> None:
    """The chart of each page whose sweep is kept."""
    specs = {}
    for name, (frames, about) in answered(held).items():
        chart = CHARTS[QUESTIONS[name].chart]
        rows = visible(frames[chart.query])
        with looks({row["series"] for row in rows if "series" in row}):
            figure = chart.draw(rows)
        specs[RESULTS / name] = for_file(figure, chart.heading, chart.beneath(about["standing"], figure))
    pictures.finish(pictures.begin(specs))
    for path in specs:
        path.with_suffix(".svg").unlink()


if __name__ == "__main__":
    sys.exit(main())
