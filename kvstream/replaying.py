"""Exact evaluation of a text under a policy, many tokens at a time.

Gives what decoding token by token would give (`kvstream.decoding`), by way of matrix products: see `kvstream.bounded`.
Memory is O(budget + chunk_size) for bounded policies, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from kvstream.cache import KVStreamCache
from kvstream.policies import Policy
from kvstream.thin import MOST_ROWS

CHUNK_SIZE = 512
LOGITS_BYTES = 30 << 20  # of logits that exist at once: near the cores, and malloc reuses blocks below 32 MiB


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
        yield score(model, hidden[0], ids_1T[0, start + 1 : stop + 1])


@torch.inference_mode()
def score(model: PreTrainedModel, hidden_TE: torch.Tensor, targets_T: torch.Tensor) -> Scored:
    """Score target tokens given the hidden states before them; in float32, or float64 if the model is."""
    head = model.get_output_embeddings()
    wide = torch.promote_types(hidden_TE.dtype, torch.float32)
    at_once = max(1, LOGITS_BYTES // (head.weight.shape[0] * wide.itemsize))
    slices = -(-len(targets_T) // at_once)
    nll, correct = [], []
    for hidden, targets in zip(hidden_TE.tensor_split(slices), targets_T.tensor_split(slices)):
        logits_VT = _logits(head, hidden).to(wide)
        chosen = logits_VT.gather(0, targets[None])[0]
        highest = logits_VT.amax(0)
        hit = chosen == highest
        if hit.any():  # several may be highest, of which the argmax is one; asked only here, as it is slow
            hit[hit.clone()] = logits_VT[:, hit].t().contiguous().argmax(-1) == targets[hit]
        nll.append(logits_VT.sub_(highest).exp_().sum(0).log() + (highest - chosen))
        correct.append(hit)
    return Scored(nll_nats=torch.cat(nll), correct=torch.cat(correct))


def _logits(head: nn.Module, hidden_TE: torch.Tensor) -> torch.Tensor:
    """Logits of shape (vocabulary, T)."""
    if type(head) is not nn.Linear or hidden_TE.device.type != "cpu" or len(hidden_TE) <= MOST_ROWS:
        return head(hidden_TE).t()
    # On CPUs the product is faster this way round.
    logits_VT = head.weight @ hidden_TE.t()
    return logits_VT if head.bias is None else logits_VT.add_(head.bias[:, None])


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
