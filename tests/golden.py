"""Synthetic records folders that follow the contract: seeded, with plausible effects and known blemishes."""

import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import report
from analysis.charts import drawing
from analysis.numbers.database import open_database
from analysis.read.records import read_records

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class P:
    """A policy as records know it, and the excess loss (nats per token) it should show once over budget."""

    label: str
    name: str
    excess: float = 0.0
    budget: int | None = None
    start_size: int | None = None
    strategy: str | None = None
    position: str | None = "cache"
    skip_layers: str = ""
    fields: dict[str, Any] = field(default_factory=dict, hash=False)
    scorer: str | None = None  # older records do not say
    recalls: float = 0.9  # share of answers that are right beyond the budget


def streaming(start: int, recent: int, excess: float, position: str = "cache", skip: str = "") -> P:
    options = (f",position='{position}'" if position != "cache" else "") + (f",skip_layers=({skip})" if skip else "")
    label, fields = f"streaming_llm({start},{recent}{options})", {"start_size": start, "recent_size": recent}
    return P(label, "streaming_llm", excess, start + recent, start, None, position, skip, fields)


def recent(window: int, excess: float) -> P:
    return P(f"recent_only({window})", "recent_only", excess, window, 0, fields={"window_size": window})


def l2(budget: int, strategy: str, excess: float) -> P:
    fields = {"budget": budget, "keep_ratio": 0.7, "strategy": strategy}
    return P(f"fix_size_l2({budget},0.7,{strategy})", "fix_size_l2", excess, budget, None, strategy, fields=fields)


FULL = P("full", "full", position=None)


@dataclass(frozen=True)
class Latency:
    """Latency cells to write: every model × context × batch, each with all policies, some with a blemish."""

    contexts: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    prefills: int = 6
    rounds: int = 24
    steps: int = 3
    threads: int = 2
    noise: float = 0.01  # of a step, relative, log-normal
    evicting: float = 1.02  # a step with eviction over one without
    blemishes: dict[tuple[str, int, int], str] = field(default_factory=dict)  # busy, apart, failed
    launched: dict[str, str] | None = None  # how contenders' steps are, if not as CUDA graphs; None: not recorded


@dataclass(frozen=True)
class Plan:
    """What to write: every model × document × policy, minus the cells left failed or missing."""

    policies: tuple[P, ...]
    models: tuple[tuple[str, str | None, int], ...]
    documents: tuple[str, ...]
    tokens: int
    lengths: tuple[int, ...]
    text: str = "kjv"
    invalid: bool = False
    failed: int = 0
    missing: int = 0
    seed: int = 7
    latency: Latency | None = None
    device: str = "cpu"
    dtype: str = "float32"
    vocab_size: int = 50_000
    question: str = "Which policy, which budget, at what cost?"
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT), hash=False)
    answers: tuple[tuple[int, int, int], ...] = ()  # position, length and distance, by position
    recalls: float = 0.9  # share of answers that are right within the budget
    part: int = 0  # tokens of each part in which texts were computed
    diverges: bool = False  # whether tokens are compared with full's predictions; in older records they are not


ENVIRONMENT = {"python": "3.12.3", "kvstream": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "ray": "2.60.0"}
ENVIRONMENT |= {"commit": "34692a1", "platform": "Linux-x86_64", "cpu": "Golden CPU", "cores": "2"}
GOLDEN = Plan(
    policies=(
        FULL,
        *(streaming(s, b - s, 0.09 - 0.0002 * b - 0.002 * s) for b in (128, 256) for s in (1, 4)),
        streaming(4, 124, 0.11, "absolute", "0,1"),
        streaming(4, 124, 1.9, "frozen"),
        recent(128, 1.1),
        recent(256, 0.8),
        l2(128, "keep_low", 0.5),
        l2(128, "random", 0.7),
        l2(256, "keep_low", 0.3),
    ),
    models=(("tiny-neox", None, 512), ("tiny-llama", "Golden note: <b>weights</b> & made up", 2048)),
    documents=(
        *("Genesis", "Exodus", "Leviticus", "Numbers", "Joshua", "Judges"),
        *("Ruth", "Ezra", "Esther", "Job", "Psalms", "Daniel"),
    ),
    tokens=600,
    lengths=(150, 300, 600),
    invalid=True,
    failed=1,
    missing=1,
    latency=Latency(
        contexts=(100, 200, 600),
        batches=(1, 4),
        blemishes={
            ("tiny-neox", 600, 1): "busy",
            ("tiny-llama", 200, 4): "apart",
            ("tiny-llama", 600, 4): "failed",
        },
    ),
)  # fmt: skip

