"""A layer with a budget: B + 1 slots per kv-head, overwritten in place.

The slots follow the policy's regions: sinks, then a ring of the recent tokens and the current one, then the contested
older ones. They fill in this order, so the filled slots are always the first. Nothing moves to make room: the next
token overwrites the slot of one that left, since attention over a set of keys does not care about their order.

Single tokens are served in place. Several at once are exact too: layer l at token t depends only on layer l−1 up to t
and on the layer's own cache, so a whole chunk passes a layer as matrix products, and only the masks know what each
query's cache had evicted by then.

Positions (see `BoundedPolicy.position`): ring keys are stored rotated, at a position that never changes. In "cache"
mode recent keys keep their true distances, so the ring is scored with the query at its index t; the older keys sit at
their rank and are scored with the query at min(t, B). Contested keys change rank, so they are stored unrotated then.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S slots or keys, Z seats, D head size.
"""

from __future__ import annotations

import numpy as np
import torch

from kvstream.attention import Part, attend, scores
from kvstream.contest import NEVER, Contested, Ranks, leaving_offers, tie
from kvstream.layer import Clock, Layer, blocks
from kvstream.policies import BoundedPolicy

RANK_BLOCK = 32  # queries per block where ranks may fall within it: each fall costs one more product of the block


class BoundedLayer(Layer):
    """One layer under a bounded policy."""

    row_tensors = ("keys", "values", "score_BHS", "index_BHZ")

    def __init__(self, clock: Clock, policy: BoundedPolicy, layer: int) -> None:
        super().__init__(clock)
        regions = policy.regions
        assert regions is not None, "a bounded policy has regions"
        self.policy, self.layer = policy, layer
        self.sinks, self.room, self.recent = regions.sinks, regions.contested, regions.recent
        self.budget = regions.budget
        self.contested_at = self.sinks + self.recent + 1  # the first contested slot
        self.by_rank = policy.position == "cache"
        self.cap = self.budget if policy.position == "frozen" else None
        self.members = 0  # contested tokens now held, the same number in every row
        # Kept until the contested region changes: its keys rotated to their ranks, and the score a candidate must beat.
        self.turned_BHZD: torch.Tensor | None = None
        self.bar_BH1: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots."""
        super().lazy_initialization(key_states, value_states)
        self.members = 0
        B, H, _, D = key_states.shape
        self.keys = key_states.new_empty(B, H, self.budget + 1, D)
        self.values = torch.empty_like(self.keys)
        self.score_BHS = self._score(self.keys).zero_()
        self.index_BHZ = torch.zeros(B, H, self.room, dtype=torch.int64, device=key_states.device)
        self.turned_BHZD = self.bar_BH1 = None
        self.ranks = None
        if self.by_rank and self.room:
            table = self.clock.rope.at(torch.arange(self.budget + RANK_BLOCK + 1), key_states)
            self.ranks = Ranks(self.sinks, self.budget, table)

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        return (self._step if k_BHTD.shape[2] == 1 else self._chunk)(q_BHGTD, k_BHTD, v_BHTD, scaling)

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for keys and values, contested keys that are held rotated, too, included."""
        return super().kv_bytes + (0 if self.turned_BHZD is None else self.turned_BHZD.nbytes)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        super().reorder_cache(beam_idx)
        self.turned_BHZD = self.bar_BH1 = None

    def _slot(self, token: int) -> int:
        """Slot of a sink or of a token in the ring."""
        return token if token < self.sinks else self.sinks + (token - self.sinks) % (self.recent + 1)

    def _score(self, k_BHTD: torch.Tensor) -> torch.Tensor:
        score = self.policy.scores(k_BHTD) if self.room else None
        if score is None:  # draws decide, or nothing is contested
            return k_BHTD.new_zeros(k_BHTD.shape[:3], dtype=torch.float32)
        return score

    # One token, in place.

    def _step(self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float) -> torch.Tensor:
        token, slot, G = self.seen, self._slot(self.seen), q_BHGTD.shape[2]
        here = token if self.cap is None else min(token, self.cap)
        there = min(token, self.budget)
        q_BHGD = q_BHGTD[..., 0, :]
        # One rotation for all: the queries and the key here and, where the older keys need it, the queries there.
        both = self.by_rank and here != there and (self.sinks or self.room)
        vectors = torch.cat((q_BHGD, k_BHTD, q_BHGD) if both else (q_BHGD, k_BHTD), dim=2)
        rotated = self.clock.rotation_of((here,) * (G + 1) + (there,) * (G if both else 0), k_BHTD)(vectors)
        recent_BHG1D, old_BHG1D = rotated[:, :, :G, None], rotated[:, :, G + 1 if both else 0 :][:, :, :G, None]
        self.keys[:, :, slot] = rotated[:, :, G]
        self.values[:, :, slot] = v_BHTD[:, :, 0]
        if self.room:
            self.score_BHS[:, :, slot] = self._score(k_BHTD)[:, :, 0]
        end = min(token + 1, self.contested_at) + self.members
        visible = self._visible(recent_BHG1D, old_BHG1D if both else None, scaling)
        output = attend([Part(visible, self.values[:, :, :end])])
        if self.room and token - self.recent >= self.sinks:
            self._offer(token)
        return output

    def _visible(self, recent_BHG1D: torch.Tensor, old_BHG1D: torch.Tensor | None, scaling: float) -> torch.Tensor:
        """Score all filled slots for the newest token, region by region where their positions differ."""
        ring_end = min(self.seen + 1, self.contested_at)
        end = ring_end + self.members
        if not (self.ranks and self.members) and old_BHG1D is None:
            return scores(recent_BHG1D, self.keys[:, :, :end], scaling)
        old_BHG1D = recent_BHG1D if old_BHG1D is None else old_BHG1D
        sinks = min(self.sinks, ring_end)
        regions = [(old_BHG1D, self.keys[:, :, :sinks]), (recent_BHG1D, self.keys[:, :, sinks:ring_end])]
        if self.ranks and self.members:
            if self.turned_BHZD is None:  # ranks have changed
                rank_BHZ = self.sinks + self.index_BHZ[:, :, : self.members].argsort(-1).argsort(-1)
                self.turned_BHZD = self.ranks.table.pick(rank_BHZ)(self.keys[:, :, ring_end:end])
            regions.append((old_BHG1D, self.turned_BHZD))
        return torch.cat([scores(queries, keys, scaling) for queries, keys in regions if keys.shape[2]], dim=-1)

    def _offer(self, token: int) -> None:
        """Let the token that just lost its protection take a free seat, or that of the one who leaves."""
        candidate = token - self.recent
        source = self._slot(candidate)
        if self.members < self.room:
            seat_BH1 = self.index_BHZ.new_full((*self.index_BHZ.shape[:2], 1), self.members)
            stays_BH1 = torch.ones_like(seat_BH1, dtype=torch.bool)
            self.members += 1
        else:
            stays_BH1, seat_BH1 = self._verdict(token, source)
        if self.device.type == "cpu" and not stays_BH1.any():  # on other devices, to ask would be to wait
            return
        self.turned_BHZD = self.bar_BH1 = None
        key_BH1D = self.keys[:, :, source : source + 1].clone()
        if self.by_rank:
            key_BH1D = self.clock.rope.at(torch.tensor([-candidate]), key_BH1D)(key_BH1D)
        # A candidate that leaves at once is written onto itself: its slot is the next to be overwritten.
        target_BH1 = torch.where(stays_BH1, self.contested_at + seat_BH1, source)
        place_BH1D = target_BH1[..., None].expand_as(key_BH1D)
        self.keys.scatter_(2, place_BH1D, key_BH1D)
        self.values.scatter_(2, place_BH1D, self.values[:, :, source : source + 1].clone())
        self.score_BHS.scatter_(2, target_BH1, self.score_BHS[:, :, source : source + 1].clone())
        index_BH1 = torch.where(stays_BH1, candidate, self.index_BHZ.gather(2, seat_BH1))
        self.index_BHZ.scatter_(2, seat_BH1, index_BH1)

    def _verdict(self, token: int, source: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Decide per row whether the candidate in slot `source` stays, and whose seat it takes: both (B, H, 1).

        The same rule as `contest.leaving_offers`, for one step.
        """
        B, H, Z = self.index_BHZ.shape
        draws_HT = self.policy.draws(self.layer, H, range(token, token + 1))
        if draws_HT is not None:
            rank_BH1 = torch.from_numpy(draws_HT).to(self.device).expand(B, H, 1)
            return rank_BH1 < Z, self.index_BHZ.argsort(-1).gather(2, rank_BH1.clamp(max=Z - 1))
        held_BHZ = self.score_BHS[:, :, self.contested_at :]
        if self.bar_BH1 is None:
            lowest_BH1 = held_BHZ.min(-1, keepdim=True).values
            self.bar_BH1 = lowest_BH1 + lowest_BH1.abs() * tie(held_BHZ.dtype)
        stays_BH1 = self.score_BHS[:, :, source : source + 1] > self.bar_BH1
        if self.device.type == "cpu" and not stays_BH1.any():
            return stays_BH1, stays_BH1
        return stays_BH1, torch.where(held_BHZ <= self.bar_BH1, self.index_BHZ, -1).argmax(-1, keepdim=True)

    # Many tokens, exactly as one by one.

    def _chunk(self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float) -> torch.Tensor:
        T = k_BHTD.shape[2]
        start = self.seen
        if start + T <= self.sinks + self.recent:  # nobody has lost protection yet: as a full cache
            self.values[:, :, start : start + T] = v_BHTD
            self.score_BHS[:, :, start : start + T] = self._score(k_BHTD)
            return self._causal(q_BHGTD, k_BHTD, scaling)
        rotate = self.clock.rotation(start, T, self.cap, k_BHTD)
        rotated_BHTD = rotate(k_BHTD)
        new_sinks = min(max(self.sinks - start, 0), T)
        self.keys[:, :, start : start + new_sinks] = rotated_BHTD[:, :, :new_sinks]
        self.values[:, :, start : start + new_sinks] = v_BHTD[:, :, :new_sinks]

        first = max(self.sinks, start - self.recent)  # the oldest token of the ring
        keys_BHSD = self._in_order(self.keys, first, rotated_BHTD[:, :, new_sinks:])
        values_BHSD = self._in_order(self.values, first, v_BHTD[:, :, new_sinks:])
        score_BHS = self._in_order(self.score_BHS, first, self._score(k_BHTD)[:, :, new_sinks:])
        contested = self._contest(first, keys_BHSD, values_BHSD, score_BHS)

        recent_BHGTD = rotate(q_BHGTD)
        old_BHGTD = self.clock.rotation(start, T, self.budget, k_BHTD)(q_BHGTD) if self.by_rank else recent_BHGTD
        outputs = []
        for low, high in blocks(T, RANK_BLOCK if self.ranks and contested else None):
            block = (..., slice(low, high), slice(None))
            query_T = torch.arange(start + low, start + high, device=self.device)
            parts = []
            if sinks := min(self.sinks, start + high):
                mask = torch.arange(sinks, device=self.device) <= query_T[:, None] if start + low < sinks else None
                sink_scores = scores(old_BHGTD[block], self.keys[:, :, :sinks], scaling, mask)
                parts.append(Part(sink_scores, self.values[:, :, :sinks]))
            if start + high > first:
                ring = slice(max(0, start + low - self.recent - first), start + high - first)
                age_TS = query_T[:, None] - torch.arange(first + ring.start, first + ring.stop, device=self.device)
                mask = (age_TS >= 0) & (age_TS <= self.recent)
                parts.append(
                    Part(scores(recent_BHGTD[block], keys_BHSD[:, :, ring], scaling, mask), values_BHSD[:, :, ring])
                )
            if contested:
                queries = (q_BHGTD if self.ranks else old_BHGTD)[block]
                parts += contested.parts(queries, query_T, scaling, self.ranks)
            outputs.append(attend(parts))
        self._store(first, keys_BHSD, values_BHSD, score_BHS, contested)
        return torch.cat(outputs, dim=-2)

    def _in_order(self, slots_BHS: torch.Tensor, first: int, new_BHT: torch.Tensor) -> torch.Tensor:
        """Join the ring's tokens from `first` on, oldest first, with the chunk's."""
        held = max(self.seen - first, 0)
        start = self._slot(first)
        before_wrap = min(held, self.contested_at - start)
        pieces = (
            slots_BHS[:, :, start : start + before_wrap],
            slots_BHS[:, :, self.sinks :][:, :, : held - before_wrap],
        )
        return torch.cat((*pieces, new_BHT), dim=2)

    def _contest(
        self, first: int, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor, score_BHS: torch.Tensor
    ) -> Contested | None:
        """Play the chunk's contests between the members and the ring's tokens, which lose their protection in turn."""
        candidates = max(0, score_BHS.shape[2] - self.recent)
        if not self.room or not self.members + candidates:
            return None
        B, H = score_BHS.shape[:2]
        members = slice(self.contested_at, self.contested_at + self.members)
        index_BHN = torch.arange(first, first + candidates, device=self.device).expand(B, H, -1)
        enter_BHN = torch.cat((torch.zeros_like(self.index_BHZ[:, :, : self.members]), index_BHN + self.recent + 1), 2)
        index_BHN = torch.cat((self.index_BHZ[:, :, : self.members], index_BHN), 2)
        new_BHND = keys_BHSD[:, :, :candidates]
        if self.by_rank:
            new_BHND = self.clock.rope.at(-torch.arange(first, first + candidates), new_BHND)(new_BHND)
        by_age_BHN = index_BHN.argsort(-1)
        by_age_BHND = by_age_BHN[..., None].expand(-1, -1, -1, keys_BHSD.shape[-1])
        keys_BHND = torch.cat((self.keys[:, :, members], new_BHND), 2).gather(2, by_age_BHND)
        values_BHND = torch.cat((self.values[:, :, members], values_BHSD[:, :, :candidates]), 2).gather(2, by_age_BHND)
        score_BHN = torch.cat((self.score_BHS[:, :, members], score_BHS[:, :, :candidates]), 2).gather(2, by_age_BHN)

        offered_at = first + self.recent
        draws_HC = self.policy.draws(self.layer, H, range(offered_at, offered_at + candidates))
        draws_RC = np.empty((B * H, 0), np.int64) if draws_HC is None else np.tile(draws_HC, (B, 1))
        score_RN = score_BHN.reshape(B * H, -1).cpu().numpy()
        offer_BHN = torch.from_numpy(
            leaving_offers(score_RN, draws_RC, self.members, self.room, score_RN.dtype.type(tie(score_BHN.dtype)))
        ).view_as(score_BHN)
        leave_BHN = torch.where(offer_BHN == NEVER, NEVER, offered_at + offer_BHN).to(self.device)
        return Contested(
            keys_BHND,
            values_BHND,
            score_BHN,
            index_BHN.gather(2, by_age_BHN),
            enter_BHN.gather(2, by_age_BHN),
            leave_BHN,
        )

    def _store(
        self,
        first: int,
        keys_BHSD: torch.Tensor,
        values_BHSD: torch.Tensor,
        score_BHS: torch.Tensor,
        contested: Contested | None,
    ) -> None:
        """Write what the chunk leaves in the cache: the last recent tokens and the contest's survivors."""
        tokens = score_BHS.shape[2]
        kept = min(self.recent, tokens)
        ring = [self._slot(first + token) for token in range(tokens - kept, tokens)]
        self.keys[:, :, ring] = keys_BHSD[:, :, tokens - kept :]
        self.values[:, :, ring] = values_BHSD[:, :, tokens - kept :]
        self.score_BHS[:, :, ring] = score_BHS[:, :, tokens - kept :]
        self.turned_BHZD = self.bar_BH1 = None
        if contested:
            keys_BHZD, values_BHZD, score_BHZ, index_BHZ = contested.survivors()
            self.members = index_BHZ.shape[2]
            seats = slice(self.contested_at, self.contested_at + self.members)
            self.keys[:, :, seats], self.values[:, :, seats] = keys_BHZD, values_BHZD
            self.score_BHS[:, :, seats], self.index_BHZ[:, :, : self.members] = score_BHZ, index_BHZ
