"""How well tokens were predicted: from hidden states, by way of logits that never exist all at once.

Knows neither caches nor policies.

Shape legend: X any shape, B texts, T tokens, E hidden size, V vocabulary, or a block of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from transformers import PreTrainedModel

from kvstream.engine.backends import backend_for
from kvstream.engine.divergence import Kept, kept, kl_from_logits, kl_from_sums
from kvstream.engine.vocabulary_blocks import Best, Block, Predicted, no_logits, predict_from_blocks, widened
from kvstream.engine.wrappers import is_plain_linear, vocabulary_of

PIECE_BYTES = 256 << 20  # of logits that a head makes at once which must be called itself


@dataclass(frozen=True)
class Scored:
    """How well some tokens were predicted: nll_nats, in nats; correct, whether the argmax was the token. Both (T,), or
    (B, T) for several texts.

    Where the full cache's predictions were to be compared or kept, also: rank of the token, 1 if it is the argmax, else
    2 or more, one more than tokens have a higher logit, and 0 where the loss is NaN; kl_nats = KL(full ‖ policy) in
    nats; same_top, whether the argmax is full's.
    """

    nll_nats: torch.Tensor
    correct: torch.Tensor
    rank: torch.Tensor | None = None
    kl_nats: torch.Tensor | None = None
    same_top: torch.Tensor | None = None

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """Those that are there, by name."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: values for name, values in held.items() if values is not None}

    @classmethod
    def concatenate(cls, parts: Sequence[Scored]) -> Scored:
        """Of all tokens, in order."""
        return cls(**{name: torch.cat([part.columns[name] for part in parts], dim=-1) for name in parts[0].columns})


@torch.inference_mode()
def score(model: PreTrainedModel, hidden_XE: torch.Tensor, targets_X: torch.Tensor) -> Scored:
    """Score target tokens, of any shape X, given the hidden states before them; in float32, or float64 as the model.

    Logits come in blocks of the vocabulary, small enough to stay near the cores until their sum is taken. A head that
    is more than its weights (see `is_plain_linear`) is called itself, for fewer tokens at a time.
    """
    head, hidden_TE, targets_T = model.get_output_embeddings(), hidden_XE.flatten(0, -2), targets_X.flatten()
    if is_plain_linear(head):
        found = backend_for(hidden_TE.device, hidden_TE.dtype).predict(head, hidden_TE, targets_T)
    else:
        pieces = _pieces(model, hidden_TE, targets_T)
        found = Predicted.concatenate([_predict(head(hidden), targets) for hidden, targets in pieces])
    return _scored(found, targets_X)


@torch.inference_mode()
def compare(
    model: PreTrainedModel, hidden_BTE: torch.Tensor, targets_BT: torch.Tensor, full: Kept | None = None
) -> tuple[Scored, Kept]:
    """Score target tokens as `score` does, and say how far from full's predictions these are.

    full: what was kept of them; None: these are full's. Returns what is to be kept, too.
    """
    head, hidden_TE, targets_T = model.get_output_embeddings(), hidden_BTE.flatten(0, 1), targets_BT.flatten()
    shape = targets_BT.shape
    if is_plain_linear(head):
        backend = backend_for(hidden_TE.device, hidden_TE.dtype)
        found = backend.predict(head, hidden_TE, targets_T, more=True, keep=full is None)
        full = full or kept(found, hidden_TE, shape)
        kl_T = kl_from_sums(found.log_sum_T, hidden_TE, full)
    else:
        full_TE = full.vector_BTE.flatten(0, 1) if full else hidden_TE
        parts, divergences = [], []
        for hidden, theirs, targets in _pieces(model, hidden_TE, full_TE, targets_T):
            logits_TV = head(hidden)
            divergences.append(kl_from_logits(head(theirs), logits_TV))
            parts.append(_predict(logits_TV, targets, more=True))
        found, kl_T = Predicted.concatenate(parts), torch.cat(divergences)
        full = full or Kept(found.top_T.view(shape), hidden_BTE, None)
    same_T = (found.top_T == full.top_BT.flatten()) & ~kl_T.isnan()
    scored = _scored(found, targets_BT)
    # A target that is the argmax has rank 1, and no other has: equal logits, or their last bits, cannot part them.
    rank_BT = torch.where(scored.correct, 1, (found.above_T + 1).clamp(min=2).view(shape))
    rank_BT = rank_BT.masked_fill(scored.nll_nats.isnan(), 0)
    more = {"rank": rank_BT, "kl_nats": kl_T.to(found.nll_T.dtype).view(shape), "same_top": same_T.view(shape)}
    return Scored(scored.nll_nats, scored.correct, **more), full


@torch.inference_mode()
def score_logits(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> Scored:
    """Score target tokens given the logits before them; in float32, or float64 as they are."""
    return _scored(_predict(logits_TV, targets_T), targets_T)


def _scored(found: Predicted, targets_X: torch.Tensor) -> Scored:
    right_T = (found.top_T == targets_X.flatten().to(found.top_T.device)) & ~found.nll_T.isnan()
    return Scored(found.nll_T.view(targets_X.shape), right_T.view(targets_X.shape))


def _pieces(model: PreTrainedModel, *of_tokens: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Few enough tokens at a time for a head that makes all their logits."""
    rows = max(1, PIECE_BYTES // (vocabulary_of(model) * 4))
    return list(zip(*(each.split(rows) for each in of_tokens)))


def _predict(logits_TV: torch.Tensor, targets_T: torch.Tensor, *, more: bool = False) -> Predicted:
    """Say what logits predict that are there at once."""
    targets_T, logits_VT = targets_T.to(logits_TV.device), widened(logits_TV.t())
    own_T = logits_VT.gather(0, targets_T[None])[0] if more else no_logits(logits_TV)
    return predict_from_blocks([Block(0, logits_VT)], targets_T, Best(own_T))
