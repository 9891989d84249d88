"""Read a records folder and check every file against its commit record before a number is taken from it.

A cell counts only when its Parquet file has the committed sha256, row count and columns; a quality cell must score each
position once, a latency cell must hold every prefill and step of every contender. Everything else is named in
`Records.excluded`, and what is of other code, weights or texts than the rest in `Records.aside`; nothing drops out in
silence. Knows JSON and Parquet, no SQL.
"""

import hashlib
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.read.mixing import set_aside

SCHEMA = 1
COMMIT = re.compile(r"[0-9a-f]{16}\.json")
FAILED = re.compile(r"[0-9a-f]{16}\.failed\.json")
TEXT = ("string", "large_string", "dictionary")
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "quality": {
        "cell": TEXT,
        "document": TEXT,
        "position": ("int32",),
        "token": ("int32",),
        "nll_nats": ("float",),
        "correct": ("bool",),
    },
    "latency": {
        "cell": TEXT,
        "policy": TEXT,
        "phase": TEXT,
        "round": ("int32",),
        "turn": ("int32",),
        "step": ("int32",),
        "seconds": ("double",),
    },
}
# What is decoded to check a file; losses and hits are read once, by the queries.
CHECKED = {"quality": ["cell", "position"], "latency": list(COLUMNS["latency"])}
MODEL = {"model": pa.string(), "model_note": pa.string(), "trained_context": pa.int64()}
# What records hold since some version; null in older ones.
LATER = {"vocab_size": pa.int64()}
PLACE = {"device": pa.string(), "dtype": pa.string()}
POLICY = {
    "policy": pa.string(),
    "policy_name": pa.string(),
    "strategy": pa.string(),
    "position_mode": pa.string(),
    "budget": pa.int64(),
    "start_size": pa.int64(),
    "skip_layers": pa.string(),
}
FIELDS: dict[str, dict[str, pa.DataType]] = {
    "quality": MODEL
    | POLICY
    | {"text": pa.string(), "document": pa.string(), "tokens": pa.int64(), "lengths": pa.list_(pa.int64())}
    | PLACE
    | {"kv_bytes": pa.int64(), "kv_bytes_full": pa.int64()},
    "latency": MODEL
    | PLACE
    | {name: pa.int64() for name in ("context", "batch", "prefills", "rounds", "steps", "threads")},
}
# What must be the same of all cells of a kind, of a model's name, of a text's name.
IDENTITY: dict[str, dict[str, pa.DataType]] = {
    "quality": {name: pa.string() for name in ("code", "model_identity", "document_sha256")},
    "latency": {name: pa.string() for name in ("code", "model_identity")},
}
CONTENDER: dict[str, pa.DataType] = {
    "label": pa.string(),
    "role": pa.string(),
    "of": pa.string(),
    **POLICY,
    "kv_bytes": pa.int64(),
    "kv_bytes_allocated": pa.int64(),
    "peak_bytes": pa.int64(),
}
NOISE: dict[str, pa.DataType] = {
    "load_before": pa.float64(),
    "load_after": pa.float64(),
    "steal": pa.float64(),
    "others": pa.float64(),
    "governor": pa.string(),
}
NULLABLE = {"model_note", "strategy", "position_mode", "budget", "start_size", "of", "peak_bytes"}
PREFILLED = {"policy", "again", "dynamic"}  # roles with a TTFT; a twin that does not evict has steps only


class RecordsError(ValueError):
    """A records folder that cannot be reported on; the message names what is wrong and what to do."""


@dataclass(frozen=True)
class Records:
    """What a records folder holds: checked commit records by kind, and by name what is failed, missing or excluded.

    folder: where the files are now. where: how the user calls that place, a folder or an address. aside: sound cells
    that must not stand beside the others.
    """

    folder: Path
    where: str
    quality: list[dict[str, Any]]
    latency: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    missing: list[str]
    excluded: list[tuple[str, str]]
    aside: list[tuple[str, str]]
    sweep: dict[str, Any]

    @property
    def commits(self) -> list[dict[str, Any]]:
        """All checked commit records."""
        return self.quality + self.latency

    def files(self, commits: list[dict[str, Any]]) -> list[Path]:
        """The Parquet files of these commit records, in that order."""
        return [self.folder / commit["file"] for commit in commits]


