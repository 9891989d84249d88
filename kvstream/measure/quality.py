"""A quality cell: one text under one policy, replayed into one row per predicted token. Knows no Ray, no files.

A text is replayed in parts. Each goes on from the state the part before it left, wherever that was computed, and gives
the rows that one run over the whole text would give.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from kvstream.engine.attention_loss import attention_loss
from kvstream.engine.cache import KVStreamCache
from kvstream.engine.recompute import recompute
from kvstream.engine.replay import Comparison
from kvstream.measure.rows import MOST_RANK, TOKEN_ROWS
from kvstream.measure.scores import Begun, Columns, FullRun, State, concatenate, replayed, state_of
from kvstream.policies import Full, Policy


@dataclass(frozen=True)
class Evaluated:
    """The rows of a cell's text or of a part of it, one per predicted token, and the seconds it took to compute them.

    state: of the cache after this part, if another follows. attention_loss: by layer and query head, if asked for.
    peak_bytes: the most memory this part took beyond what was held before it, of texts in several parts.
    """

    rows: pa.Table
    seconds: float
    state: State | None = None
    attention_loss: list[list[float]] | None = None
    peak_bytes: int | None = None


def evaluate(
    model: PreTrainedModel,
    token_ids_BN: np.ndarray,
    policy: Policy,
    *,
    cells: Sequence[str],
    documents: Sequence[str],
    device: str,
    start: int = 0,
    begun: Begun | None = None,
    goes_on: bool = False,
    full: FullRun | None = None,
) -> list[Evaluated]:
    """Replay a stretch of texts side by side under `policy`; one result per text.

    token_ids_BN: the tokens from `start` on; the last is only predicted. begun: what has been replayed of the texts:
    all that comes before `start`, or with its scores some tokens more. goes_on: whether a state is to be returned.
    full: whole texts under a full cache, for each token to be compared with.
    """
    clock = time.perf_counter()
    if full and policy == Full():
        return _results(full.scores, token_ids_BN, start, full.seconds, cells, documents)
    done = begun.tokens - start if begun else 0
    cache = KVStreamCache(model, policy, capacity=start + token_ids_BN.shape[1])
    comparison = Comparison(full.kept) if full else None
    before = begun.state if begun else None
    scores = replayed(model, cache, before, token_ids_BN[:, done:], device, comparison)
    if begun and begun.scores is not None:
        scores = concatenate([begun.scores, scores])
    state = cache.state() if goes_on else None
    seconds = (time.perf_counter() - clock) / len(cells) + (begun.seconds if begun else 0.0)
    return _results(scores, token_ids_BN, start, seconds, cells, documents, state)


def evaluate_attention(
    model: PreTrainedModel, token_ids_T: np.ndarray, policy: Policy, device: str
) -> list[list[float]] | None:
    """Measure full's attention on what `policy` evicts: see `engine.attention_loss`. None where it is no number."""
    lost_LQ = attention_loss(model, torch.as_tensor(token_ids_T, dtype=torch.int64, device=device), policy)
    return lost_LQ.tolist() if lost_LQ.isfinite().all() else None


def evaluate_windows(
    model: PreTrainedModel, token_ids_T: np.ndarray, window: int, every: int, *, cell: str, document: str, device: str
) -> Evaluated:
    """Tell every `every`-th token of a text by the `window` tokens before it alone: see `engine.recompute`."""
    clock = time.perf_counter()
    found = recompute(model, torch.as_tensor(token_ids_T, dtype=torch.int64, device=device), window, every=every)
    position_N = found.position.cpu().numpy()
    scores = {"nll_nats": found.nll_nats.cpu().numpy(), "correct": found.correct.cpu().numpy()}
    rows = as_rows(cell, document, position_N, token_ids_T[position_N], scores)
    return Evaluated(rows, time.perf_counter() - clock)


def _results(
    scores: Columns,
    token_ids_BN: np.ndarray,
    start: int,
    seconds: float,
    cells: Sequence[str],
    documents: Sequence[str],
    state: State | None = None,
) -> list[Evaluated]:
    position_N = np.arange(start + 1, start + token_ids_BN.shape[1])
    results = []
    for text, (cell, document) in enumerate(zip(cells, documents, strict=True)):
        own = {name: held[text] for name, held in scores.items()}
        rows = as_rows(cell, document, position_N, token_ids_BN[text, 1:], own)
        results.append(Evaluated(rows, seconds, state and state_of(state, text)))
    return results


def as_rows(
    cell: str, document: str, position_N: np.ndarray, token_N: np.ndarray, scores: dict[str, np.ndarray]
) -> pa.Table:
    """Scores of a text's tokens in the types of their columns; those that were not asked for are null."""
    count = len(position_N)
    columns: dict[str, Any] = {
        "cell": [cell] * count,
        "document": [document] * count,
        "position": position_N.astype(np.int32),
        "token": np.asarray(token_N, dtype=np.int32),
    }
    for name in ("nll_nats", "correct", "kl_nats", "same_top", "rank"):
        held = scores.get(name)
        if held is None:
            held = pa.nulls(count, TOKEN_ROWS.field(name).type)
        elif name == "rank":
            held = held.clip(max=MOST_RANK).astype(np.uint16)
        elif held.dtype == np.float64:
            held = held.astype(np.float32)
        columns[name] = held
    return pa.table(columns, schema=TOKEN_ROWS)
