"""A layer in which who leaves follows from who stayed: tokens pass it one after another, in any number per call.

Whom a query sees may depend on what the queries before it attended to, or on which keys were still there, so within
such a layer nothing can be settled ahead. What passes it one by one are attention scores alone; projections and MLP
stay products over a whole chunk. The loop is the backend's (`Reference.scan`): compiled on CPUs.

A token that leaves frees its slot for the next one, so slots are in no order; `order_BUS` lists them by the age of
their tokens, those that are free last. Where ranks are positions, keys are kept unrotated, as ranks change.

Shape legend: B batch, H kv-heads, U sets of kept tokens (H, or 1 where heads share one), S slots, G query heads per
kv-head, T tokens, D head size, C the same where keys are compared, else 0, E those of C that are kept twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from kvstream.engine.contest import tie
from kvstream.engine.layer import Layer
from kvstream.engine.positions import Positions
from kvstream.engine.rope import Rotation
from kvstream.engine.shared_tables import SharedTables
from kvstream.engine.widest import exact_dtype
from kvstream.policies import BoundedPolicy, Policy, Regions


@dataclass(frozen=True)
class Arriving:
    """Tokens that a layer takes.

    q_BHGTD, k_BHTD: rotated, but where ranks are positions. score_BHT: a token's score as it comes, in the widest
    numbers that the device has; None: 0.

    Where keys are compared, apart_BHTD are they at their index in the text, or before `turn` turns them there; the
    scores, 1 ÷ their norms, and own_BHTE, the dimensions in which k_BHTD may differ from them, are `scan.measured`'s.
    """

    q_BHGTD: torch.Tensor
    k_BHTD: torch.Tensor
    v_BHTD: torch.Tensor
    score_BHT: torch.Tensor | None = None
    apart_BHTD: torch.Tensor | None = None
    turn: Rotation | None = None
    own_BHTE: torch.Tensor | None = None


def refuse_contradictions(policy: BoundedPolicy, regions: Regions) -> None:
    """Raise TypeError for a policy that asks of a scan what it cannot do."""
    full, left = policy.shed(regions)
    wrong = {
        "who leaves here follows from scores; give scored_by": policy.scored_by == "nothing",
        f"shed: {full} tokens held and {left} left; leave fewer, and all that are protected": not (
            regions.sinks + regions.recent <= left < full
        ),
        f"queries_heard: there are no more than {full - left} between two evictions": policy.queries_heard
        > full - left,
        # Compiled loops go by the memory alone, others ask update_scores: they must not say two things.
        "update_scores is not asked where attention_memory is set; set that to None, or leave update_scores out": (
            policy.attention_memory is not None and type(policy).update_scores is not Policy.update_scores
        ),
        "shared_by_heads: keys are compared within a head": policy.shared_by_heads and policy.scored_by == "similarity",
    }
    for words, is_so in wrong.items():
        if is_so:
            raise TypeError(f"{policy.name}: {words}")


class ScannedLayer(Layer):
    """One layer of that kind.

    full, left: once `full` tokens are held, the new one included, contested ones leave until `left` are. Scores that
    differ by no more than `tie`, relative, are equal.
    score_BHS: see `Arriving`; attention that a token receives is added. token_BUS: which token of the text a
    slot holds. own_BHSE: see `Arriving`. sum_BHC: of the unit vectors along all held keys at their index, as wide.
    """

    row_tensors = ("keys", "values", "own_BHSE", "sum_BHC", "score_BHS", "order_BUS", "token_BUS")

    def __init__(self, tables: SharedTables, policy: BoundedPolicy, layer: int) -> None:
        super().__init__(tables)
        regions = policy.regions_of(layer)
        assert regions is not None, "a layer with a budget has regions"
        self.policy, self.regions = policy, regions
        self.full, self.left = policy.shed(regions)
        refuse_contradictions(policy, regions)
        self.positions = Positions(policy.position, self.full - 1)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots: as many as tokens are ever held, the new one included."""
        super().lazy_initialization(key_states, value_states)
        (B, H, _, D), S = key_states.shape, self.full
        compared = D if self.policy.scored_by == "similarity" else 0
        apart = self.tables.rope.size if compared and self.positions.mode != "absolute" else 0
        self.keys = key_states.new_zeros(B, H, S, D)
        self.values = torch.zeros_like(self.keys)
        self.own_BHSE = key_states.new_zeros(B, H, S, apart)
        exact = exact_dtype(key_states)
        self.sum_BHC = key_states.new_zeros(B, H, compared, dtype=exact)
        self.score_BHS = key_states.new_zeros(B, H, S, dtype=exact)
        sets = 1 if self.policy.shared_by_heads else H
        self.order_BUS = torch.arange(S, device=self.device).repeat(B, sets, 1)
        self.token_BUS = torch.zeros_like(self.order_BUS)
        self.distances: Rotation | None = None  # rotations to 0 … S − 1, where ranks are positions
        if self.positions.by_rank:
            wide = torch.promote_types(key_states.dtype, torch.float32)
            self.distances = self.tables.distances(S, key_states.new_empty(0, dtype=wide))
        # Equal tokens have equal keys in the first layer, but for rounding in their dtype: see `contest.tie`.
        of_keys = torch.promote_types(key_states.dtype, torch.float32)
        self.tie = tie(of_keys if self.policy.scored_by == "token" else exact)

    @property
    def saws(self) -> bool:
        """Whether many tokens leave at once."""
        return self.full - self.left > 1

    def held(self, seen: int) -> int:
        """Count the tokens held after so many were seen."""
        return seen if seen < self.full else self.left + (seen - self.full) % (self.full - self.left)

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        T = k_BHTD.shape[2]
        by_index = partial(self.tables.rotation, self.seen, T, None, k_BHTD)
        arriving = self.arriving(q_BHGTD, k_BHTD, v_BHTD, by_index, partial(self._rotation, T, k_BHTD))
        output_BHGTD = self.backend.scan(self, arriving, scaling)
        self.seen += T
        return output_BHGTD

    def arriving(
        self,
        q_BHGTD: torch.Tensor,
        k_BHTD: torch.Tensor,
        v_BHTD: torch.Tensor,
        by_index: Callable[[], Rotation],
        in_place: Callable[[], Rotation],
    ) -> Arriving:
        """Prepare tokens for a scan, given the rotations to their indices and to their positions, if asked for."""
        scored_by, by_rank, plain_BHTD = self.policy.scored_by, self.positions.by_rank, k_BHTD
        if not by_rank:
            rotate = in_place()
            q_BHGTD, k_BHTD = rotate(q_BHGTD), rotate(k_BHTD)
        if scored_by == "similarity":
            apart = (plain_BHTD, by_index()) if self.own_BHSE.shape[-1] else (k_BHTD, None)
            return Arriving(q_BHGTD, k_BHTD, v_BHTD, None, *apart)
        if scored_by == "token":
            turned_BHTD = by_index()(k_BHTD) if by_rank and not self.policy.scores_turned_alike else k_BHTD
            return Arriving(q_BHGTD, k_BHTD, v_BHTD, self.policy.token_scores(turned_BHTD, v_BHTD).to(self.score_BHS))
        return Arriving(q_BHGTD, k_BHTD, v_BHTD)

    def _rotation(self, tokens: int, like: torch.Tensor) -> Rotation:
        """Rotate the next tokens to their positions: an index, or how many tokens were held when they came."""
        if self.positions.mode == "frozen" and self.saws:
            return self.tables.rotation_of(tuple(map(self.held, range(self.seen, self.seen + tokens))), like)
        return self.tables.rotation(self.seen, tokens, self.positions.cap, like)

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for keys and values, what is kept twice of keys that are compared included."""
        return super().kv_bytes + (self.own_BHSE.nbytes if self.is_initialized else 0)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything this layer holds; in free slots, nothing instead of what memory happened to hold."""
        free_BUF = self.order_BUS[:, :, self.held(self.seen) : min(self.seen, self.full)]
        free_BHF = free_BUF.expand(*self.score_BHS.shape[:2], -1)
        self.score_BHS.scatter_(2, free_BHF, 0.0)
        self.token_BUS.scatter_(2, free_BUF, 0)
        for slots_BHSD in (self.keys, self.values, self.own_BHSE):
            slots_BHSD.scatter_(2, free_BHF[..., None].expand(-1, -1, -1, slots_BHSD.shape[-1]), 0.0)
        return super().state()

    def take_back(self, tokens: int) -> None:
        """Count again from so many tokens, in the first slots, where a layer that never was full has them."""
        super().take_back(tokens)
        if self.is_initialized:
            self.order_BUS.copy_(torch.arange(self.full, device=self.device).expand_as(self.order_BUS))

    def rewind(self, tokens: int) -> None:
        """As for any layer; one that is full stays as it is: repeated steps then meet all sizes that it grows to."""
        if tokens < self.full:
            self.take_back(tokens)

    def _filled(self, name: str) -> int:
        return self.sum_BHC.shape[2] if name == "sum_BHC" else min(self.seen, self.full)