def read_records(folder: Path, where: str | None = None) -> Records:
    """Read and check `folder`, called `where`; RecordsError when there is no folder or not one usable cell in it."""
    where = where or str(folder)
    if not folder.is_dir():
        raise RecordsError(f"--records: no folder '{where}'; run `make run`, or pass a folder written by a sweep")
    names = sorted(entry.name for entry in folder.iterdir())
    commits: dict[str, list[dict[str, Any]]] = {kind: [] for kind in FIELDS}
    excluded = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and decoding are done outside Python
        for read in pool.map(lambda name: try_commit(folder / name), filter(COMMIT.fullmatch, names)):
            if isinstance(read, tuple):
                excluded.append(read)
            else:
                commits[read["fields"]["kind"]].append(read)
    if not any(commits.values()):
        found = "; ".join(f"{name}: {why}" for name, why in excluded[:1]) or "no finished cell"
        raise RecordsError(f"--records: nothing to report in '{where}' ({found}); run `make run` or a sweep again")
    committed = {name.split(".")[0] for name in filter(COMMIT.fullmatch, names)}
    failed, sweep = [], {}
    for name in names:
        try:
            if FAILED.fullmatch(name) and name.split(".")[0] not in committed:
                failed.append(read_json(folder / name))
            elif name == "sweep.json":
                sweep = read_json(folder / name)
        except (ValueError, OSError) as problem:
            excluded.append((name, str(problem)))
    if sweep.get("lengths"):  # cells do not change with the prefixes that a later sweep asks of them
        for commit in commits["quality"]:
            fields = commit["fields"]
            asked = {length for length in sweep["lengths"] if length < fields["tokens"]}
            fields["lengths"] = sorted(asked | {fields["tokens"]})
    _rename(commits, sweep)
    aside = set_aside(folder, [*commits["quality"], *commits["latency"]], set(sweep.get("cells", [])))
    quality, latency = ([commit for commit in found if commit["cell"] not in aside] for found in commits.values())
    known = committed | {record.get("cell") for record in failed}
    missing = [key for key in sweep.get("cells", []) if key not in known]
    return Records(folder, where, quality, latency, failed, missing, excluded, sorted(aside.items()), sweep)


def _rename(commits: dict[str, list[dict[str, Any]]], sweep: dict[str, Any]) -> None:
    """Call models and texts what the last sweep calls them: a cell computed under another path is the same cell."""
    for commit in commits["quality"] + commits["latency"]:
        fields = commit["fields"]
        fields["model"] = sweep.get("models", {}).get(fields["model_identity"], fields["model"])
    planned = set(sweep.get("cells", []))
    same = {_document(commit) for commit in commits["quality"] if commit["cell"] in planned}
    for commit in commits["quality"]:
        if _document(commit) in same:
            commit["fields"]["text"] = sweep.get("text", commit["fields"]["text"])


def _document(commit: dict[str, Any]) -> tuple[str, str]:
    return commit["fields"]["document"], commit["fields"]["document_sha256"]


