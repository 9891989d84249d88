"""Texts replayed into scores, one per predicted token: by a policy, or whole under a full cache, for all policies.

Shape legend: B texts, N tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.divergence import Kept
from kvstream.engine.replay import Comparison, replay_texts
from kvstream.policies import Full

State = dict[str, torch.Tensor]
Columns = dict[str, np.ndarray]  # of scores, (B, N) each, by name


@dataclass(frozen=True)
class Begun:
    """The first `tokens` tokens of some texts, replayed: the cache's state after them and, where they are still to
    become rows, the scores of the tokens they predict, each (B, tokens), and the seconds these took per text."""

    tokens: int
    state: State
    scores: Columns | None = None
    seconds: float = 0.0

    def first(self, tokens: int) -> Begun:
        """Fewer of them; of a full cache, whose state after some tokens holds its states after fewer."""
        assert self.scores is not None
        state = {name: held if held.ndim < 3 else held[:, :, :tokens] for name, held in self.state.items()}
        state |= {"seen": torch.tensor(tokens)}
        seconds = self.seconds * tokens / self.tokens
        return Begun(tokens, state, {name: held[:, :tokens] for name, held in self.scores.items()}, seconds)

    def of(self, text: int) -> Begun:
        """Of one of the texts."""
        assert self.scores is not None
        scores = {name: held[text : text + 1] for name, held in self.scores.items()}
        return Begun(self.tokens, state_of(self.state, text), scores, self.seconds)


@dataclass(frozen=True)
class FullRun:
    """Whole texts under a full cache: all scores, what is kept to compare others with them, the seconds per text.

    begun: the first tokens, where policies are to go on from these.
    """

    scores: Columns
    kept: Kept
    seconds: float
    begun: Begun | None = None

    def of(self, text: int) -> FullRun:
        """Of one of the texts."""
        scores = {name: held[text : text + 1] for name, held in self.scores.items()}
        begun = self.begun and self.begun.of(text)
        return FullRun(scores, self.kept.of(slice(text, text + 1), slice(None)), self.seconds, begun)


def begin(model: PreTrainedModel, token_ids_BN: np.ndarray, device: str) -> Begun:
    """Replay the first tokens, all but the last of these, with a full cache, for any policy to go on from."""
    started = time.perf_counter()
    tokens = token_ids_BN.shape[1] - 1
    cache = KVStreamCache(model, Full(), capacity=tokens)
    scores = replayed(model, cache, None, token_ids_BN, device)
    seconds = (time.perf_counter() - started) / len(token_ids_BN)
    return Begun(tokens, cache.state(), scores, seconds)


def run_full(model: PreTrainedModel, token_ids_BN: np.ndarray, device: str, common: int = 0) -> FullRun:
    """Replay whole texts with a full cache. common: how many first tokens other policies may go on from."""
    count = token_ids_BN.shape[1] - 1
    cache = KVStreamCache(model, Full(), capacity=count)
    parts: list[Columns] = []
    kept: list[Kept] = []
    begun, seconds = None, 0.0
    for first, last in (0, common), (common, count):
        if first == last:
            continue
        started = time.perf_counter()
        state = begun.state if begun else None
        comparison = Comparison()
        scores = replayed(model, cache, state, token_ids_BN[:, first : last + 1], device, comparison)
        parts.append(scores)
        kept.append(comparison.kept)
        seconds += (time.perf_counter() - started) / len(token_ids_BN)
        if last == common:
            begun = Begun(common, cache.state(), scores, seconds)
    return FullRun(concatenate(parts), Kept.concatenate(kept), seconds, begun)


def state_of(state: State, text: int) -> State:
    """A cache's state of one of its texts."""
    return {name: held[text : text + 1] if held.ndim > 1 else held for name, held in state.items()}


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Of all tokens, in order."""
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def replayed(
    model: PreTrainedModel,
    cache: KVStreamCache,
    before: State | None,
    token_ids_BN: np.ndarray,
    device: str,
    comparison: Comparison | None = None,
) -> Columns:
    """Scores, (B, N − 1), of all these tokens but the first; before: the state they follow, if any."""
    ids_BN = torch.as_tensor(token_ids_BN, dtype=torch.int64, device=device)
    scored = replay_texts(model, ids_BN, cache, before, comparison)
    return {name: held.cpu().numpy() for name, held in scored.columns.items()}
