"""What `docs/results/kept` holds of a sweep: the report's tables, checked, and how they were made, machine by machine.

Times hold for the machine that took them. What another machine measured is kept beside the first's, as `latency@amd`
beside `latency`, and stands on the same page with the hardware in the name of each setting.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.numbers.order import smaller_first
from analysis.read.records import RecordsError
from analysis.words.standing import Standing, short, standing
from analysis.words.visible import visible

BESIDE = "@"
Frames = dict[str, list[dict[str, Any]]]
About = dict[str, Any]
Kept = tuple[Frames, About]


def all_kept(place: Path) -> dict[str, Kept]:
    """What this folder holds, by its folders' names."""
    return {path.name: kept(path) for path in sorted(place.glob("*/"))}


def kept(place: Path) -> Kept:
    """The tables that a folder holds, checked by their sha256, and what is known of their making."""
    about = json.loads((place / "about.json").read_text(encoding="utf-8"))
    for name, sha256 in about["sha256"].items():
        if hashlib.sha256((place / name).read_bytes()).hexdigest() != sha256:
            raise RecordsError(f"{place / name} is not what was kept; take it from git, or --keep {place.name} again")
    return rows_of({Path(name).stem: pq.read_table(place / name) for name in about["sha256"]}), about


def rows_of(tables: dict[str, pa.Table]) -> Frames:
    """The rows of the tables that are kept of a sweep, smaller models first."""
    return smaller_first({name: table.to_pylist() for name, table in tables.items()})


def store(tables: dict[str, pa.Table], about: About, place: Path) -> None:
    """Keep these tables, each with its sha256, in place of what was there."""
    place.mkdir(parents=True, exist_ok=True)
    for path in place.glob("*.parquet"):
        path.unlink()
    for name, table in tables.items():
        pq.write_table(table, place / f"{name}.parquet", compression="zstd")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.glob("*.parquet"))}
    text = json.dumps(about | {"sha256": sums}, indent=1, ensure_ascii=False)
    (place / "about.json").write_text(f"{text}\n", encoding="utf-8")


def by_sweep(held: dict[str, Kept]) -> dict[str, Kept]:
    """Of each sweep what all machines measured, from what is held by folder. RecordsError where two are of one."""
    machines: dict[str, dict[str, Kept]] = {}
    for name, one in held.items():
        machines.setdefault(name.partition(BESIDE)[0], {})[name] = one
    return {sweep: together(parts) for sweep, parts in machines.items()}


def together(parts: dict[str, Kept]) -> Kept:
    """One sweep's tables from several machines as one, settings named after the hardware, too."""
    if len(parts) == 1:
        [(frames, about)] = parts.values()
        return frames, about | {"standing": stood(frames, [hardware_of(about)])}
    names: dict[str, str] = {}
    for name, (_, about) in parts.items():
        if (other := names.setdefault(short(about["hardware"]), name)) != name:
            raise RecordsError(
                f"kept {other} and {name} are both of {about['hardware']!r}; measure into the same records instead"
            )
    named = [on_hardware(frames, about["hardware"]) for frames, about in parts.values()]
    frames = {table: [row for one in named for row in one[table]] for table in named[0]}
    frames["overview"] = [added_up(frames["overview"])]
    first, *others = (about for _, about in parts.values())
    about = first | {name: sum(one[name] for one in (first, *others)) for name in ("cells", "planned")}
    return frames, about | {"standing": stood(frames, [*names]), "beside": others}


def stood(frames: Frames, hardware: list[str]) -> Standing:
    """What the lines beneath its charts tell: all that is kept of a sweep was computed on this hardware."""
    return standing(visible(frames), {"quality": hardware, "speed": hardware})


def hardware_of(about: About) -> str:
    """On what a sweep was computed; the first that was kept say it with the number of cores alone."""
    return str(about.get("hardware") or about["machine"].partition(", ")[0])


def on_hardware(frames: Frames, hardware: str) -> Frames:
    """The same rows, of settings that are named after their hardware, too."""

    def named(setting: str) -> str:
        return f"{setting} · {short(hardware)}"

    def renamed(row: dict[str, Any]) -> dict[str, Any]:
        lists = {"settings": [named(one) for one in row["settings"]]} if "settings" in row else {}
        return row | lists | ({"setting": named(row["setting"])} if "setting" in row else {})

    return {table: [renamed(row) for row in rows] for table, rows in frames.items()}


def added_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of all machines' overviews, which may be of several versions: numbers are added, lists joined."""
    whole = dict(rows[0])
    for row in rows[1:]:
        for name in whole.keys() & row.keys():
            mine, value = whole[name], row[name]
            several = isinstance(value, list)
            whole[name] = [*mine, *(one for one in value if one not in mine)] if several else mine + value
    return whole
