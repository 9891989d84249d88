"""A quality cell: one text under one policy, replayed into one row per predicted token. Knows no Ray, no files.

A text is replayed in parts. Each goes on from the state the part before it left, wherever that was computed, and gives
the rows that one run over the whole text would give.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.recompute import recompute
from kvstream.engine.replay import Scored, replay_windows, windows
from kvstream.measure.rows import TOKEN_ROWS
from kvstream.policies import Full, Policy

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Begun:
    """The first `tokens` tokens of some texts, replayed: the cache's state after them and, where they are still to
    become rows, the scores of the tokens they predict, each (B, tokens), and the seconds these took per text."""

    tokens: int
    state: State
    nll_nats: np.ndarray | None = None
    correct: np.ndarray | None = None
    seconds: float = 0.0

    def first(self, tokens: int) -> Begun:
        """Fewer of them; of a full cache, whose state after some tokens holds its states after fewer."""
        assert self.nll_nats is not None
        assert self.correct is not None
        state = {name: held if held.ndim < 3 else held[:, :, :tokens] for name, held in self.state.items()}
        state |= {"seen": torch.tensor(tokens)}
        seconds = self.seconds * tokens / self.tokens
        return Begun(tokens, state, self.nll_nats[:, :tokens], self.correct[:, :tokens], seconds)


@dataclass(frozen=True)
class Evaluated:
    """The rows of a cell's text or of a part of it, one per predicted token, and the seconds it took to compute them.

    state: of the cache after this part, if another follows.
    """

    rows: pa.Table
    seconds: float
    state: State | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean NLL: for progress lines; reports compute their own from the rows."""
        return float(np.exp(self.rows["nll_nats"].to_numpy().astype(np.float64).mean()))


def begin(model: PreTrainedModel, token_ids_BN: np.ndarray, device: str) -> Begun:
    """Replay the first tokens, all but the last of these, with a full cache, for any policy to go on from."""
    started = time.perf_counter()
    tokens = token_ids_BN.shape[1] - 1
    cache = KVStreamCache(model, Full(), capacity=tokens)
    nll, correct = _replayed(model, cache, None, token_ids_BN, device)
    seconds = (time.perf_counter() - started) / len(token_ids_BN)
    return Begun(tokens, cache.state(), nll, correct, seconds)


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
) -> list[Evaluated]:
    """Replay a stretch of texts side by side under `policy`; one result per text.

    token_ids_BN: the tokens from `start` on; the last is only predicted. begun: what has been replayed of the texts:
    all that comes before `start`, or with its scores some tokens more. goes_on: whether a state is to be returned.
    """
    clock = time.perf_counter()
    replayed = begun.tokens - start if begun else 0
    cache = KVStreamCache(model, policy, capacity=start + token_ids_BN.shape[1])
    nll, correct = _replayed(model, cache, begun.state if begun else None, token_ids_BN[:, replayed:], device)
    if begun and begun.nll_nats is not None and begun.correct is not None:
        nll = np.concatenate((begun.nll_nats, nll), axis=1)
        correct = np.concatenate((begun.correct, correct), axis=1)
    state = cache.state() if goes_on else None
    seconds = (time.perf_counter() - clock) / len(cells) + (begun.seconds if begun else 0.0)
    count = token_ids_BN.shape[1] - 1
    results = []
    for row, (cell, document) in enumerate(zip(cells, documents, strict=True)):
        columns = {
            "cell": [cell] * count,
            "document": [document] * count,
            "position": np.arange(start + 1, start + 1 + count, dtype=np.int32),
            "token": np.asarray(token_ids_BN[row, 1:], dtype=np.int32),
            "nll_nats": nll[row],
            "correct": correct[row],
        }
        own = state and {name: held[row : row + 1] if held.ndim > 1 else held for name, held in state.items()}
        results.append(Evaluated(pa.table(columns, schema=TOKEN_ROWS), seconds, own))
    return results


def evaluate_windows(
    model: PreTrainedModel, token_ids_T: np.ndarray, window: int, every: int, *, cell: str, document: str, device: str
) -> Evaluated:
    """Tell every `every`-th token of a text by the `window` tokens before it alone: see `engine.recompute`."""
    clock = time.perf_counter()
    found = recompute(model, torch.as_tensor(token_ids_T, dtype=torch.int64, device=device), window, every=every)
    position_N = found.position.cpu().numpy()
    columns = {
        "cell": [cell] * len(position_N),
        "document": [document] * len(position_N),
        "position": position_N.astype(np.int32),
        "token": np.asarray(token_ids_T[position_N], dtype=np.int32),
        "nll_nats": found.nll_nats.float().cpu().numpy(),
        "correct": found.correct.cpu().numpy(),
    }
    return Evaluated(pa.table(columns, schema=TOKEN_ROWS), time.perf_counter() - clock)


def _replayed(
    model: PreTrainedModel, cache: KVStreamCache, before: State | None, token_ids_BN: np.ndarray, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """NLL and correctness, (B, N − 1), of all these tokens but the first; before: the state they follow, if any."""
    ids_BN = torch.as_tensor(token_ids_BN, dtype=torch.int64, device=device)
    for ways, size in ((replay_windows, chunk_size_for(model, len(ids_BN))), (_carefully, CHUNK_SIZE)):
        cache.restore(before) if before else cache.reset()
        scored = list(ways(model, windows([ids_BN], size), cache))
        if not any(part.nll_nats.isnan().any() for part in scored):
            break
    nll = torch.cat([part.nll_nats for part in scored], dim=1).float().cpu().numpy()
    return nll, torch.cat([part.correct for part in scored], dim=1).cpu().numpy()


def _carefully(model: PreTrainedModel, windows_BN: Iterable[torch.Tensor], cache: KVStreamCache) -> Iterator[Scored]:
    """Replay where NaN occurs: a window with some goes token by token, as in products NaN reaches earlier tokens, too.

    Not so once all that follows must be NaN, because a key that is will never be evicted.
    """
    lost = False
    for window_BN in windows_BN:
        before = None if lost else cache.state()
        [part] = replay_windows(model, [window_BN], cache)
        if before is not None and part.nll_nats.isnan().any():
            cache.restore(before)
            steps = list(replay_windows(model, windows([window_BN], 1), cache))
            part = Scored(*(torch.cat(each, dim=1) for each in zip(*((s.nll_nats, s.correct) for s in steps))))
            lost = isinstance(cache.policy, Full) and any(
                bool(held.isnan().flatten(1).any(1).all())
                for name, held in cache.state().items()
                if name.endswith(".keys")
            )
        yield part
