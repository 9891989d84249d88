"""How far a policy's predictions are from the full cache's, exactly, without full's logits ever being kept.

With W the output embeddings, one row w a token of the vocabulary, logits are W h, and so

    KL(full ‖ policy) = Σ p (w · h_full − w · h_policy) − ln Z_full + ln Z_policy
                      = ln Z_policy − m · h_policy + (m · h_full − ln Z_full),     m = Σ p w,

where p are full's probabilities. So of each token of full's three things are kept: the mean output embedding m, of the
hidden size, the number in brackets and the most likely token. A policy's ln Z is known from its loss already: what it
takes is one dot product a token. In half precision, where logits are rounded, Z is taken from unrounded ones: one more
product with W, for each policy, too. A head that is more than its weights (`is_plain_linear`) is asked for both sets of
logits instead, and full's hidden states are kept.

Shape legend: B texts, T or N tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvstream.engine.vocabulary_blocks import Predicted, widened
from kvstream.engine.widest import exact_dtype


@dataclass(frozen=True)
class Kept:
    """What is kept of the full cache's predictions for some tokens of texts.

    top_BT: the most likely token. vector_BTE: m, and offset_BT: the number in brackets; or hidden states, and None.
    """

    top_BT: torch.Tensor
    vector_BTE: torch.Tensor
    offset_BT: torch.Tensor | None

    def of(self, rows: slice, tokens: slice) -> Kept:
        """Of these texts and tokens."""
        offset_BT = self.offset_BT
        return Kept(
            self.top_BT[rows, tokens],
            self.vector_BTE[rows, tokens],
            None if offset_BT is None else offset_BT[rows, tokens],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Kept]) -> Kept:
        """Of all tokens, in order."""
        offsets = [part.offset_BT for part in parts if part.offset_BT is not None]
        return cls(
            torch.cat([part.top_BT for part in parts], dim=1),
            torch.cat([part.vector_BTE for part in parts], dim=1),
            torch.cat(offsets, dim=1) if offsets else None,
        )


def kept(predicted: Predicted, hidden_TE: torch.Tensor, shape: Sequence[int]) -> Kept:
    """What is kept of full's predictions for texts of this shape, whose mean output embeddings were asked for."""
    assert predicted.mean_TE is not None
    offset_T = dot(predicted.mean_TE, hidden_TE) - predicted.log_sum_T
    return Kept(predicted.top_T.view(shape), predicted.mean_TE.view(*shape, -1), offset_T.view(shape))


def kl_from_sums(log_sum_T: torch.Tensor, hidden_TE: torch.Tensor, full: Kept) -> torch.Tensor:
    """KL(full ‖ policy) in nats, (T,), from a policy's ln Z and hidden states."""
    assert full.offset_BT is not None
    kl_T = (log_sum_T - dot(full.vector_BTE.flatten(0, 1), hidden_TE)) + full.offset_BT.flatten()
    return kl_T.clamp_(min=0)  # which rounding alone leaves


def kl_from_logits(full_TV: torch.Tensor, policy_TV: torch.Tensor) -> torch.Tensor:
    """The same, from both sets of logits."""
    exact = exact_dtype(full_TV)
    log_p_TV, log_q_TV = (widened(logits).to(exact).log_softmax(-1) for logits in (full_TV, policy_TV))
    each_TV = log_p_TV.exp() * (log_p_TV - log_q_TV)
    return each_TV.masked_fill_(log_p_TV.isneginf(), 0.0).sum(-1).clamp_(min=0)  # what full rules out counts nothing


def dot(one_TE: torch.Tensor, other_TE: torch.Tensor) -> torch.Tensor:
    """One number a token, in the widest numbers there are."""
    exact = exact_dtype(one_TE)
    return torch.linalg.vecdot(one_TE.to(exact), other_TE.to(exact))
