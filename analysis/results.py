"""Records of the questions' sweeps → docs/results: what is kept of them, and the pages that are made from that.

    python analysis/results.py                                  writes every page anew from docs/results/kept
    python analysis/results.py --check                          exit code 1 where a page is not what it would write
    python analysis/results.py --keep sinks records/sinks       first takes the report's tables of these records
    python analysis/results.py --keep sinks records/sinks --command "python sweeps/sinks.py --documents 20"

Records of tokens are too large for git. Kept are the tables of the report that a page is made from, and the sums of
each policy on each document, `documents`, each with its sha256 in about.json.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pyarrow.parquet as pq

from analysis.charts import pictures
from analysis.charts.figures import CHARTS
from analysis.charts.specs import for_file
from analysis.charts.theme import looks
from analysis.page.questions import QUESTIONS, in_short, index, page
from analysis.read.records import Records, RecordsError, read_records
from analysis.report import asked
from analysis.words.summary import stands_on, whiskers
from analysis.words.visible import visible

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
BEGIN, END = "<!-- findings:begin -->", "<!-- findings:end -->"  # what is between them in the README
ALWAYS = ("documents", "overview")
Frames = dict[str, list[dict[str, Any]]]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all is well, 1 where a page is out of date, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="results.py", description="Write the pages of docs/results.")
    sweeps = sorted({question.sweep for question in QUESTIONS.values()})
    parser.add_argument("--keep", nargs=2, metavar=("SWEEP", "RECORDS"), help=f"take records as {', '.join(sweeps)}")
    parser.add_argument("--command", help="how these records were made (default: python sweeps/SWEEP.py)")
    parser.add_argument("--check", action="store_true", help="write nothing, and say which pages are out of date")
    options = parser.parse_args(arguments)
    try:
        if options.keep:
            sweep, folder = options.keep
            if sweep not in sweeps:
                raise RecordsError(f"--keep: {sweep!r} is the sweep of no page; choose among {', '.join(sweeps)}")
            keep(sweep, Path(folder), options.command or f"python sweeps/{sweep}.py", RESULTS / "kept" / sweep)
        written = {RESULTS / name: text for name, text in pages(RESULTS / "kept").items()}
        written[ROOT / "README.md"] = readme(ROOT / "README.md", RESULTS / "kept")
    except (RecordsError, OSError) as problem:
        print(f"results: {problem}", file=sys.stderr)
        return 2
    old = [path for path, text in written.items() if not same(path, text)]
    if options.check:
        print("\n".join(f"results: {path} is out of date; run python analysis/results.py" for path in old))
        return 1 if old else 0
    for path in old:
        path.write_text(written[path], encoding="utf-8")
    draw(RESULTS)
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def same(path: Path, text: str) -> bool:
    """Whether a file holds just this."""
    return path.exists() and path.read_text(encoding="utf-8") == text


def keep(sweep: str, folder: Path, command: str, place: Path) -> None:
    """Take of these records the tables that the sweep's pages are made from."""
    records = read_records(folder)
    found, frames = asked(records)
    place.mkdir(parents=True, exist_ok=True)
    for path in place.glob("*.parquet"):
        path.unlink()
    names = {name for one in QUESTIONS.values() if one.sweep == sweep for name in one.tables}
    for name in sorted({*names, *ALWAYS}):
        pq.write_table(found[name], place / f"{name}.parquet", compression="zstd")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.glob("*.parquet"))}
    about = made(records) | {"command": command, "records": str(folder), "stands_on": stands_on(visible(frames))}
    about |= {"whiskers": whiskers(frames), "sha256": sums}
    (place / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def made(records: Records) -> dict[str, Any]:
    """When, where and with what cells were computed, and how many of those planned."""
    commits = [*records.commits["quality"], *records.commits["latency"]]
    environments = [commit.get("environment") or {} for commit in commits]

    def most(name: str) -> Any:
        return Counter(one.get(name) for one in environments).most_common(1)[0][0]

    computed = sum(commit.get("seconds") or 0 for commit in commits) / 60
    machine = f"{most('gpu') or most('cpu')}, {most('cores')} cores; {computed:,.0f} minutes of cells, on all workers "
    machine += f"together; kvstream at `{most('commit')}`, torch {most('torch')}, transformers {most('transformers')}; "
    machine += max(commit.get("written_at") or "" for commit in commits)[:10]
    planned = len(records.sweep.get("cells", [])) or len(commits)
    return {"cells": len(commits), "planned": planned, "machine": machine}


def kept(place: Path) -> tuple[Frames, dict[str, Any]]:
    """The tables that are kept of a sweep, checked by their sha256, and what is known of their making."""
    about = json.loads((place / "about.json").read_text(encoding="utf-8"))
    for name, sha256 in about["sha256"].items():
        if hashlib.sha256((place / name).read_bytes()).hexdigest() != sha256:
            raise RecordsError(f"{place / name} is not what was kept; take it from git, or --keep {place.name} again")
    return {Path(name).stem: pq.read_table(place / name).to_pylist() for name in about["sha256"]}, about


def pages(place: Path) -> dict[str, str]:
    """The text of each page whose sweep is kept, and of their list, by file name."""
    texts, answers = {}, {}
    for name, question in QUESTIONS.items():
        if (place / question.sweep).is_dir():
            frames, about = kept(place / question.sweep)
            texts[f"{name}.md"] = page(name, frames, about)
            answers[name] = texts[f"{name}.md"].split("**")[1]
    return texts | {"README.md": index(answers)}


def readme(path: Path, place: Path) -> str:
    """The README with what was found in short, once all that takes is kept."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    sweeps = ("sinks", "budgets", "recall")
    if not found or not all((place / sweep).is_dir() for sweep in sweeps):
        return text
    short = in_short({sweep: kept(place / sweep)[0] for sweep in sweeps})
    return f"{before}{BEGIN}{short}{END}{after}"


def draw(place: Path) -> None:
    """The chart of each page whose sweep is kept."""
    specs = {}
    for name, question in QUESTIONS.items():
        if (place / "kept" / question.sweep).is_dir():
            frames, about = kept(place / "kept" / question.sweep)
            chart = CHARTS[question.chart]
            rows = visible(frames[chart.query])
            with looks({row["series"] for row in rows if "series" in row}):
                figure = chart.draw(rows)
            line = f"{about['stands_on']} · whiskers: {chart.whiskers or about['whiskers']}"
            specs[place / name] = for_file(figure, chart.heading, line)
    pictures.finish(pictures.begin(specs))
    for path in specs:
        path.with_suffix(".svg").unlink()


if __name__ == "__main__":
    sys.exit(main())
