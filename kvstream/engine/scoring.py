"""How well tokens were predicted: from hidden states, by way of logits that never exist all at once.

Knows neither caches nor policies.

Shape legend: X any shape, T tokens, E hidden size, V vocabulary, or a block of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from kvstream.engine.backends import backend_for
from kvstream.engine.wrappers import is_plain_linear, vocabulary_of

PIECE_BYTES = 256 << 20  # of logits that a head makes at once which must be called itself
LEAST_BLOCK = 256  # of the vocabulary
SAFE_EXPONENT = 50.0  # e^50 times any vocabulary is still a float32


@dataclass(frozen=True)
class Scored:
    """How well some tokens were predicted: nll_nats, in nats; correct, whether the argmax was the token. Both (T,), or
    (B, T) for several texts."""

    nll_nats: torch.Tensor
    correct: torch.Tensor


@torch.inference_mode()
def score(model: PreTrainedModel, hidden_XE: torch.Tensor, targets_X: torch.Tensor) -> Scored:
    """Score target tokens, of any shape X, given the hidden states before them; in float32, or float64 as the model.

    Logits come in blocks of the vocabulary, small enough to stay near the cores until their sum is taken. A head that
    is more than its weights (see `is_plain_linear`) is called itself, for fewer tokens at a time.
    """
    head, targets_T = model.get_output_embeddings(), targets_X.flatten()
    if is_plain_linear(head):
        scored = _scored(_logits(head, hidden_XE.flatten(0, -2)), targets_T)
    else:
        rows = max(1, PIECE_BYTES // (vocabulary_of(model) * 4))
        pieces = zip(hidden_XE.flatten(0, -2).split(rows), targets_T.split(rows))
        parts = [score_logits(head(hidden), targets.to(hidden.device)) for hidden, targets in pieces]
        scored = Scored(torch.cat([part.nll_nats for part in parts]), torch.cat([part.correct for part in parts]))
    return Scored(scored.nll_nats.view(targets_X.shape), scored.correct.view(targets_X.shape))


@torch.inference_mode()
def score_logits(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> Scored:
    """Score target tokens given the logits before them; in float32, or float64 as they are."""
    return _scored([(0, _widened(logits_TV.t()))], targets_T)


def _widened(logits_VT: torch.Tensor) -> torch.Tensor:
    """Copy logits, which may be somebody else's too, in float32, or float64 as they are."""
    return logits_VT.to(torch.promote_types(logits_VT.dtype, torch.float32), copy=True)


def _scored(blocks: Iterable[tuple[int, torch.Tensor]], targets_T: torch.Tensor) -> Scored:
    """Score targets given blocks of logits, (V, T), each with its first token; overwrites the blocks."""
    correct_T, shifted = torch.zeros_like(targets_T, dtype=torch.bool), False
    highest_T = chosen_T = total_T = shift_T = torch.empty(0)
    for start, logits_VT in blocks:
        inside_T = (targets_T >= start) & (targets_T < start + len(logits_VT))
        own_T = logits_VT.gather(0, (targets_T - start).clamp(0, len(logits_VT) - 1)[None])[0]
        here_T = logits_VT.amax(0)
        if not start:
            highest_T, chosen_T = torch.full_like(here_T, -torch.inf), own_T
            total_T, shift_T = torch.zeros_like(here_T), torch.zeros_like(here_T)
        # Of several highest logits the first is the argmax; asked only where it matters, as it is slow.
        hit_T = inside_T & (own_T == here_T) & (here_T > highest_T)
        if hit_T.any():
            hit_T[hit_T.clone()] = logits_VT[:, hit_T].t().contiguous().argmax(-1) == targets_T[hit_T] - start
        correct_T = (correct_T & (here_T <= highest_T)) | hit_T
        chosen_T = torch.where(inside_T, own_T, chosen_T)
        highest_T = torch.maximum(highest_T, here_T)
        # Exponents are shifted only once they leave the range in which float32 holds every sum of them.
        shifted = shifted or not bool(highest_T.abs().max() < SAFE_EXPONENT)
        if shifted:
            if start:
                total_T.mul_((shift_T - highest_T).exp_())
            shift_T = highest_T
            logits_VT.sub_(shift_T)
        total_T += logits_VT.exp_().sum(0)
    return Scored(total_T.log() + (shift_T - chosen_T), correct_T)


def _logits(head: nn.Linear, hidden_TE: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield blocks of logits, (V, T), each with its first token: in float32, or float64 as the model."""
    wide = torch.promote_types(hidden_TE.dtype, torch.float32)
    tokens, logits_bytes = len(hidden_TE), backend_for(hidden_TE.device).logits_bytes
    if tokens == 1:
        yield 0, _widened(head(hidden_TE).t())
        return
    rows = max(LEAST_BLOCK, logits_bytes // (tokens * wide.itemsize))
    hidden_ET = hidden_TE.t()
    for start in range(0, len(head.weight), rows):
        # On CPUs the product is faster this way round.
        logits_VT = (head.weight[start : start + rows] @ hidden_ET).to(wide)
        yield start, logits_VT if head.bias is None else logits_VT.add_(head.bias[start : start + rows, None])
