"""How long tokens stay: what masks need to know of an eviction.

Shape legend: B batch, H kv-heads, N contested tokens by age (members, then candidates), Z those that stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvstream.engine.contest import NEVER


@dataclass(frozen=True)
class Lifetimes:
    """The first and the last query, by token index, that sees each contested token."""

    enter_BHN: torch.Tensor
    leave_BHN: torch.Tensor

    @classmethod
    def of(cls, token: int, members: int, offer_BHN: torch.Tensor) -> Lifetimes:
        """Say it of tokens that leave at these offers (see `leaving_offers`), the first of which is at step `token`."""
        leave_BHN = torch.where(offer_BHN == NEVER, NEVER, token + offer_BHN)
        # A candidate is in the contested region from the step after the one at which it is offered.
        enter_C = torch.arange(token + 1, token + 1 + offer_BHN.shape[2] - members, device=offer_BHN.device)
        return cls(torch.cat((enter_C.new_zeros(members), enter_C)).expand_as(leave_BHN), leave_BHN)

    def seen_by(self, first: int, last: int) -> torch.Tensor:
        """Whether any query from `first` to `last` sees a token: bool, (B, H, N)."""
        return (self.enter_BHN <= last) & (self.leave_BHN >= first) & (self.enter_BHN <= self.leave_BHN)

    def survivors(self) -> torch.Tensor:
        """Places among N of those that never leave, by age, as many in each row: (B, H, Z)."""
        stays_BHN = self.leave_BHN == NEVER
        return first_places(stays_BHN, int(stays_BHN[0, 0].sum()))


def first_places(chosen_BHN: torch.Tensor, count: int) -> torch.Tensor:
    """First `count` places per row, the chosen ones before all others, in order: shape (B, H, count)."""
    return chosen_BHN.byte().argsort(dim=-1, descending=True, stable=True)[..., :count]
