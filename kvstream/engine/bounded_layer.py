"""A layer with a budget: B + 1 slots per kv-head, overwritten in place.

The slots follow the policy's regions: sinks, then a ring of the recent tokens and the current one, then the contested
older ones (and a spare seat, for candidates that leave at once). They fill in this order, so the filled slots are
always the first. Nothing moves to make room: the next token overwrites the slot of one that left, since attention over
a set of keys does not care about their order.

Single tokens are served in place. Several at once are exact too: layer l at token t depends only on layer l−1 up to t
and on the layer's own cache, so a whole chunk passes a layer as matrix products, and only the masks know what each
query's cache had evicted by then.

Positions (see `BoundedPolicy.position`): ring keys are stored rotated, at a position that never changes. In "cache"
mode recent keys keep their true distances, so the ring is scored with the query at its index t; the older keys sit at
their rank and are scored with the query at min(t, B). A single token spares itself the second product over the sinks:
they are turned by t − B, for all layers at once. Contested keys change rank, so they are kept unrotated, too.

Who takes whose seat is known ahead: the candidates of the next steps are in the ring already (`_foresee`).

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S slots or keys, Z seats, D head size.
"""

from __future__ import annotations

import numpy as np
import torch

from kvstream.engine.attention import joined, scores, seen, weighed
from kvstream.engine.eviction import NEVER, Contested, Ranks, Takeovers, leaving_offers, takeovers, tie
from kvstream.engine.layer import Clock, Layer, blocks
from kvstream.policies import BoundedPolicy

FORESIGHT = 64  # steps whose contests are settled at once