# One model, and nothing amiss.
PLAIN = replace(GOLDEN, models=GOLDEN.models[:1], invalid=False, failed=0, missing=0, latency=None)
QUICK = Plan(
    policies=(
        FULL,
        streaming(1, 255, 0.125),
        streaming(4, 252, 0.105),
        streaming(1, 1023, 0.031),
        streaming(4, 1020, 0.022),
        recent(256, 1.15),
        recent(1024, 0.65),
        l2(256, "keep_low", 1.3),
        l2(256, "random", 0.95),
    ),
    models=(("smollm2-135m", "Instruct model, Q4_1 weights dequantised to float32", 8192),),
    documents=("Genesis", "Job"),
    tokens=4096,
    lengths=(512, 1024, 2048, 4096),
    diverges=True,
)
# Latency alone: random weights, one context, enough gaps for p99 and too few prefills for an interval.
SHAPES = Plan(
    policies=(FULL, streaming(4, 252, 0), streaming(4, 1020, 0), recent(256, 0), l2(256, "keep_low", 0)),
    models=(("shape:pythia-70m", "random weights, no quality", 2048), ("shape:pythia-410m", None, 2048)),
    documents=(),
    tokens=0,
    lengths=(),
    latency=Latency(contexts=(2048,), prefills=3, rounds=70, steps=10),
)