def read_json(path: Path) -> dict[str, Any]:
    """Parse one JSON object; ValueError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise RecordsError(f"{path.name}: not JSON ({problem}); delete it and run the sweep again") from None
    if not isinstance(value, dict):
        raise RecordsError(f"{path.name}: not a JSON object; delete it and run the sweep again")
    seal = value.pop("checksum", None)  # of the file's name and the same JSON without it
    written = f"{path.name}\n{json.dumps(value, indent=1, ensure_ascii=False)}"
    if seal != hashlib.sha256(written.encode(errors="surrogatepass")).hexdigest():
        raise RecordsError(f"checksum: {path.name} is not what was written; delete it and run the sweep again")
    return value


def try_commit(path: Path) -> dict[str, Any] | tuple[str, str]:
    """A checked commit record, or the name of one that does not count and why."""
    try:
        return read_commit(path)
    except (ValueError, OSError, pa.ArrowException) as problem:
        return path.name, str(problem)


def read_commit(path: Path) -> dict[str, Any]:
    """Read one commit record and check it and its Parquet file; ValueError with field, value and remedy."""
    commit = read_json(path)
    key = path.name.split(".")[0]
    if commit.get("schema") != SCHEMA:
        raise RecordsError(f"schema: {commit.get('schema')!r}, this report reads {SCHEMA}; use the matching version")
    for name, expected in (("cell", key), ("file", f"{key}.parquet")):
        if commit.get(name) != expected:
            raise RecordsError(
                f"{name}: {commit.get(name)!r}, not {expected!r}; delete {path.name} and run the sweep again"
            )
    fields = commit.get("fields")
    if not isinstance(fields, dict) or fields.get("kind") not in FIELDS:
        raise RecordsError(f"fields.kind: missing, or not one of {', '.join(FIELDS)}; run the sweep again")
    kind = fields["kind"]
    check_fields(fields, FIELDS[kind] | IDENTITY[kind] | {name: LATER[name] for name in LATER if name in fields})
    table = read_table(commit, path.parent / commit["file"], kind)
    problem = quality_problem(fields, table) if kind == "quality" else latency_problem(fields, table)
    if problem:
        raise RecordsError(f"{problem}; delete {path.name} and run the sweep again")
    return commit


def check_fields(fields: dict[str, Any], contract: dict[str, pa.DataType], where: str = "fields") -> None:
    """Check that each field of the contract is there and of its type."""
    for name, kind in contract.items():
        value = fields.get(name)
        if value is None and (name not in NULLABLE or name not in fields):
            raise RecordsError(f"{where}.{name}: missing; run the sweep again with the current version")
        try:
            pa.scalar(value, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise RecordsError(f"{where}.{name}: {value!r} is no {kind}; run the sweep again") from None


def read_table(commit: dict[str, Any], path: Path, kind: str) -> pa.Table:
    """Check a commit record's Parquet file, its bytes, row count, columns and whose rows they are; read CHECKED."""
    remedy = f"delete {path.stem}.json and run the sweep again"
    if not path.is_file():
        raise RecordsError(f"file: {path.name} is missing; {remedy}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != commit.get("sha256"):
        raise RecordsError(
            f"sha256: {path.name} is {digest[:12]}…, committed {str(commit.get('sha256'))[:12]}…; {remedy}"
        )
    file = pq.ParquetFile(pa.BufferReader(content))
    if file.metadata.num_rows != commit.get("rows"):
        raise RecordsError(f"rows: {path.name} has {file.metadata.num_rows}, committed {commit.get('rows')}; {remedy}")
    schema = file.schema_arrow
    for name, types in COLUMNS[kind].items():
        found = str(schema.field(name).type).split("<")[0] if name in schema.names else "missing"
        if found not in types:
            raise RecordsError(f"{name}: column of {path.name} is {found}, must be {types[0]}; {remedy}")
    table = file.read(columns=CHECKED[kind], use_threads=False)
    if table["cell"].unique().to_pylist() != [commit["cell"]]:
        raise RecordsError(f"cell: {path.name} holds rows of another cell; {remedy}")
    return table


def quality_problem(fields: dict[str, Any], table: pa.Table) -> str | None:
    """What is wrong with a quality cell's rows: each position must be scored exactly once."""
    tokens = fields["tokens"]
    if max(fields["lengths"], default=None) != tokens:
        return f"lengths: {fields['lengths']} does not end at tokens={tokens}"
    if not np.array_equal(np.sort(table["position"].to_numpy()), np.arange(1, tokens)):
        return f"position: the file does not score 1…{tokens - 1} once each"
    return None


def latency_problem(fields: dict[str, Any], table: pa.Table) -> str | None:
    """What is wrong with a latency cell's rows: all prefills and steps of all contenders, each with a positive time."""
    contenders = fields.get("contenders")
    if not isinstance(contenders, list) or not contenders or not isinstance(fields.get("noise"), dict):
        return "contenders, noise: missing"
    for contender in contenders:
        check_fields(contender, CONTENDER, "contenders")
    expected: set[tuple[Any, ...]] = set()
    for contender in contenders:
        steps = [("step", number, step) for number in range(fields["rounds"]) for step in range(fields["steps"])]
        prefills = [("ttft", number, 0) for number in range(fields["prefills"])]
        taken = steps + (prefills if contender["role"] in PREFILLED else [])
        expected |= {(contender["label"], *sample) for sample in taken}
    found = Counter(zip(*(table[name].to_pylist() for name in ("policy", "phase", "round", "step"))))
    if set(found) != expected or max(found.values()) > 1:
        return "policy, phase, round, step: the file does not hold every prefill and step of every contender once"
    seconds = table["seconds"].to_numpy()
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        return "seconds: not all are finite and positive"
    return None
