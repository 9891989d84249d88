"""Does a cell give the same losses again? `kvstream rerun DIR CELL` computes one quality cell anew and compares.

Nothing is written. It computes where it is started, without Ray, with as many threads as the record names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from kvstream.grid.cells import QualityCell, RecomputeCell
from kvstream.inputs.documents import load_documents
from kvstream.inputs.model_loading import load_model, load_tokenizer
from kvstream.inputs.models import resolve
from kvstream.policies import parse_policy
from kvstream.records.store import Records
from kvstream.records.verify import KEY, checked_rows
from kvstream.sweep.jobs import Job

AS_NOISE = 4.0  # times what rounding alone changes: other machines and numbers of threads round in other ways


@dataclass(frozen=True)
class Rerun:
    """A cell computed again: how far its NLL is from the records' at most and on average, in nats, what the model's own
    rounding makes of its text's first tokens on average, and how many hits differ."""

    cell: str
    same_code: bool
    rows: int
    worst_nats: float
    mean_nats: float
    rounding_nats: float
    other_hits: int

    @property
    def agrees(self) -> bool:
        """Whether what differs is rounding."""
        return not self.worst_nats or self.mean_nats <= AS_NOISE * self.rounding_nats  # NaN never agrees


def rerun(records: Records, key: str) -> Rerun:
    """Compute a finished quality cell again; ValueError where that is impossible."""
    if not KEY.fullmatch(key) or f"{key}.json" not in records.storage.names():
        where = records.storage.where
        raise ValueError(f"cell: {key!r} is not finished in {where!r}; give 16 hex digits, as in its file names")
    _, before = checked_rows(records, key)
    fields = records.read_json(f"{key}.json")["fields"]
    if fields["kind"] != "quality":
        raise ValueError(f"cell: {key!r} holds times, which never come again; give a quality cell")
    with _threads(fields.get("threads")):
        return _compared(key, fields, before)


def _compared(key: str, fields: dict[str, Any], before: pa.Table) -> Rerun:
    """Compute the cell that a commit record describes, and hold it against its rows."""
    import torch

    from kvstream.engine import model_check

    cell = cell_of(fields)
    model, _ = load_model(fields["model"], dtype=fields["dtype"], device=fields["device"])
    ids_T = torch.as_tensor(cell.document.token_ids).long()
    model_check.check(model, ids_T)
    again = _rows_of(cell, model)
    if not before["token"].equals(again["token"]):
        raise ValueError(f"cell: {key!r} was computed on other tokens than {fields['text']!r} gives now")
    then, now = before["nll_nats"].to_numpy().astype(np.float64), again["nll_nats"].to_numpy()
    apart = np.where((then == now) | (np.isnan(then) & np.isnan(now)), 0.0, np.abs(then - now))
    hits = int((before["correct"].to_numpy() != again["correct"].to_numpy()).sum())
    # A model's own attention may give NaN to tokens before the one that makes it: those before are asked about alone.
    lost = before["position"].to_numpy()[~np.isfinite(then)]
    sound_T = ids_T[: int(lost[0]) - 1] if len(lost) else ids_T
    differs = float(apart.max()), float(apart.mean()), model_check.rounding_nats(model, sound_T)
    return Rerun(str(cell), cell.key == key, len(apart), *differs, hits)


@contextmanager
def _threads(recorded: int | None) -> Iterator[None]:
    """As many threads as a cell was computed with, all cores if these are fewer; then as many as before."""
    import torch  # for which neither `verify` nor a misspelt cell waits

    own = torch.get_num_threads()
    if recorded:
        torch.set_num_threads(min(recorded, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(own)


def cell_of(fields: dict[str, Any]) -> QualityCell | RecomputeCell:
    """The quality cell that a commit record describes, with its text read anew."""
    info = resolve(fields["model"])
    how = {"bos": "on" if fields.get("bos") else "off", "join_rows": fields.get("join_rows", False)}
    [document] = load_documents(
        fields["text"], name=fields["document"], tokens=fields["tokens"], tokenizer=load_tokenizer(info), **how
    )
    about = info, fields["device"], fields["dtype"], fields["text"], document, tuple(fields["lengths"])
    if "every" in fields:
        return RecomputeCell(*about, fields["policy_fields"]["window"], fields["every"])
    return QualityCell(*about, parse_policy(fields["policy"]), fields.get("metrics", "nll"), "attention_loss" in fields)


def _rows_of(cell: QualityCell | RecomputeCell, model: Any) -> pa.Table:
    """Rows of all parts of a cell, computed one after the other."""
    from kvstream.measure.quality import evaluate, evaluate_windows

    if isinstance(cell, RecomputeCell):
        names = {"cell": cell.key, "document": cell.document.name, "device": cell.device}
        return evaluate_windows(model, cell.document.token_ids, cell.window, cell.every, **names).rows
    job, tables = Job(cells=(cell,)), []
    while True:
        [result] = evaluate(model, begun=job.begun, **job.stretch | {"device": cell.device})
        tables.append(result.rows)
        if result.state is None:
            return pa.concat_tables(tables)
        job = job.followed(result.state)
