"""Read a records folder: what in it may be reported, and by name all that may not.

A cell counts only when it is what was committed (`analysis.read.commits`). Everything else is named in
`Records.excluded`, and what is of other code, weights or texts than the rest in `Records.aside`; nothing drops out in
silence. Knows JSON, no SQL.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.read.commits import read_json, try_commit
from analysis.read.contract import COMMIT, FAILED, FIELDS, RecordsError
from analysis.read.mixing import set_aside


@dataclass(frozen=True)
class Records:
    """What a records folder holds: checked commit records by kind, and by name what is failed, missing or excluded.

    folder: where the files are now. where: how the user calls that place, a folder or an address. aside: sound cells
    that must not stand beside the others.
    """

    folder: Path
    where: str
    commits: dict[str, list[dict[str, Any]]]
    failed: list[dict[str, Any]]
    missing: list[str]
    excluded: list[tuple[str, str]]
    aside: list[tuple[str, str]]
    sweep: dict[str, Any]


def read_records(folder: Path, where: str | None = None) -> Records:
    """Read and check `folder`, called `where`; RecordsError when there is no folder or not one usable cell in it."""
    where = where or str(folder)
    if not folder.is_dir():
        raise RecordsError(f"--records: no folder '{where}'; run `make run`, or pass a folder written by a sweep")
    names = sorted(entry.name for entry in folder.iterdir())
    commits, excluded = _commits(folder, names)
    if not any(commits.values()):
        found = "; ".join(f"{name}: {why}" for name, why in excluded[:1]) or "no finished cell"
        raise RecordsError(f"--records: nothing to report in '{where}' ({found}); run `make run` or a sweep again")
    committed = {name.split(".")[0] for name in filter(COMMIT.fullmatch, names)}
    unfinished = [name for name in filter(FAILED.fullmatch, names) if name.split(".")[0] not in committed]
    failed = _sound(folder, unfinished, excluded)
    sweep = next(iter(_sound(folder, ["sweep.json"] if "sweep.json" in names else [], excluded)), {})
    _call_as_the_sweep_does(commits, sweep)
    aside = set_aside(folder, [*commits["quality"], *commits["latency"]], set(sweep.get("cells", [])))
    kept = {kind: [one for one in found if one["cell"] not in aside] for kind, found in commits.items()}
    known = committed | {record.get("cell") for record in failed}
    missing = [key for key in sweep.get("cells", []) if key not in known]
    return Records(folder, where, kept, failed, missing, excluded, sorted(aside.items()), sweep)


def _commits(folder: Path, names: list[str]) -> tuple[dict[str, list[dict[str, Any]]], list[tuple[str, str]]]:
    """The commit records that count, by kind, and the others by name with what is wrong."""
    commits: dict[str, list[dict[str, Any]]] = {kind: [] for kind in FIELDS}
    excluded = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and decoding are done outside Python
        for read in pool.map(lambda name: try_commit(folder / name), filter(COMMIT.fullmatch, names)):
            if isinstance(read, tuple):
                excluded.append(read)
            else:
                commits[read["fields"]["kind"]].append(read)
    return commits, excluded


def _sound(folder: Path, names: list[str], excluded: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The JSON files that are what was written; adds the others to `excluded`."""
    found = []
    for name in names:
        try:
            found.append(read_json(folder / name))
        except (ValueError, OSError) as problem:
            excluded.append((name, str(problem)))
    return found


def _call_as_the_sweep_does(commits: dict[str, list[dict[str, Any]]], sweep: dict[str, Any]) -> None:
    """Take names and lengths from the last sweep: a cell computed under another path or for others is the same cell."""
    for fields in (commit["fields"] for found in commits.values() for commit in found):
        fields["model"] = sweep.get("models", {}).get(fields["model_identity"], fields["model"])
    planned = set(sweep.get("cells", []))
    same = {_document(commit) for commit in commits["quality"] if commit["cell"] in planned}
    for commit in commits["quality"]:
        fields = commit["fields"]
        if sweep.get("lengths"):  # prefixes of the run
            asked = {length for length in sweep["lengths"] if length < fields["tokens"]}
            fields["lengths"] = sorted(asked | {fields["tokens"]})
        if _document(commit) in same:
            fields["text"] = sweep.get("text", fields["text"])


def _document(commit: dict[str, Any]) -> tuple[str, str]:
    return commit["fields"]["document"], commit["fields"]["document_sha256"]
