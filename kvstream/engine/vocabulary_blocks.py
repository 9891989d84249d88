"""What the logits of some tokens say, from logits that come in blocks of the vocabulary and never exist all at once.

Shape legend: T tokens, E hidden size, V vocabulary, or a block of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kvstream.engine.widest import exact_dtype

LEAST_BLOCK = 256  # of the vocabulary
SAFE_EXPONENT = 50.0  # e^50 times any vocabulary is still a float32


@dataclass(frozen=True)
class Predicted:
    """What T tokens' logits say: nll_T, −ln p of the targets in nats; top_T, the first of the most likely tokens.

    log_sum_T: ln Σ exp of the logits, float64 where the device has it. above_T: how many tokens are more likely than
    the target. mean_TE: Σ p × the head's row, the mean output embedding. Where more was asked for than nll_T and top_T,
    log_sum_T and mean_TE are of logits before they are rounded to half precision; else above_T is 0.
    """

    nll_T: torch.Tensor
    top_T: torch.Tensor
    log_sum_T: torch.Tensor
    above_T: torch.Tensor
    mean_TE: torch.Tensor | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[Predicted]) -> Predicted:
        """Of all tokens, in order, without mean_TE."""
        names = "nll_T", "top_T", "log_sum_T", "above_T"
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Block:
    """Logits of a stretch of the vocabulary that begins with token `start`, in float32, or float64 as the model.

    rows_VE: the head's rows of it. unrounded_VT: the logits before they were rounded, where they were.
    """

    start: int
    logits_VT: torch.Tensor
    rows_VE: torch.Tensor | None = None
    unrounded_VT: torch.Tensor | None = None


class Best:
    """The highest logit so far, which token's it is, and how many tokens are above a given one."""

    def __init__(self, own_T: torch.Tensor) -> None:
        self.own_T = own_T
        self.highest_T = torch.full_like(own_T, -torch.inf)
        # As wide as most logits: a compiled loop over numbers of different widths takes seven times as long.
        self.top_T, self.above_T = (torch.zeros_like(own_T, dtype=torch.int32) for _ in range(2))

    def look(self, logits_VT: torch.Tensor, start: int) -> None:
        """Look at a block that begins with token `start`. Of equal logits the first counts; NaN never does."""
        here_T, place_T = logits_VT.max(0)
        self.top_T = torch.where(here_T > self.highest_T, (place_T + start).int(), self.top_T)
        self.highest_T = torch.maximum(self.highest_T, here_T)
        self.above_T += (logits_VT > self.own_T).sum(0).int()


class ExpSum:
    """Σ exp of logits, and Σ exp × the head's rows where these are given."""

    def __init__(self, like_T: torch.Tensor) -> None:
        self.total_T = torch.zeros_like(like_T, dtype=exact_dtype(like_T))
        self.shift_T, self.mean_TE = torch.zeros_like(like_T), torch.empty(0)
        self.begun = self.shifted = False

    def add(self, logits_VT: torch.Tensor, highest_T: torch.Tensor, rows_VE: torch.Tensor | None = None) -> None:
        """Add a block, which is overwritten. highest_T: of all logits so far, these included."""
        highest_T = highest_T.masked_fill(highest_T.isneginf(), 0.0)  # where all tokens so far are ruled out
        # Exponents are shifted only once they leave the range in which float32 holds every sum of them.
        self.shifted = self.shifted or not bool(highest_T.abs().max() < SAFE_EXPONENT)
        if self.shifted:
            if self.begun:
                by_T = torch.where(self.total_T != 0, (self.shift_T - highest_T).exp_(), 0.0)
                self.total_T *= by_T
                self.mean_TE *= by_T[:, None] if len(self.mean_TE) else 1
            self.shift_T = highest_T.clone()
            logits_VT.sub_(self.shift_T)
        self.total_T += logits_VT.exp_().sum(0)
        if rows_VE is not None:
            added_TE = logits_VT.t() @ rows_VE.to(logits_VT)
            self.mean_TE = self.mean_TE.add_(added_TE) if self.begun else added_TE
        self.begun = True

    @property
    def log_T(self) -> torch.Tensor:
        """Its logarithm."""
        return self.total_T.log() + self.shift_T


