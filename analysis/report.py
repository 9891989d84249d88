"""Records → report: a self-contained page, charts as SVG and PNG, tables as CSV, a summary, the README's results block.

    python analysis/report.py                                   records/quick → report/index.html
    python analysis/report.py --records records/full --out report-full
    python analysis/report.py --readme README.md                also rewrites the block between its results markers

Everything shown comes from the queries in `queries/`; this module only writes it down. Exit code 2 on bad input: no
folder, no records, or files that do not match their commit records (left out, named, and the rest still reported).
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import duckdb
import vl_convert

from analysis import charts, database
from analysis.page import page
from analysis.records import Records, RecordsError, read_records
from analysis.sections import SECTIONS
from analysis.summary import BEGIN, END, provenance, readme_parts, summarise, title_of

STORED = ("main", "documents", "noise", "latency")  # tables of the database, the others are queries
TABLES = (
    *STORED,
    "tradeoff",
    "budget",
    "cross_method",
    "position",
    "start_size",
    "length",
    "position_modes",
    "context",
    "throughput",
    "eviction",
    "published",
    "published_latency",
)
BY_SETTING = ("answer", "speed", *(name for name in TABLES if not name.startswith("published")))
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all is well, 2 with one line per problem otherwise."""
    options = parse(arguments)
    try:
        records = read_records(options.records)
        written = build(records, options.out, options.within, options.readme)
    except (RecordsError, OSError) as problem:
        print(f"report: {problem}", file=sys.stderr)
        return 2
    except duckdb.Error as problem:
        reason = str(problem).splitlines()[0]
        print(
            f"report: --records: '{options.records}' cannot be queried ({reason}); run the sweep again", file=sys.stderr
        )
        return 2
    for name, why in records.excluded:
        print(f"report: left out {name}: {why}", file=sys.stderr)
    print("\n".join(f"wrote {line}" for line in written))
    print(f"open {(options.out / 'index.html').resolve().as_uri()}")
    return 2 if records.excluded else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's flags."""
    parser = argparse.ArgumentParser(prog="report.py", description="Write the report of a records folder.")
    parser.add_argument(
        "--records", type=Path, default=Path("records/quick"), help="folder a sweep wrote (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--within",
        type=tolerance,
        default=5.0,
        metavar="PERCENT",
        help="perplexity a recommended policy may cost (default: 5)",
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help=f"also rewrite FILE between {BEGIN} and {END}")
    return parser.parse_args(arguments)


def tolerance(text: str) -> float:
    """A finite percentage that is not negative."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a percentage of at least 0, not {text}")
    return value


def build(records: Records, out: Path, within: float, readme: Path | None = None) -> list[str]:
    """Write the whole report into `out` and say what was written."""
    block_of = readme_parts(readme) if readme else None
    connection = database.open_database(records, within)
    asked = [*TABLES, "overview", "environment", "models", "invalid", "answer", "speed"]
    frames = {name: database.rows(connection, name) for name in asked if name not in STORED}
    for name in STORED:
        order = " ORDER BY ALL" if name == "documents" else ""
        frames[name] = connection.sql(f"FROM {name}{order}").to_arrow_table().to_pylist()
    rank = {setting: place for place, setting in enumerate(frames["overview"][0]["settings"])}
    for name in BY_SETTING:
        frames[name].sort(key=lambda row: rank[row["setting"]])  # stable: inside a setting the query's order stays
    figures = {name: draw(frames[query]) if frames[query] else None for name, (query, draw) in charts.FIGURES.items()}
    for folder in ("charts", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        write_csv(out / "tables" / f"{name}.csv", frames[name])
    drawn = [name for name, figure in figures.items() if figure and figure.panels]
    for name in charts.FIGURES:
        for suffix in ("svg", "png"):
            (out / "charts" / f"{name}.{suffix}").unlink(missing_ok=True)
    for name in drawn:
        write_chart(out / "charts", name, figures[name])
    (out / "index.html").write_text(page(records, frames, figures, within), encoding="utf-8")
    summary = summarise(records, frames)
    (out / "summary.md").write_text(f"# kvstream: {title_of(records)}\n\n{summary}\n", encoding="utf-8")
    written = [
        f"{out / 'index.html'}",
        f"{out / 'charts'}: {len(drawn)} charts as SVG and PNG",
        f"{out / 'tables'}: {len(TABLES)} CSV files",
    ]
    written.append(f"{out / 'summary.md'}")
    if readme and block_of:
        readme.write_text(
            f"{block_of[0]}{BEGIN}\n{summary}\n\n{provenance(records)}\n{END}{block_of[1]}", encoding="utf-8"
        )
        written.append(f"{readme}, between its results markers")
    return written


def write_csv(path: Path, rows: list[Row]) -> None:
    """Rows at full precision; a table without rows is an empty file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_chart(folder: Path, name: str, figure: charts.Figure | None) -> None:
    """One figure as SVG, and the PNG drawn from it at twice the size."""
    assert figure is not None
    vega = vl_convert.vegalite_to_vega(charts.for_file(figure, SECTIONS[name].heading))
    for legend in vega.get("legends", []):
        # Vega-Lite gives the legend's filled symbols the lines' dashes as an outline, which frays them.
        symbols = legend.setdefault("encode", {}).setdefault("symbols", {}).setdefault("update", {})
        symbols["strokeWidth"] = {"value": 0}
        symbols.pop("strokeDash", None)
        legend.pop("strokeDash", None)
    svg = vl_convert.vega_to_svg(vega)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    (folder / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))


if __name__ == "__main__":
    sys.exit(main())