class BoundedLayer(Layer):
    """One layer under a bounded policy."""

    row_tensors = ("keys", "values", "anchors_BHSD", "plain_BHZD", "score_BHZ", "rank_BHZ")

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
        self.turned = False  # whether the contested keys in the slots are rotated to their ranks
        self.takeovers: Takeovers | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots."""
        super().lazy_initialization(key_states, value_states)
        B, H, _, D = key_states.shape
        seats = self.room + 1 if self.room else 0
        self.keys = key_states.new_empty(B, H, self.contested_at + seats, D)
        self.values = torch.empty_like(self.keys)
        self.anchors_BHSD = key_states.new_empty(B, H, self.sinks, D)  # sinks at their own positions
        self.plain_BHZD = key_states.new_empty(B, H, seats if self.by_rank else 0, D)  # contested keys, unrotated
        self.score_BHZ = self._score(self.keys[:, :, :0]).new_zeros(B, H, seats)
        # By age, among the members. Seats are first taken in order, so a seat's number is its first member's rank.
        self.rank_BHZ = torch.arange(seats, device=key_states.device).repeat(B, H, 1)
        self._forget_plans()
        self.ranks = None
        if self.by_rank and self.room:
            table = self.clock.rope.at(torch.arange(self.budget + 1), key_states)
            self.ranks = Ranks(self.sinks, self.budget, table)

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        return (self._step if k_BHTD.shape[2] == 1 else self._chunk)(q_BHGTD, k_BHTD, v_BHTD, scaling)

    @property
    def shift(self) -> int:
        """How much nearer than by index the older keys are to the next token."""
        return max(0, self.seen - self.budget) if self.by_rank else 0

    @property
    def members(self) -> int:
        """Contested tokens now held, the same number in every row: all that lost protection, while there is room."""
        return min(max(self.seen - self.sinks - self.recent, 0), self.room)

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for keys and values, second copies of sinks and of contested keys included."""
        return super().kv_bytes + (self.anchors_BHSD.nbytes + self.plain_BHZD.nbytes if self.is_initialized else 0)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        super().reorder_cache(beam_idx)
        self._forget_plans()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything this layer holds; where the next token goes, nothing instead of what memory happened to hold."""
        if self.seen >= self.contested_at:
            for slots in (self.keys, self.values):
                slots[:, :, self._slot(self.seen)] = 0
        return super().state()

    def restore(self, state: dict[str, torch.Tensor], seen: int) -> None:
        """Go on from a state of a layer like this; or of a full one, whose first sinks + recent tokens are the same."""
        super().restore(state, seen)
        if "anchors_BHSD" not in state:
            self._anchor(0, seen)

    def _filled(self, name: str) -> int:
        if name == "anchors_BHSD":
            return min(self.seen, self.sinks)
        ring = min(self.seen, self.contested_at) if name in ("keys", "values") else 0
        turned = name == "keys" and self.by_rank  # contested keys are turned to their ranks from plain_BHZD, again
        return ring + (0 if turned else self.members)

    def take_back(self, tokens: int) -> None:
        """Count again from so many tokens; contents are not restored."""
        super().take_back(tokens)
        self._forget_plans()

    def _forget_plans(self) -> None:
        self.turned, self.takeovers = False, None
        self.clock.sinks.forget()

    def _slot(self, token: int) -> int:
        """Slot of a sink or of a token in the ring."""
        return token if token < self.sinks else self.sinks + (token - self.sinks) % (self.recent + 1)

    def _score(self, keys_BHSD: torch.Tensor) -> torch.Tensor:
        """Score candidates as they stand in the ring, (B, H, S); zeros where draws decide."""
        if self.policy.scored_by == "nothing":
            return keys_BHSD.new_zeros(keys_BHSD.shape[:3], dtype=torch.float32)
        return self.policy.token_scores(keys_BHSD, keys_BHSD)

    # One token, in place.

    def _step(self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float) -> torch.Tensor:
        token, slot, G = self.seen, self._slot(self.seen), q_BHGTD.shape[2]
        members = self.members
        here = token if self.cap is None else min(token, self.cap)
        shift = self.shift
        ring_end = min(token + 1, self.contested_at)
        end = ring_end + members
        if self.ranks and members and not self.turned:  # ranks have changed
            turn = self.ranks.table.pick(self.sinks + self.rank_BHZ[:, :, :members])
            self.keys[:, :, ring_end:end] = turn(self.plain_BHZD[:, :, :members])
            self.turned = True
        # One rotation and one product for the key, the queries, and the queries as the contested keys see them.
        q_BHGD = q_BHGTD[..., 0, :]
        apart = bool(shift and members)
        vectors = torch.cat((q_BHGD, q_BHGD, k_BHTD) if apart else (q_BHGD, k_BHTD), dim=2)
        positions = (here,) * G + (here - shift,) * G + (here,) if apart else (here,)
        rotated = self.clock.rotation_of(positions, k_BHTD)(vectors)
        self.keys[:, :, slot] = rotated[:, :, -1]
        self.values[:, :, slot] = v_BHTD[:, :, 0]
        self._anchor(token, 1)
        visible = scores(rotated[:, :, :-1, None], self.keys[:, :, :end], scaling)
        if apart:
            visible[:, :, :G, :, ring_end:] = visible[:, :, G:, :, ring_end:]
        output = weighed(visible[:, :, :G].contiguous(), self.values[:, :, :end])
        if self.room and token - self.recent >= self.sinks:
            self._offer(token)
        return output

    def _offer(self, token: int) -> None:
        """Let the token that just lost its protection take a free seat, or that of the one who leaves, or the spare."""
        if self.takeovers is None or token >= self.takeovers.stop:
            self.takeovers = self._foresee(token)
        takeover = self.takeovers.at(token)
        if takeover is None:  # all candidates leave at once
            return
        candidate = token - self.recent
        source = self._slot(candidate)
        key_BH1D, value_BH1D = self.keys[:, :, source, None], self.values[:, :, source, None].clone()
        seat_BH1D = takeover.seat_BH1[..., None].expand_as(value_BH1D)
        if self.by_rank:
            key_BH1D = self.clock.rotation_of((-candidate,), key_BH1D)(key_BH1D)
            self.plain_BHZD.scatter_(2, seat_BH1D, key_BH1D)
            self.turned = False
        else:
            self.keys.scatter_(2, self.contested_at + seat_BH1D, key_BH1D.clone())
        self.values.scatter_(2, self.contested_at + seat_BH1D, value_BH1D)
        self.score_BHZ.scatter_(2, takeover.seat_BH1, takeover.score_BH1)
        # Who was younger than the leaving one moves up by one rank, and the candidate is the youngest.
        self.rank_BHZ.sub_((self.rank_BHZ > takeover.left_BH1).long())
        self.rank_BHZ.scatter_(2, takeover.seat_BH1, min(self.members, self.room - 1))

    def _foresee(self, token: int) -> Takeovers:
        """Settle the contests of steps `token` and following, as far as their candidates have arrived."""
        first = token - self.recent
        slots = [self._slot(candidate) for candidate in range(first, min(first + FORESIGHT, token + 1))]
        seat_BHM = self.rank_BHZ[:, :, : self.members].argsort(-1)  # by age
        score_BHC = self._score(self.keys[:, :, slots])
        leaves_RN = self._leaving(torch.cat((self.score_BHZ.gather(2, seat_BHM), score_BHC), dim=2), token)
        seats_RM = seat_BHM.reshape(len(leaves_RN), -1).cpu().numpy()
        seat_RC, left_RC, moves_C = takeovers(leaves_RN, seats_RM, self.room)
        return Takeovers.of(token, seat_RC, left_RC, moves_C, score_BHC)

    def _leaving(self, score_BHN: torch.Tensor, token: int) -> np.ndarray:
        """Play the contests of step `token` and following, members and then candidates by age: see `leaving_offers`."""
        B, H, N = score_BHN.shape
        draws_HC = self.policy.draws(self.layer, H, range(token, token + N - self.members))
        draws_RC = np.empty((B * H, 0), np.int64) if draws_HC is None else np.tile(draws_HC, (B, 1))
        score_RN = score_BHN.reshape(B * H, N).cpu().numpy()
        return leaving_offers(score_RN, draws_RC, self.members, self.room, score_RN.dtype.type(tie(score_BHN.dtype)))

    def _anchor(self, start: int, tokens: int) -> None:
        """Keep the sinks among these tokens, just written, at their own positions."""
        if start < self.sinks:
            new = slice(start, min(start + tokens, self.sinks))
            self.anchors_BHSD[:, :, new] = self.keys[:, :, new]

    # Many tokens, exactly as one by one.

    def _chunk(self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float) -> torch.Tensor:
        T = k_BHTD.shape[2]
        start = self.seen
        if start + T <= self.sinks + self.recent:  # nobody has lost protection yet: as a full cache
            self.values[:, :, start : start + T] = v_BHTD
            output = self._causal(q_BHGTD, k_BHTD, scaling)
            self._anchor(start, T)
            return output
        rotate = self.clock.rotation(start, T, self.cap, k_BHTD)
        rotated_BHTD = rotate(k_BHTD)
        new_sinks = min(max(self.sinks - start, 0), T)
        self.keys[:, :, start : start + new_sinks] = rotated_BHTD[:, :, :new_sinks]
        self.values[:, :, start : start + new_sinks] = v_BHTD[:, :, :new_sinks]
        self._anchor(start, new_sinks)

        first = max(self.sinks, start - self.recent)  # the oldest token of the ring
        keys_BHSD = self._in_order(self.keys, first, rotated_BHTD[:, :, new_sinks:])
        values_BHSD = self._in_order(self.values, first, v_BHTD[:, :, new_sinks:])
        contested = self._contest(first, keys_BHSD, values_BHSD)

        recent_BHGTD = rotate(q_BHGTD)
        old_BHGTD = self.clock.rotation(start, T, self.budget, k_BHTD)(q_BHGTD) if self.by_rank else recent_BHGTD
        outputs = []
        for low, high in blocks(T):
            block = (..., slice(low, high), slice(None))
            parts = []
            if sinks := min(self.sinks, start + high):
                mask = self.clock.band(high - low, sinks, start + low, start + high, rotated_BHTD)
                anchors, values = self.anchors_BHSD[:, :, :sinks], self.values[:, :, :sinks]
                parts.append(seen(old_BHGTD[block], anchors, values, scaling, mask if start + low < sinks else None))
            if start + high > first:
                begin = max(first, start + low - self.recent)
                ring = slice(begin - first, start + high - first)
                mask = self.clock.band(high - low, start + high - begin, start + low - begin, self.recent, rotated_BHTD)
                keys, values = keys_BHSD[:, :, ring], values_BHSD[:, :, ring]
                parts.append(seen(recent_BHGTD[block], keys, values, scaling, mask))
            if contested:
                query_T = torch.arange(start + low, start + high, device=self.device)
                queries = (q_BHGTD if self.ranks else old_BHGTD)[block]
                parts += contested.parts(queries, query_T, scaling, self.ranks)
            outputs.append(joined(parts))
        self._store(first, keys_BHSD, values_BHSD, contested)
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

    def _contest(self, first: int, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> Contested | None:
        """Play the chunk's contests between the members and the ring's tokens, which lose their protection in turn."""
        candidates = max(0, keys_BHSD.shape[2] - self.recent)
        if not self.room or not self.members + candidates:
            return None
        new_BHND = keys_BHSD[:, :, :candidates]
        new_score_BHN = self._score(new_BHND)
        if self.by_rank:
            new_BHND = self.clock.rope.at(-torch.arange(first, first + candidates), new_BHND)(new_BHND)
        seat_BHM = self.rank_BHZ[:, :, : self.members].argsort(-1)  # by age
        by_age_BHMD = seat_BHM[..., None].expand(-1, -1, -1, keys_BHSD.shape[-1])
        held_BHZD = self.plain_BHZD if self.by_rank else self.keys[:, :, self.contested_at :]
        score_BHN = torch.cat((self.score_BHZ.gather(2, seat_BHM), new_score_BHN), 2)
        offered_at = first + self.recent
        offer_BHN = torch.from_numpy(self._leaving(score_BHN, offered_at)).view_as(score_BHN)
        enter_N = torch.arange(offered_at + 1, offered_at + 1 + candidates, device=self.device)
        return Contested(
            torch.cat((held_BHZD.gather(2, by_age_BHMD), new_BHND), 2),
            torch.cat(
                (self.values[:, :, self.contested_at :].gather(2, by_age_BHMD), values_BHSD[:, :, :candidates]), 2
            ),
            score_BHN,
            torch.cat((enter_N.new_zeros(self.members), enter_N)).expand_as(score_BHN),
            torch.where(offer_BHN == NEVER, NEVER, offered_at + offer_BHN).to(self.device),
        )

    def _store(
        self,
        first: int,
        keys_BHSD: torch.Tensor,
        values_BHSD: torch.Tensor,
        contested: Contested | None,
    ) -> None:
        """Write what the chunk leaves in the cache: the last recent tokens and the contest's survivors."""
        tokens = keys_BHSD.shape[2]
        kept = min(self.recent, tokens)
        ring = [self._slot(first + token) for token in range(tokens - kept, tokens)]
        self.keys[:, :, ring] = keys_BHSD[:, :, tokens - kept :]
        self.values[:, :, ring] = values_BHSD[:, :, tokens - kept :]
        self._forget_plans()
        if contested:
            keys_BHZD, values_BHZD, score_BHZ = contested.survivors()
            members = score_BHZ.shape[2]
            seats = slice(self.contested_at, self.contested_at + members)
            if self.by_rank:
                self.plain_BHZD[:, :, :members] = keys_BHZD
            else:
                self.keys[:, :, seats] = keys_BHZD
            self.values[:, :, seats] = values_BHZD
            self.score_BHZ[:, :, :members] = score_BHZ
            self.rank_BHZ.copy_(torch.arange(self.room + 1))
