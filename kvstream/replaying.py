"""Exact evaluation of a text under a policy, many tokens at a time.

Gives what decoding token by token would give (`kvstream.decoding`), by way of matrix products: see `kvstream.bounded`.
Memory is O(budget + chunk_size) for bounded policies, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvstream.cache import KVStreamCache
from kvstream.policies import Policy

CHUNK_SIZE = 512
HEAD_SLICE = 256  # tokens whose logits exist at once: T × vocabulary logits would be gigabytes


@dataclass(frozen=True)
class Scored:
    """How well some tokens were predicted: nll_nats (T,), in nats; correct (T,), whether the argmax was the token."""

    nll_nats: torch.Tensor
    correct: torch.Tensor


def replay(
    model: PreTrainedModel, input_ids: torch.Tensor, policy: Policy, *, chunk_size: int = CHUNK_SIZE
) -> torch.Tensor:
    """Compute −ln p of each token of `input_ids`, (T,) or (1, T), but the first, under `policy`: nats, shape (T−1,).

    Raises ValueError for fewer than two tokens, a chunk_size below 1, or a model that `KVStreamCache` cannot serve.
    """
    return torch.cat([part.nll_nats for part in replay_chunks(model, input_ids, policy, chunk_size=chunk_size)])


def replay_chunks(
    model: PreTrainedModel, input_ids: torch.Tensor, policy: Policy, *, chunk_size: int = CHUNK_SIZE
) -> Iterator[Scored]:
    """Yield the scored tokens chunk by chunk, in order; see `replay`."""
    if type(chunk_size) is not int or chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r} is not valid; give a whole number of at least 1")
    ids_1T = one_text(input_ids)
    cache = KVStreamCache(model, policy, capacity=ids_1T.shape[1])
    for start in range(0, ids_1T.shape[1] - 1, chunk_size):
        stop = min(start + chunk_size, ids_1T.shape[1] - 1)
        hidden = cache.hidden_states(model, ids_1T[:, start:stop])
        for low in range(start, stop, HEAD_SLICE):
            high = min(low + HEAD_SLICE, stop)
            yield score(model, hidden[0, low - start : high - start], ids_1T[0, low + 1 : high + 1])


@torch.inference_mode()
def score(model: PreTrainedModel, hidden_TE: torch.Tensor, targets_T: torch.Tensor) -> Scored:
    """Score target tokens given the hidden states before them; in float32, or float64 if the model is."""
    logits_TV = model.get_output_embeddings()(hidden_TE)
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    chosen_T = logits_TV.gather(1, targets_T[:, None])[:, 0]
    return Scored(nll_nats=logits_TV.logsumexp(-1) - chosen_T, correct=logits_TV.argmax(-1) == targets_T)


def one_text(input_ids: torch.Tensor) -> torch.Tensor:
    """Check one text of two tokens or more and return it as (1, T)."""
    if input_ids.ndim == 1:
        input_ids = input_ids[None]
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; give one text, of shape (T,) or (1, T)")
    if input_ids.shape[1] < 2:
        raise ValueError(
            f"input_ids holds {input_ids.shape[1]} tokens; at least 2 are needed, the first predicts the next"
        )
    return input_ids