def widened(logits_VT: torch.Tensor) -> torch.Tensor:
    """Copy logits, which may be somebody else's too, in float32, or float64 as they are."""
    return logits_VT.to(torch.promote_types(logits_VT.dtype, torch.float32), copy=True)


def predict_from_blocks(
    blocks: Iterable[Block], targets_T: torch.Tensor, best: Best, *, keep: bool = False
) -> Predicted:
    """Say what logits predict for targets, given in blocks, which are overwritten. keep: the mean output embedding."""
    rounded, unrounded = ExpSum(best.own_T), ExpSum(best.own_T)
    chosen_T = best.own_T
    for block in blocks:
        logits_VT, rows_VE = block.logits_VT, block.rows_VE if keep else None
        inside_T = (targets_T >= block.start) & (targets_T < block.start + len(logits_VT))
        own_T = logits_VT.gather(0, (targets_T - block.start).clamp(0, len(logits_VT) - 1)[None])[0]
        chosen_T = torch.where(inside_T, own_T, chosen_T)
        best.look(logits_VT, block.start)
        if block.unrounded_VT is None:
            rounded.add(logits_VT, best.highest_T, rows_VE)
        else:
            rounded.add(logits_VT, best.highest_T)
            unrounded.add(block.unrounded_VT, best.highest_T, rows_VE)
    full = unrounded if unrounded.begun else rounded
    mean_TE = (full.mean_TE / full.total_T[:, None]).to(full.mean_TE) if keep else None
    nll_T = (rounded.log_T - chosen_T).to(best.own_T)
    # The target is not above itself, whatever its last bits.
    above_T = best.above_T.long() - (chosen_T > best.own_T).long()
    return Predicted(nll_T, best.top_T.long(), full.log_T, above_T, mean_TE)


def blocks_of(head: nn.Linear, hidden_TE: torch.Tensor, logits_bytes: int, *, more: bool = False) -> Iterator[Block]:
    """Yield the blocks of a head's logits; more: with those before rounding, if the head rounds."""
    wide = torch.promote_types(hidden_TE.dtype, torch.float32)
    rows = max(LEAST_BLOCK, logits_bytes // (len(hidden_TE) * wide.itemsize))
    hidden_ET, rounds = hidden_TE.t(), more and wide != hidden_TE.dtype

    def product(rows_VE: torch.Tensor, at: slice, right_ET: torch.Tensor) -> torch.Tensor:
        # On CPUs the product is faster this way round.
        logits_VT = (rows_VE @ right_ET).to(wide)
        return logits_VT if head.bias is None else logits_VT.add_(head.bias[at, None])

    for start in range(0, len(head.weight), rows):
        at = slice(start, start + rows)
        rows_VE = head.weight[at]
        unrounded_VT = product(rows_VE.to(wide), at, hidden_ET.to(wide)) if rounds else None
        yield Block(start, product(rows_VE, at, hidden_ET), rows_VE, unrounded_VT)


def own_logits(head: nn.Linear, hidden_TE: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
    """The targets' own logits, (T,), rounded as a block's are, though not always to the same last bit."""
    wide = torch.promote_types(hidden_TE.dtype, torch.float32)
    own_T = (head.weight[targets_T].to(wide) * hidden_TE.to(wide)).sum(-1).to(hidden_TE.dtype).to(wide)
    return own_T if head.bias is None else own_T + head.bias[targets_T]


def no_logits(hidden_TE: torch.Tensor) -> torch.Tensor:
    """In their place, above all others: (T,)."""
    wide = torch.promote_types(hidden_TE.dtype, torch.float32)
    return hidden_TE.new_full((len(hidden_TE),), torch.inf, dtype=wide)
