"""The sliding window with re-computation: slow, but nothing of the text before the window is in it.

Not a cache policy. For every token the last `window` tokens are run anew, at positions 0 … window − 1, and of that run
only the last prediction counts: window times the work of a token under a cache. So it is done for a sample of tokens.
StreamingLLM's paper has it as the baseline that is good and too slow (https://arxiv.org/abs/2309.17453).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.scoring import Scored, score
from kvstream.engine.token_ids import one_text, refuse_ids
from kvstream.engine.wrappers import unwrapped, vocabulary_of
from kvstream.policies import Full


@dataclass(frozen=True)
class Recomputed:
    """The sampled tokens of a text: position, their index, int64; nll_nats, −ln p in nats; correct: all (N,)."""

    position: torch.Tensor
    nll_nats: torch.Tensor
    correct: torch.Tensor


def recompute(model: PreTrainedModel, input_ids: torch.Tensor, window: int, *, every: int = 1) -> Recomputed:
    """Compute −ln p of every `every`-th token of a text, (T,) or (1, T), given the `window` tokens before it alone.

    Tokens with fewer before them are given all of these. Raises ValueError for fewer than two tokens, for ids that are
    none of the model's, for a window or `every` below 1, or a model that `KVStreamCache` cannot serve.
    """
    for name, value in (("window", window), ("every", every)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r} is not valid; give a whole number of at least 1")
    ids_1T, model = one_text(input_ids), unwrapped(model)
    refuse_ids(ids_1T, vocabulary_of(model))
    cache = KVStreamCache(model, Full())
    positions_N = torch.arange(0, ids_1T.shape[1], every, device=ids_1T.device)[1:]
    early_N = positions_N[positions_N <= window]
    parts = []
    if len(early_N):  # the first window tells all of them
        parts.append(_scored(model, cache, ids_1T[:, : int(early_N[-1])], early_N - 1, ids_1T[0, early_N]))
    rows = max(1, chunk_size_for(model, 1) // window)
    late_N = positions_N[len(early_N) :]
    for late_B in late_N.split(rows) if len(late_N) else ():
        place_BW = late_B[:, None] - window + torch.arange(window, device=ids_1T.device)
        last_1 = torch.tensor([window - 1], device=ids_1T.device)
        parts.append(_scored(model, cache, ids_1T[0, place_BW], last_1, ids_1T[0, late_B]))
    nll = torch.cat([part.nll_nats for part in parts]) if parts else torch.empty(0)
    correct = torch.cat([part.correct for part in parts]) if parts else torch.empty(0, dtype=torch.bool)
    return Recomputed(positions_N, nll, correct)


def _scored(
    model: PreTrainedModel, cache: KVStreamCache, ids_BW: torch.Tensor, place_N: torch.Tensor, targets_N: torch.Tensor
) -> Scored:
    """Run texts from nothing, and score what follows the tokens at these places of each."""
    cache.reset()
    hidden_BWE = cache.hidden_states(model, ids_BW)
    return score(model, hidden_BWE[:, place_N].flatten(0, 1), targets_N)
