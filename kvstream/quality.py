"""A quality cell: one text under one policy, replayed into one row per predicted token. Knows no Ray, no files.

A text is replayed in parts. Each goes on from the state the part before it left, wherever that was computed, and gives
the rows that one run over the whole text would give.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from kvstream.cache import KVStreamCache
from kvstream.chunks import CHUNK_SIZE
from kvstream.policies import Full, Policy
from kvstream.replaying import replay_windows, windows

TOKEN_ROWS = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # index of the predicted token, 1 … T−1
        pa.field("token", pa.int32(), nullable=False),
        pa.field("nll_nats", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Begun:
    """The first `tokens` tokens of some texts, replayed: the cache's state after them and, where they are still to
    become rows, the scores of the tokens they predict, each of shape (B, tokens)."""

    tokens: int
    state: State
    nll_nats: np.ndarray | None = None
    correct: np.ndarray | None = None

    def first(self, tokens: int) -> Begun:
        """Fewer of them; of a full cache, whose state after some tokens holds its states after fewer."""
        assert self.nll_nats is not None
        assert self.correct is not None
        state = {name: held if held.ndim < 3 else held[:, :, :tokens] for name, held in self.state.items()}
        seen = {"seen": torch.tensor(tokens)}
        return Begun(tokens, state | seen, self.nll_nats[:, :tokens], self.correct[:, :tokens])


@dataclass(frozen=True)
class Evaluated:
    """The rows of a cell's text or of a part of it, one per predicted token, and the seconds they took.

    state: of the cache after this part; None after the last.
    """

    rows: pa.Table
    seconds: float
    state: State | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean NLL: for progress lines; reports compute their own from the rows."""
        return float(np.exp(self.rows["nll_nats"].to_numpy().astype(np.float64).mean()))


def begin(model: PreTrainedModel, token_ids_BT: np.ndarray, tokens: int, device: str) -> Begun:
    """Replay the first tokens with a full cache, for any policy to go on from."""
    cache = KVStreamCache(model, Full(), capacity=tokens)
    nll, correct = _replayed(model, cache, token_ids_BT[:, : tokens + 1], device)
    return Begun(tokens, cache.state(), nll, correct)


def evaluate(
    model: PreTrainedModel,
    token_ids_BT: np.ndarray,
    policy: Policy,
    *,
    cells: Sequence[str],
    documents: Sequence[str],
    device: str,
    begun: Begun | None = None,
    stop: int | None = None,
) -> list[Evaluated]:
    """Replay texts of equal length, (B, T), side by side under `policy`; one result per text.

    begun: where to go on. stop: the number of tokens after which to stop, by default T − 1: the last predicts nothing.
    """
    started = time.perf_counter()
    last = token_ids_BT.shape[1] - 1
    start, stop = begun.tokens if begun else 0, min(stop or last, last)
    cache = KVStreamCache(model, policy, capacity=last)
    if begun:
        cache.restore(begun.state)
    nll, correct = _replayed(model, cache, token_ids_BT[:, start : stop + 1], device)
    if begun and begun.nll_nats is not None and begun.correct is not None:
        start, nll = 0, np.concatenate((begun.nll_nats, nll), axis=1)
        correct = np.concatenate((begun.correct, correct), axis=1)
    state = cache.state() if stop < last else None
    seconds = (time.perf_counter() - started) / len(cells)
    results = []
    for row, (cell, document) in enumerate(zip(cells, documents, strict=True)):
        columns = {
            "cell": [cell] * (stop - start),
            "document": [document] * (stop - start),
            "position": np.arange(start + 1, stop + 1, dtype=np.int32),
            "token": np.asarray(token_ids_BT[row, start + 1 : stop + 1], dtype=np.int32),
            "nll_nats": nll[row],
            "correct": correct[row],
        }
        own = state and {name: held[row : row + 1] if held.ndim else held for name, held in state.items()}
        results.append(Evaluated(pa.table(columns, schema=TOKEN_ROWS), seconds, own))
    return results


def _replayed(
    model: PreTrainedModel, cache: KVStreamCache, token_ids_BN: np.ndarray, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """NLL and correctness, (B, N − 1), of tokens that `cache` has not seen but for those before them."""
    ids_BN = torch.as_tensor(token_ids_BN, dtype=torch.int64, device=device)
    scored = list(replay_windows(model, windows([ids_BN], CHUNK_SIZE), cache))
    nll = torch.cat([part.nll_nats for part in scored], dim=1).float().cpu().numpy()
    return nll, torch.cat([part.correct for part in scored], dim=1).cpu().numpy()
