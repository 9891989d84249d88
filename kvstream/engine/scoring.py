"""How well tokens were predicted: from hidden states, by way of logits that never exist all at once.

Knows neither caches nor policies.

Shape legend: X any shape, T tokens, E hidden size, V vocabulary, or a block of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvstream.engine.backends import backend_for
from kvstream.engine.vocabulary_blocks import score_blocks, widened
from kvstream.engine.wrappers import is_plain_linear, vocabulary_of

PIECE_BYTES = 256 << 20  # of logits that a head makes at once which must be called itself


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
        hidden_TE = hidden_XE.flatten(0, -2)
        scored = Scored(*backend_for(hidden_TE.device, hidden_TE.dtype).score(head, hidden_TE, targets_T))
    else:
        rows = max(1, PIECE_BYTES // (vocabulary_of(model) * 4))
        pieces = zip(hidden_XE.flatten(0, -2).split(rows), targets_T.split(rows))
        parts = [score_logits(head(hidden), targets.to(hidden.device)) for hidden, targets in pieces]
        scored = Scored(torch.cat([part.nll_nats for part in parts]), torch.cat([part.correct for part in parts]))
    return Scored(scored.nll_nats.view(targets_X.shape), scored.correct.view(targets_X.shape))


@torch.inference_mode()
def score_logits(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> Scored:
    """Score target tokens given the logits before them; in float32, or float64 as they are."""
    return Scored(*score_blocks([(0, widened(logits_TV.t()))], targets_T))
