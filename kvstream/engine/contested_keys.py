"""The contested keys of a chunk, as its queries see them: some leave, others join, from query to query.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, N contested keys of the chunk by age
(members, then candidates), U those of them that a block of queries can see, Z those that stay, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kvstream.engine.attention import Partial
from kvstream.engine.lifetimes import Lifetimes, first_places
from kvstream.engine.positions import Ranks

if TYPE_CHECKING:
    from kvstream.engine.backends.reference import Reference


@dataclass(frozen=True)
class ContestedKeys:
    """Keys (unrotated where rank is position) and values, and when each is seen."""

    keys_BHND: torch.Tensor
    values_BHND: torch.Tensor
    lifetimes: Lifetimes

    def answer(
        self,
        backend: Reference,
        queries_BHGTD: torch.Tensor,
        tokens: range,
        scaling: float,
        ranks: Ranks | None,
    ) -> list[Partial]:
        """Answer the queries of these tokens from the keys that any of them sees: one partial, or none.

        Without `ranks` keys and queries come rotated; with them, neither is.
        """
        seen_BHN = self.lifetimes.seen_by(tokens[0], tokens[-1])
        count = int(seen_BHN.sum(-1).max())
        if not count:
            return []
        pick_BHU = first_places(seen_BHN, count)
        query_T = torch.arange(tokens.start, tokens.stop, device=seen_BHN.device)
        enter_BHU, leave_BHU = (x.gather(2, pick_BHU) for x in (self.lifetimes.enter_BHN, self.lifetimes.leave_BHN))
        keys_BHUD, values_BHUD = self._pick(pick_BHU)
        if ranks:
            lifetimes = enter_BHU, leave_BHU, query_T
            return [backend.block_by_rank(queries_BHGTD, keys_BHUD, values_BHUD, *lifetimes, scaling, ranks)]
        mask_BHTU = (enter_BHU[:, :, None] <= query_T[:, None]) & (leave_BHU[:, :, None] >= query_T[:, None])
        mask = queries_BHGTD.new_zeros(mask_BHTU.shape).masked_fill_(~mask_BHTU, -torch.inf)
        return [backend.block(queries_BHGTD, keys_BHUD, values_BHUD, scaling, mask)]

    def survivors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of those still held after the chunk, by age: (B, H, Z, D) each."""
        return self._pick(self.lifetimes.survivors())

    def _pick(self, place_BHU: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place_BHUD = place_BHU[..., None].expand(-1, -1, -1, self.keys_BHND.shape[-1])
        return self.keys_BHND.gather(2, place_BHUD), self.values_BHND.gather(2, place_BHUD)
