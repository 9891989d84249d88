"""`ScannedLayer`s as a steady step takes its token through them.

From some one token leaves at each step, from others many at once, now and then (`snapkv`, `l2_compress`). Between two
such evictions the number of tokens held grows from step to step, so all slots that are ever held are looked at, by
age, and those that are free are masked. A step at which tokens leave is another one: the cache takes it
(`SteadyStep.pauses`).

Shape legend: B batch, U sets of kept tokens, H kv-heads, G query heads per kv-head, T one token, S slots, D head size.
"""

from __future__ import annotations

from functools import partial

import torch

from kvstream.engine.backends.scan import measured, scan_step, take
from kvstream.engine.scanned_layer import Arriving, ScannedLayer
from kvstream.engine.shared_tables import SharedTables
from kvstream.engine.steady.counter import Counter
from kvstream.engine.steady.layers import SteadyLayer


class Scanned(SteadyLayer):
    """A `ScannedLayer` that holds as many tokens as are ever left, or more."""

    of: ScannedLayer

    def __init__(self, of: ScannedLayer, tables: SharedTables, counter: Counter) -> None:
        super().__init__(of, tables, counter)
        self.since = of.left


class Scanning(Scanned):
    """One from which a token leaves at each step."""

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        of, counter = self.of, self.counter
        by_index, in_place = partial(counter.rotation, k_BHTD), partial(counter.rotation, k_BHTD, of.positions.cap)
        new = measured(of, of.arriving(q_BHGTD, k_BHTD, v_BHTD, by_index, in_place))
        return scan_step(of, counter.token_1, of.full, 0, new, scaling)[..., None, :]


class Sawing(Scanned):
    """One from which none leaves at this step."""

    @property
    def sheds(self) -> bool:
        """Whether the next token has others leave."""
        return self.of.held(self.of.seen) + 1 == self.of.full

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        of, counter = self.of, self.counter
        rank_1 = counter.held(of.full, of.left)
        by_index = partial(counter.rotation, k_BHTD)
        in_place = by_index if of.positions.mode == "absolute" else partial(counter.rope.at, rank_1, k_BHTD)
        new = measured(of, of.arriving(q_BHGTD, k_BHTD, v_BHTD, by_index, in_place))
        return _step(of, counter.token_1, rank_1, new, scaling)[..., None, :]


def _step(
    layer: ScannedLayer, token_1: torch.Tensor, rank_1: torch.Tensor, new: Arriving, scaling: float
) -> torch.Tensor:
    """What `scan_step` does, where the new token's rank in age is on the device, and none leaves: (B, H, G, D)."""
    policy, slot_BUS = layer.policy, layer.order_BUS
    take(layer, token_1, slot_BUS.index_select(2, rank_1), 0, new)
    slot_BHS = slot_BUS.expand(-1, new.k_BHTD.shape[1], -1)
    slot_BHSD = slot_BHS[..., None].expand(-1, -1, -1, new.k_BHTD.shape[-1])
    free_S = torch.arange(layer.full, device=rank_1.device) > rank_1
    q_BHGD = new.q_BHGTD[..., 0, :]
    wide = torch.promote_types(q_BHGD.dtype, torch.float32)
    keys_BHSD = layer.keys.gather(2, slot_BHSD).to(wide)
    # A weight of 0 would not hide what a free slot happens to hold.
    values_BHSD = layer.values.gather(2, slot_BHSD).to(wide).masked_fill(free_S[:, None], 0.0)
    q_BHGD = q_BHGD.to(wide)
    if layer.distances:
        keys_BHSD, q_BHGD = layer.distances(keys_BHSD), layer.distances.pick(rank_1)(q_BHGD)
    weights_BHGS = (q_BHGD @ keys_BHSD.mT * scaling).masked_fill(free_S, -torch.inf).softmax(-1)
    if policy.scored_by == "attention":
        before_BHS = layer.score_BHS.gather(2, slot_BHS)
        weights = weights_BHGS.to(before_BHS)
        if policy.queries_heard:
            to_go_1 = layer.full - 1 - rank_1  # queries until tokens leave
            begun_BHS = before_BHS * (to_go_1 != policy.queries_heard - 1)
            heard_1 = to_go_1 < policy.queries_heard
            after_BHS = torch.where(heard_1, policy.update_scores(begun_BHS, weights), before_BHS)
        else:
            after_BHS = policy.update_scores(before_BHS, weights)
        layer.score_BHS.scatter_(2, slot_BHS, after_BHS)
    return (weights_BHGS @ values_BHSD).to(new.v_BHTD.dtype)