def key_of(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def scored(plan: Plan, model: str, document: str, policy: P) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, losses and hits; policies of one (model, document) share the tokens' difficulty, as real ones do."""
    shared = np.random.default_rng([plan.seed, int(key_of(model, document), 16) % 2**32])
    own = np.random.default_rng([plan.seed, int(key_of(model, document, policy.label), 16) % 2**32])
    count = plan.tokens - 1
    position = np.arange(1, plan.tokens)
    token = shared.integers(0, 50_000, count)
    level = shared.normal(0.7, 0.12)
    nll = shared.gamma(0.7, 1.0, count) * (level + 0.8 * np.exp(-position / 150)) * 3.6
    if policy.budget is not None:
        over = position > policy.budget
        nll = nll + over * policy.excess * own.gamma(2.0, 0.5, count)
    correct = nll < 0.8
    for answer in plan.answers:
        repeat(*answer, token, nll, correct, policy, plan.recalls, own)
    return token.astype(np.int32), nll.astype(np.float32), correct


def compared(plan: Plan, model: str, document: str, policy: P) -> dict[str, np.ndarray]:
    """KL from full, same top token, and the rank of the token: nothing differs while the budget holds all."""
    own = np.random.default_rng([plan.seed, 1, int(key_of(model, document, policy.label), 16) % 2**32])
    count, position = plan.tokens - 1, np.arange(1, plan.tokens)
    kl = own.gamma(0.3, 3.0, count) * policy.excess * (position > (policy.budget or plan.tokens))
    kl[own.random(count) < 0.01] *= 5  # the tail
    same, rank = own.random(count) > np.minimum(kl, 0.9), own.geometric(0.3, count).astype(np.uint16)
    return {"kl_nats": kl.astype(np.float32), "same_top": same, "rank": rank}


def attended(document: str, policy: P) -> list[list[float]]:
    """What full's attention loses, by layer and head: the later ones more."""
    own = np.random.default_rng(int(key_of(document, policy.label), 16) % 2**32)
    return (own.random((3, 2)) * np.arange(1, 4)[:, None] / 4 * min(1.0, policy.excess)).tolist()


def worst_of(columns: dict[str, np.ndarray], nll: np.ndarray) -> list[dict[str, Any]]:
    """The twenty tokens with the highest KL, with words that need escaping."""
    order = sorted(range(len(nll)), key=lambda row: (-columns["kl_nats"][row], row))[:20]
    found = []
    for row in order:
        numbers = {"position": row + 1, "kl_nats": float(columns["kl_nats"][row]), "nll_nats": float(nll[row])}
        words = {"before": f"<b>word {row}</b> ", "token": "&amp; it", "after": " {{ then }}"}
        found += [numbers | words] if numbers["kl_nats"] > 0 else []
    return found


def repeat(position, length, distance, token, nll, correct, policy: P, recalls: float, own: Any) -> None:
    """Copy an answer and the four tokens before it from so far back; what is lost there depends on who still has it."""
    held = policy.budget is None or distance <= policy.budget
    rows = np.arange(position - 5, position - 1 + length)  # of position 1 is row 0
    token[rows] = token[rows - distance]
    nll[rows] *= 0.2 if held else 0.5
    correct[rows[4:]] = True
    correct[rows[4]] = own.random() < (recalls if held else min(recalls, policy.recalls))  # else its first is wrong


def write(plan: Plan, folder: Path) -> Path:
    """Write the plan's records into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [(m, d, p) for m in plan.models for d in plan.documents for p in plan.policies]
    place = () if (plan.device, plan.dtype) == ("cpu", "float32") else (plan.device, plan.dtype)
    keys = [key_of(m[0], d, p.label, plan.tokens, *place) for m, d, p in cells]
    held_back = len(cells) - plan.failed - plan.missing
    bare = replace(plan, policies=(), models=(), documents=(), lengths=(), latency=None, environment={})
    for index, ((model, document, policy), key) in enumerate(zip(cells, keys)):
        fields = fields_of(plan, model, document, policy)
        if index >= held_back:
            if index < held_back + plan.failed:
                write_failure(folder, key, fields)
            continue
        odd = {1: np.nan, len(plan.policies) + 2: np.inf}.get(index) if plan.invalid else None
        rows, worst = rows_of(bare, key, model[0], document, policy, odd, (scored, compared, repeat))
        put(folder, key, fields | ({"worst": worst} if worst else {}), rows, plan.tokens - 1, plan.environment)
    keys += write_latency(plan, folder) if plan.latency else []
    sweep = {"name": "golden", "question": plan.question, "cells": keys}
    write_json(folder / "sweep.json", sweep)
    return folder


@lru_cache(maxsize=1000)
def rows_of(
    plan: Plan, key: str, model: str, document: str, policy: P, odd: float | None, by: tuple[Any, ...]
) -> tuple[bytes, list[Any]]:
    """A cell's Parquet file, and its worst tokens: tests write the same ones again and again.

    odd: one of the losses. by: the functions that a test may have put others in place of.
    """
    token, nll, correct = scored(plan, model, document, policy)
    if odd is not None:
        nll[10] = odd
    more = compared(plan, model, document, policy) if plan.diverges else {}
    return parquet(cell_table(key, document, token, nll, correct, more)), worst_of(more, nll) if more else []


def kept(policy: P, tokens: int) -> float:
    """How many of `tokens` a layer keeps on average: of thirty, those that never evict keep all."""
    whole = len(policy.skip_layers.split(",")) / 30 if policy.skip_layers else 0.0
    return whole * tokens + (1 - whole) * min(tokens, policy.budget or tokens)


def fields_of(plan: Plan, model: tuple[str, str | None, int], document: str, policy: P) -> dict[str, Any]:
    per_token = 2 * 30 * 3 * 64 * 4
    return {
        "kind": "quality", "model": model[0], "model_note": model[1], "trained_context": model[2],
        "model_identity": f"golden {model[0]}", "code": "golden",
        "document_sha256": key_of(model[0], document, plan.tokens),
        "policy": policy.label, "policy_name": policy.name, "strategy": policy.strategy,
        "position_mode": policy.position, "budget": policy.budget, "start_size": policy.start_size,
        "skip_layers": policy.skip_layers, "text": plan.text, "document": document, "tokens": plan.tokens,
        "lengths": list(plan.lengths), "device": plan.device, "dtype": plan.dtype,
        "kv_bytes": round(per_token * kept(policy, plan.tokens)),
        "kv_bytes_full": per_token * plan.tokens,
        "policy_fields": fields_in(policy), "vocab_size": plan.vocab_size,
        **({"scorer": policy.scorer} if policy.scorer else {}),
        **({"metrics": "kl"} if plan.diverges else {}),
        **({"attention_loss": attended(document, policy)} if plan.diverges and policy.budget else {}),
        **({"parts": parts_of(plan, policy)} if plan.part else {}),
        **({"answers": [list(answer) for answer in plan.answers]} if plan.answers else {}),
    }  # fmt: skip


def parts_of(plan: Plan, policy: P) -> list[dict[str, Any]]:
    """The parts of a text: each takes a little more memory than the one before."""
    ends = [*range(plan.part, plan.tokens - 1, plan.part), plan.tokens - 1]
    return [
        {"tokens": end, "seconds": (end - plan.part * number) / 100, "peak_bytes": 10**6 * (policy.budget + number)}
        for number, end in enumerate(ends)
    ]


def fields_in(policy: P) -> dict[str, Any]:
    """All fields of a policy, as records hold them."""
    layers = [int(layer) for layer in policy.skip_layers.split(",") if layer]
    variant = {"position": policy.position, "skip_layers": layers} if policy.position else {}
    return policy.fields | variant


def write_failure(folder: Path, key: str, fields: dict[str, Any], error: str = "golden failure") -> None:
    failure = {"schema": 1, "cell": key, "fields": fields, "error": error, "attempts": 2}
    write_json(folder / f"{key}.failed.json", failure)


def write_latency(plan: Plan, folder: Path) -> list[str]:
    """Write the plan's latency cells and return their keys."""
    measure = plan.latency
    place = () if (plan.device, plan.dtype) == ("cpu", "float32") else (plan.device, plan.dtype)
    keys = []
    for model, context, batch in product(plan.models, measure.contexts, measure.batches):
        keys.append(key := key_of("latency", model[0], context, batch, *place))
        blemish = measure.blemishes.get((model[0], context, batch))
        fields = {
            "kind": "latency", "model": model[0], "model_note": model[1], "trained_context": model[2],
            "model_identity": f"golden {model[0]}", "code": "golden",
            "device": plan.device, "dtype": plan.dtype, "context": context, "batch": batch,
            "prefills": measure.prefills, "rounds": measure.rounds, "steps": measure.steps,
            "threads": measure.threads, "vocab_size": plan.vocab_size,
        }  # fmt: skip
        if blemish == "failed":
            write_failure(folder, key, fields)
            continue
        fields["contenders"] = contenders_of(plan.policies, context, batch)
        for one in fields["contenders"] if measure.launched is not None else ():
            one["launched"] = measure.launched.get(one["label"], "CUDA graph")
        others = {"busy": 0.7, "hardly busy": 0.2}.get(blemish, 0.02)
        fields["noise"] = {
            "load_before": 0.2, "load_after": 1.9, "steal": 0.001, "others": others, "governor": None,
        }  # fmt: skip
        commit(folder, key, fields, samples_of(key, fields, measure, blemish), plan.environment)
    return keys


def contenders_of(policies: tuple[P, ...], context: int, batch: int) -> list[dict[str, Any]]:
    """Every policy, full again, DynamicCache, and the twins that do not evict."""
    sizes = {kept(p, context): p for p in reversed(policies) if p.budget and kept(p, context) < context}
    twins = [p for p in policies if p in sizes.values()]
    per_token = 2 * 30 * 3 * 64 * 4 * batch

    def one(label: str, role: str, policy: P, of: str | None = None) -> dict[str, Any]:
        size = round(per_token * kept(policy, context))
        measured = role in ("policy", "dynamic")
        return {
            "label": label, "role": role, "of": of, "policy": policy.label, "policy_name": policy.name,
            "strategy": policy.strategy, "position_mode": policy.position, "budget": policy.budget,
            "start_size": policy.start_size, "skip_layers": policy.skip_layers, "kv_bytes": size,
            "policy_fields": fields_in(policy),
            "kv_bytes_allocated": size + per_token * 64, "peak_bytes": size * 3 if measured else None,
        }  # fmt: skip

    return [
        *(one(policy.label, "policy", policy) for policy in policies),
        one("full (again)", "again", FULL),
        one("DynamicCache", "dynamic", FULL),
        *(one(f"{p.label} without eviction", "without eviction", p, p.label) for p in twins),
    ]


def samples_of(key: str, fields: dict[str, Any], measure: Latency, blemish: str | None) -> pa.Table:
    """Raw samples with known medians: a step costs 2 ms plus 4 µs for each cached key, a prefill likewise per token."""
    random = np.random.default_rng(int(key, 16) % 2**32)
    rows: list[tuple[Any, ...]] = []
    for phase, rounds, steps in (("ttft", measure.prefills, 1), ("step", measure.rounds, measure.steps)):
        running = [one for one in fields["contenders"] if phase == "step" or one["role"] != "without eviction"]
        for number in range(rounds):
            common = random.lognormal(0, 0.03)  # what drifts on a machine, the same for all within a round
            for turn, place in enumerate(random.permutation(len(running))):
                one = running[place]
                kept = min(one["budget"] or fields["context"], fields["context"])
                seconds = 2e-3 + 4e-6 * kept * fields["batch"]
                seconds *= fields["context"] / 20 if phase == "ttft" else 1
                seconds *= 1.6 if one["role"] == "dynamic" else 1
                seconds *= measure.evicting if one["role"] == "policy" and one["budget"] else 1
                seconds *= 1.08 if one["role"] == "again" and blemish == "apart" else 1
                for step in range(steps):
                    drawn = seconds * common * random.lognormal(0, measure.noise)
                    rows.append((one["label"], phase, number, turn, step, drawn))
    return table_of(key, rows)


def table_of(key: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    """A latency cell's rows: contender, phase, round, turn, step, seconds."""
    names = ("policy", "phase", "round", "turn", "step", "seconds")
    kinds = (pa.string(), pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.float64())
    arrays = {name: pa.array(column, kind) for name, kind, column in zip(names, kinds, zip(*rows))}
    return pa.table({"cell": pa.array([key] * len(rows)), **arrays})


def write_cell(
    folder: Path,
    key: str,
    fields: dict[str, Any],
    token: Any,
    nll: Any,
    correct: Any,
    environment: Any,
    more: Any = None,
):
    """One Parquet file and its commit record."""
    commit(folder, key, fields, cell_table(key, fields["document"], token, nll, correct, more or {}), environment)


def cell_table(key: str, document: str, token: Any, nll: Any, correct: Any, more: Any) -> pa.Table:
    count = len(token)
    columns = {"cell": [key] * count, "document": [document] * count}
    columns |= {"position": np.arange(1, count + 1, dtype=np.int32), "token": token}
    return pa.table(columns | {"nll_nats": nll, "correct": correct} | more)


def parquet(table: pa.Table) -> bytes:
    held = pa.BufferOutputStream()
    pq.write_table(table, held, compression="zstd")
    return held.getvalue().to_pybytes()


def commit(folder: Path, key: str, fields: dict[str, Any], table: pa.Table, environment: dict) -> None:
    """Write a cell's rows and its commit record."""
    put(folder, key, fields, parquet(table), table.num_rows, environment)


def put(folder: Path, key: str, fields: dict[str, Any], rows: bytes, count: int, environment: dict) -> None:
    """Write a cell's Parquet file and its commit record."""
    path = folder / f"{key}.parquet"
    path.write_bytes(rows)
    record = {
        "schema": 1, "cell": key, "file": path.name, "rows": count, "sha256": hashlib.sha256(rows).hexdigest(),
        "fields": fields, "environment": environment, "seconds": 1.5, "written_at": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    write_json(folder / f"{key}.json", record)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file of a records folder, with a checksum over its name and content as its last field."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    content["checksum"] = hashlib.sha256(f"{path.name}\n{text}".encode()).hexdigest()
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def run_report(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The report's command line, as a user types it."""
    command = [sys.executable, str(ROOT / "analysis" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300)


def quick_report(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in this process, but for the charts' SVG and PNG, which take three quarters of its time."""
    out, err = io.StringIO(), io.StringIO()
    command = [str(argument) for argument in arguments]
    with patch.object(drawing, "begin", lambda *_: (0, [])), redirect_stdout(out), redirect_stderr(err):
        try:
            code = report.main(command)
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def report_of(plan: Plan, folder: Path, *flags: object) -> Path:
    """The report of a plan's records, both in `folder`, built in this process."""
    done = quick_report("--records", write(plan, folder / "records"), "--out", folder / "report", *flags)
    assert done.returncode == 0, done.stderr
    return folder / "report"


def database_of(plan: Plan, folder: Path, within: float = 5.0) -> Any:
    """The report's database over a plan's records."""
    return open_database(read_records(write(plan, folder)), within)


SCORERS = {"sink_random": "random", "sink_l2": "l2", "h2o": "h2o", "keydiff": "keydiff"}
EXCESS = {
    "sink_random": (2.0, 0.9, 0.2),
    "sink_l2": (2.6, 1.0, 0.21),
    "h2o": (1.4, 0.8, 0.1),
    "keydiff": (1.7, 0.8, 0.2),
}


def protection(excess: dict[str, tuple[float, ...]] = EXCESS, documents: int = 12) -> Plan:
    """Scorers by what is protected of 64 tokens: nothing, half, four sinks and half of it, four and a quarter."""

    def by(name: str, sinks: int, recents: int, lost: float) -> P:
        fields = {"budget": 64, "recent_size": recents, "start_size": sinks}
        label = f"{name}(64,{recents}" + (f",start_size={sinks})" if sinks else ")")
        return P(label, name, lost, 64, sinks, fields=fields, scorer=SCORERS[name])

    places = ((0, 0), (0, 32), (4, 32))
    product = [by(name, *place, lost) for name, all_ in excess.items() for place, lost in zip(places, all_)]
    product += [by(name, 4, 16, 0.4) for name in excess]
    ends = [replace(streaming(sinks, 64 - sinks, 0.6 - 0.1 * sinks), scorer="none") for sinks in (0, 4)]
    policies = (FULL, *ends, *product, recent(64, 0.6))
    return replace(PLAIN, policies=policies, documents=PLAIN.documents[:documents], tokens=200, lengths=(200,))


# Every twenty tokens an answer, its fact 64, 128 or 256 tokens before.
RECALL = replace(
    PLAIN,
    policies=(
        FULL,
        *(replace(streaming(4, budget - 4, 0.1), recalls=0.0) for budget in (96, 192)),
        replace(l2(96, "keep_low", 0.3), recalls=0.4),
    ),
    text="recall:",
    lengths=(600,),
    answers=tuple((270 + 20 * place, 4, (64, 128, 256)[place % 3]) for place in range(15)),
)
# One long text in three parts and no full cache; positions in the text cost more and more beyond the trained context.
STREAM = replace(
    PLAIN,
    policies=(streaming(4, 60, 0.1), streaming(4, 60, 1.0, "absolute")),
    documents=("whole",),
    tokens=2500,
    lengths=(512, 2500),
    part=1024,
)
PLANS = {"golden": GOLDEN, "quick": QUICK, "shapes": SHAPES, "protection": protection(), "recall": RECALL}
PLANS |= {"stream": STREAM}


def built(name: str, tmp_path_factory: Any) -> tuple[Path, Path]:
    """(records, report) of the plan of that name, built once per test run, whoever of its processes comes first.

    Only that of `shapes` has its charts drawn as files, and is built by the command line.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"built-{name}"
    folder.mkdir(exist_ok=True)
    records, report = folder / "records", folder / "report"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make = run_report if name == "shapes" else quick_report
            done = make("--records", write(PLANS[name], records), "--out", report)
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1] == f"open {(report / 'index.html').as_uri()}"
            (folder / "done").touch()
    return records, report
