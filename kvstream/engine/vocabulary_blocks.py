"""Targets scored from logits that come in blocks of the vocabulary, so that they never exist all at once.

Shape legend: T tokens, E hidden size, V vocabulary, or a block of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

LEAST_BLOCK = 256  # of the vocabulary
SAFE_EXPONENT = 50.0  # e^50 times any vocabulary is still a float32


def widened(logits_VT: torch.Tensor) -> torch.Tensor:
    """Copy logits, which may be somebody else's too, in float32, or float64 as they are."""
    return logits_VT.to(torch.promote_types(logits_VT.dtype, torch.float32), copy=True)


def score_blocks(
    blocks: Iterable[tuple[int, torch.Tensor]], targets_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score targets given blocks of logits, (V, T), each with its first token; overwrites the blocks.

    Returns −ln p of each target in nats, and whether it was the argmax: (T,) each.
    """
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
    return total_T.log() + (shift_T - chosen_T), correct_T


def logits_in_blocks(head: nn.Linear, hidden_TE: torch.Tensor, logits_bytes: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield blocks of logits, (V, T), each with its first token: in float32, or float64 as the model."""
    wide = torch.promote_types(hidden_TE.dtype, torch.float32)
    tokens = len(hidden_TE)
    if tokens == 1:
        yield 0, widened(head(hidden_TE).t())
        return
    rows = max(LEAST_BLOCK, logits_bytes // (tokens * wide.itemsize))
    hidden_ET = hidden_TE.t()
    for start in range(0, len(head.weight), rows):
        # On CPUs the product is faster this way round.
        logits_VT = (head.weight[start : start + rows] @ hidden_ET).to(wide)
        yield start, logits_VT if head.bias is None else logits_VT.add_(head.bias[start : start + rows, None])
