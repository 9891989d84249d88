"""Attention over keys that lie in several places: each place answers on its own, and the answers are merged.

Knows no device: `kvstream.engine.backends` computes the answers. The merging is that of FlashAttention's blocks
(https://arxiv.org/abs/2205.14135).

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

QUERY_BLOCK = 128  # queries that share one masked product: larger wastes masked work, smaller wastes matrix speed


def blocks(queries: int, size: int = QUERY_BLOCK) -> list[tuple[int, int]]:
    """Cut a call's queries into blocks that share one product: (start, stop) of each."""
    return [(low, min(low + size, queries)) for low in range(0, queries, size)]


@dataclass(frozen=True)
class Partial:
    """What some of the keys answer, as if there were no others: outputs (B, H, G, T, D) and log Σ exp (B, H, G, T).

    The latter, −inf where a query sees none of the keys, is all that `merge_partials` needs to weigh several.
    """

    outputs_BHGTD: torch.Tensor
    logsumexp_BHGT: torch.Tensor

    @classmethod
    def of_blocks(cls, partials: list[Partial]) -> Partial:
        """Put the answers of blocks of queries, in their order, into one."""
        outputs, totals = zip(*((partial.outputs_BHGTD, partial.logsumexp_BHGT) for partial in partials))
        return cls(torch.cat(outputs, -2), torch.cat(totals, -1))


def merge_partials(partials: list[Partial]) -> torch.Tensor:
    """Answer from all the keys together: shape (B, H, G, T, D). Every query sees a key of some partial."""
    if len(partials) == 1:
        return partials[0].outputs_BHGTD
    total = partials[0].logsumexp_BHGT
    for partial in partials[1:]:
        total = torch.logaddexp(total, partial.logsumexp_BHGT)
    dtype = partials[0].outputs_BHGTD.dtype
    shares = [(partial.logsumexp_BHGT - total).exp_().to(dtype)[..., None] for partial in partials]
    output = partials[0].outputs_BHGTD * shares[0]
    for partial, share_BHGT1 in zip(partials[1:], shares[1:]):
        output.addcmul_(partial.outputs_BHGTD, share_BHGT1)
    return output
