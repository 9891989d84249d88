"""Records → report: a self-contained page, charts and tables as files, a summary, the README's results block.

    python analysis/report.py                                   records/quick → report/index.html
    python analysis/report.py --records records/full --out report-full
    python analysis/report.py --records s3://bucket/full         records that lie in an object store
    python analysis/report.py --readme README.md                also rewrites its results block and docs/report.png

Everything shown comes from the queries in `queries/`; this module only writes it down. Exit code 2 on bad input: no
folder, no records, or files that do not match their commit records (left out, named, and the rest still reported).
"""

import argparse
import csv
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.charts import drawing, figures, pictures
from analysis.charts.marks import unchecked
from analysis.numbers import database
from analysis.numbers.order import smaller_first
from analysis.page.build import page
from analysis.read.fetching import at_hand
from analysis.read.records import Records, RecordsError, read_records
from analysis.words import readme as readme_words
from analysis.words.standing import machines, standing
from analysis.words.summary import summarise, title_of
from analysis.words.visible import in_markdown, visible

STORED = (
    "perplexity",
    "documents",
    "noise",
    "latency",
    "divergence",
    "worst",
)  # tables of the database, the others are queries
OTHERS = ("cards", "parts", "published", "published_latency")  # tables of which there is no chart
TABLES = (*STORED, *figures.QUERIES, *OTHERS)
WORDS = ("overview", "environment", "machines", "models", "invalid", "answer", "speed")  # for sentences, no tables
COUNTED = "in per cent, by --quality-metric kl in hundredths of a nat"
Thresholds = tuple[float, float, float, str]
DEFAULTS: Thresholds = (database.WITHIN, database.QUALITY_WITHIN, database.MEMORY, database.METRICS[0])
Frames = dict[str, list[dict[str, Any]]]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all is well, 2 with one line per problem otherwise."""
    options = parse(arguments)
    try:
        thresholds = (options.within, options.quality_within, options.memory, options.quality_metric)
        with at_hand(options.records) as folder, unchecked():
            records = read_records(folder, options.records)
            written = build(records, options.out, thresholds, options.readme)
    except (RecordsError, OSError) as problem:
        return refuse(str(problem))
    except (duckdb.Error, pa.ArrowException) as problem:
        reason = str(problem).splitlines()[0]
        return refuse(f"--records: '{options.records}' cannot be queried ({reason}); run the sweep again")
    for name, why in records.excluded:
        refuse(f"left out {name}: {why}")
    if records.aside:
        name, why = records.aside[0]
        count = len(records.aside)
        refuse(f"cells set aside: {count}, all named on the page ({name}: {why}); sweep again to have them anew")
    print("\n".join(f"wrote {line}" for line in written))
    print(f"open {(options.out / 'index.html').resolve().as_uri()}")
    return 2 if records.excluded else 0


def refuse(why: str) -> int:
    """Say in one line what is wrong; the exit code."""
    print(f"report: {visible(' '.join(why.splitlines()))}", file=sys.stderr)
    return 2


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's flags."""
    parser = argparse.ArgumentParser(prog="report.py", description="Write the report of a records folder.")
    where = "folder or s3:// address a sweep wrote (default: %(default)s)"
    parser.add_argument("--records", default="records/quick", help=where)
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: %(default)s)")
    for flag, default, kind, what in (
        ("--within", database.WITHIN, cost, f"what a recommended policy may cost, {COUNTED}"),
        ("--quality-within", database.QUALITY_WITHIN, cost, f"the same where quality comes first, {COUNTED}"),
        ("--memory", database.MEMORY, percentage, "share of the full cache's memory where that is limited"),
    ):
        about = f"{what} (default: %(default)g)"
        metavar = "PERCENT" if kind is percentage else "NUMBER"
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=about)
    metric = "what cost means: perplexity, KL from full, or tokens with another top token"
    parser.add_argument("--quality-metric", choices=database.METRICS, default=database.METRICS[0], help=metric)
    rewritten = "also rewrite FILE's results block and its docs/report.png"
    parser.add_argument("--readme", type=Path, metavar="FILE", help=rewritten)
    options = parser.parse_args(arguments)
    if options.memory > 100:
        parser.error(f"argument --memory: {options.memory:g} is more than all of full's memory; pass a share up to 100")
    return options


def percentage(text: str, what: str = "percentage") -> float:
    """A finite percentage that is not negative; `what`: how it is called where it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what} of at least 0; pass a number such as 5")
    return value


def cost(text: str) -> float:
    """The same of a cost, which is no percentage by every metric."""
    return percentage(text, f"number ({COUNTED})")


def build(records: Records, out: Path, thresholds: Thresholds, readme: Path | None = None) -> list[str]:
    """Write the whole report into `out` and say what was written; thresholds as `database.open_database` takes them."""
    around = readme_words.readme_parts(readme) if readme else None
    found, frames = asked(records, thresholds)
    for folder in ("charts", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        write_table(out / "tables", name, frames[name], found[name].schema)
    frames = {name: visible(rows) for name, rows in frames.items()}
    drawn = figures.drawn(frames)
    count, files = drawing.begin(drawn, out / "charts", standing(frames, machines(frames["machines"])))
    (out / "index.html").write_text(page(records, frames, drawn, thresholds, out), encoding="utf-8")
    summary = summarise(records, frames)
    (out / "summary.md").write_text(f"# kvstream: {in_markdown(title_of(records))}\n\n{summary}\n", encoding="utf-8")
    pictures.finish(files)
    written = [
        f"{out / 'index.html'}",
        f"{out / 'charts'}: {count} charts as SVG and PNG",
        f"{out / 'tables'}: {len(TABLES)} tables as CSV and Parquet",
        f"{out / 'summary.md'}",
    ]
    if readme and around:
        written += rewrite(readme, around, records, frames, out / "charts" / "tradeoff_kv.png")
    return written


def asked(records: Records, thresholds: Thresholds = DEFAULTS) -> tuple[dict[str, pa.Table], Frames]:
    """All tables of these records, and their rows with smaller models first."""
    connection = database.open_database(records, *thresholds)
    found = {name: ask(connection, name) for name in (*TABLES, *WORDS)}
    frames = {name: table.to_pylist() for name, table in found.items()}
    if thresholds[-1] != database.METRICS[0] and frames["perplexity"] and not frames["divergence"]:
        raise RecordsError(
            f"--quality-metric: {thresholds[-1]!r} needs records with divergence from full; "
            "sweep with --metrics kl, or leave it out"
        )
    return found, smaller_first(frames)


def write_table(folder: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """A table as CSV and Parquet, in full precision; without rows the CSV is empty, the Parquet has its columns."""
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])  # with \r\n, so that a name with either is quoted
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")


def rewrite(
    readme: Path, around: tuple[str, str], records: Records, frames: dict[str, list[dict[str, Any]]], picture: Path
) -> list[str]:
    """Rewrite the README's block, copy its picture beside it if there is one, and say what was written."""
    place = readme.parent / readme_words.PICTURE
    written = [f"{readme}, between its results markers"]
    if picture.exists():
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, place)
        written.append(str(place))
    block = readme_words.block(records, frames, picture.exists())
    readme.write_text(f"{around[0]}{block}{around[1]}", encoding="utf-8")
    return written


def ask(connection: duckdb.DuckDBPyConnection, name: str) -> pa.Table:
    """The rows of a table of the database or of a query, in an order that does not change."""
    if name not in STORED:
        return database.query(connection, name)
    order = " ORDER BY ALL" if name == "documents" else ""
    return connection.sql(f"FROM {name}{order}").to_arrow_table()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to end an object store's threads in order has aborted programs that had done all their work
