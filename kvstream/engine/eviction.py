"""The contest for the older tokens, played over a whole chunk at once.

Each step one candidate, the token that just lost its protection, is offered to the contested region. There is room,
or one token leaves: the lowest score (the youngest of equals), or the one drawn by its rank in age. `leaving_offers`
is that definition, compiled; `Contested` is its outcome as the chunk's queries see it.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, N contested keys of the chunk by age
(members, then candidates), U those of them that a block of queries can see, C candidates, R rows (B × H), D head size.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch

from kvstream.engine.attention import Part, scored, scores, seen
from kvstream.engine.rope import Rotation

NEVER = np.iinfo(np.int64).max


def tie(dtype: torch.dtype) -> float:
    """Relative difference up to which two scores are equal.

    In the first layer a key depends on its token alone, so repeated tokens tie; a product over one token and one over
    many round them apart, by an ulp or two. Unequal keys this close are too rare to matter.
    """
    return 16 * torch.finfo(dtype).eps


@dataclass(frozen=True)
class Takeover:
    """One step's: seats that the candidates take, ranks that became free, the candidates' scores; all (B, H, 1)."""

    seat_BH1: torch.Tensor
    left_BH1: torch.Tensor
    score_BH1: torch.Tensor


@dataclass(frozen=True)
class Takeovers:
    """Contests settled ahead, for the steps from `start` on; moves: whether any row changes, known on the host."""

    start: int
    seat_BHC: torch.Tensor
    left_BHC: torch.Tensor
    score_BHC: torch.Tensor
    moves: list[bool]

    @classmethod
    def of(
        cls, start: int, seat_RC: np.ndarray, left_RC: np.ndarray, moves_C: np.ndarray, score_BHC: torch.Tensor
    ) -> Takeovers:
        """Join what `takeovers` found with the scores of the candidates."""
        seat_BHC, left_BHC = (
            torch.from_numpy(x).view(score_BHC.shape).to(score_BHC.device) for x in (seat_RC, left_RC)
        )
        return cls(start, seat_BHC, left_BHC, score_BHC, moves_C.tolist())

    @property
    def stop(self) -> int:
        """The first step not settled."""
        return self.start + len(self.moves)

    def at(self, step: int) -> Takeover | None:
        """What happens at a step, or None if nothing does."""
        offer = step - self.start
        if not self.moves[offer]:
            return None
        return Takeover(*(x[..., offer : offer + 1] for x in (self.seat_BHC, self.left_BHC, self.score_BHC)))


@dataclass(frozen=True)
class Ranks:
    """Positions by rank: the lowest rank of a contested key, the budget, and the rotations to 0 … budget."""

    first: int
    budget: int
    table: Rotation


@dataclass(frozen=True)
class Contested:
    """Keys (unrotated where rank is position), values, scores, and the first and last query that sees each."""

    keys_BHND: torch.Tensor
    values_BHND: torch.Tensor
    score_BHN: torch.Tensor
    enter_BHN: torch.Tensor
    leave_BHN: torch.Tensor

    def parts(
        self, queries_BHGTD: torch.Tensor, query_T: torch.Tensor, scaling: float, ranks: Ranks | None
    ) -> list[Part]:
        """Score the queries with token indices `query_T` against the keys that any of them sees: one part, or none.

        Without `ranks` keys and queries come rotated; with them, neither is.
        """
        seen_BHN = (self.enter_BHN <= query_T[-1]) & (self.leave_BHN >= query_T[0]) & (self.enter_BHN <= self.leave_BHN)
        count = int(seen_BHN.sum(-1).max())
        if not count:
            return []
        pick_BHU = _places(seen_BHN, count)
        enter_BH1U, leave_BH1U = (x.gather(2, pick_BHU).unsqueeze(2) for x in (self.enter_BHN, self.leave_BHN))
        pick_BHUD = pick_BHU[..., None].expand(-1, -1, -1, self.keys_BHND.shape[-1])
        keys_BHUD, values_BHUD = self.keys_BHND.gather(2, pick_BHUD), self.values_BHND.gather(2, pick_BHUD)
        if ranks is None:
            mask_BHTU = (enter_BH1U <= query_T[:, None]) & (leave_BH1U >= query_T[:, None])
            mask = queries_BHGTD.new_zeros(mask_BHTU.shape).masked_fill_(~mask_BHTU, -torch.inf)
            return [seen(queries_BHGTD, keys_BHUD, values_BHUD, scaling, mask)]
        by_rank = scores_by_rank(
            queries_BHGTD, keys_BHUD, enter_BH1U[:, :, 0], leave_BH1U[:, :, 0], query_T, scaling, ranks
        )
        return [scored(by_rank, values_BHUD)]

    def survivors(self) -> tuple[torch.Tensor, ...]:
        """Keys, values and scores of those still held after the chunk, by age."""
        stays_BHN = self.leave_BHN == NEVER
        place_BHZ = _places(stays_BHN, int(stays_BHN[0, 0].sum()))
        place_BHZD = place_BHZ[..., None].expand(-1, -1, -1, self.keys_BHND.shape[-1])
        keys, values = self.keys_BHND.gather(2, place_BHZD), self.values_BHND.gather(2, place_BHZD)
        return keys, values, self.score_BHN.gather(2, place_BHZ)


def _places(chosen_BHN: torch.Tensor, count: int) -> torch.Tensor:
    """First `count` places per row, the chosen ones before all others, in order: shape (B, H, count)."""
    return chosen_BHN.byte().argsort(dim=-1, descending=True, stable=True)[..., :count]


def scores_by_rank(
    queries_BHGTD: torch.Tensor,
    keys_BHUD: torch.Tensor,
    enter_BHU: torch.Tensor,
    leave_BHU: torch.Tensor,
    query_T: torch.Tensor,
    scaling: float,
    ranks: Ranks,
) -> torch.Tensor:
    """Score keys (by age, unrotated, as are the queries) at the rank each has for each query: (B, H, G, T, U).

    A rank falls whenever an older key leaves, so no rotation of keys or queries serves two queries alike. What is
    turned is the distance d between them: with q·conj(k) = a + ib for each pair of dimensions, the score is the sum of
    a·cos(d) − b·sin(d) at the pair's frequency, plus the product of the dimensions that are not rotated.
    """
    B, H = queries_BHGTD.shape[:2]
    size = ranks.table.cos.shape[-1]
    wide = torch.promote_types(queries_BHGTD.dtype, torch.float32)
    queries, keys = queries_BHGTD.to(wide) * scaling, keys_BHUD.to(wide)
    rest = scores(queries[..., size:], keys[..., size:], 1.0)  # zeros where all dimensions are rotated
    arrays = [
        x.reshape(B * H, *x.shape[2:]).cpu().numpy()
        for x in (rest, queries[..., :size].contiguous(), keys[..., :size].contiguous(), enter_BHU, leave_BHU)
    ]
    position_T = query_T.clamp(max=ranks.budget) - ranks.first
    shared = [x.cpu().numpy() for x in (query_T, position_T, ranks.table.cos.to(wide), ranks.table.sin.to(wide))]
    threads = min(torch.get_num_threads(), B * H)
    pieces = [slice(B * H * n // threads, B * H * (n + 1) // threads) for n in range(threads)]
    list(_pool(threads).map(lambda piece: _add_by_rank(*(x[piece] for x in arrays), *shared), pieces))
    return torch.from_numpy(arrays[0]).view(rest.shape).to(queries_BHGTD)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _add_by_rank(
    scores_RGTU: Any, q_RGTD: Any, k_RUD: Any, enter_RU: Any, leave_RU: Any, query_T: Any, position_T: Any,
    cos_SD: Any, sin_SD: Any,
) -> None:  # fmt: skip
    """Add the rotated dimensions' share to scores of the others, −inf where a query does not see a key.

    cos_SD, sin_SD: as in `rope.Rotation`, of distances 0, 1, …: both halves of a pair, the first sine negated.
    """
    rows, groups, queries, size = q_RGTD.shape
    half = size // 2
    for row in range(rows):
        for t in range(queries):
            distance = position_T[t] + 1
            for u in range(k_RUD.shape[1]):
                if enter_RU[row, u] > query_T[t] or leave_RU[row, u] < query_T[t]:
                    scores_RGTU[row, :, t, u] = -np.inf
                    continue
                distance -= 1
                for g in range(groups):
                    total = scores_RGTU[row, g, t, u]
                    for p in range(half):
                        q1, q2 = q_RGTD[row, g, t, p], q_RGTD[row, g, t, p + half]
                        k1, k2 = k_RUD[row, u, p], k_RUD[row, u, p + half]
                        total += cos_SD[distance, p] * (q1 * k1 + q2 * k2) + sin_SD[distance, p] * (q2 * k1 - q1 * k2)
                    scores_RGTU[row, g, t, u] = total


@numba.njit(cache=True, nogil=True)
def leaving_offers(scores_RN: Any, draws_RC: Any, members: int, room: int, tie: float) -> Any:
    """Compute at which offer (0 … C−1) each token leaves, NEVER for those that stay: int64, shape (R, N).

    The first `members` of N are in the region already and the others are offered one by one; `room` is the region's
    size. Where draws_RC has no columns scores decide, and those within `tie`, relative, of the lowest are equal to it;
    else the draws do.
    """
    rows, tokens = scores_RN.shape
    leaves_RN = np.full((rows, tokens), NEVER, np.int64)
    alive = np.empty(room + 1, np.int64)
    for row in range(rows):
        count = members
        for token in range(members):
            alive[token] = token
        for offer in range(tokens - members):
            alive[count] = members + offer
            count += 1
            if count <= room:
                continue
            place = 0
            if draws_RC.shape[1] > 0:
                place = draws_RC[row, offer]
            else:
                lowest = scores_RN[row, alive[0]]
                for rank in range(1, count):
                    lowest = min(lowest, scores_RN[row, alive[rank]])
                for rank in range(count):
                    if scores_RN[row, alive[rank]] <= lowest + abs(lowest) * tie:
                        place = rank
            leaves_RN[row, alive[place]] = offer
            for rank in range(place, count - 1):
                alive[rank] = alive[rank + 1]
            count -= 1
    return leaves_RN


@numba.njit(cache=True, nogil=True)
def takeovers(leaves_RN: Any, seats_RM: Any, room: int) -> Any:
    """Compute which seats candidates take and which rank became free: int64, (R, C) each; and if any row moves, (C,).

    leaves_RN: of `leaving_offers`; seats_RM: the members' seats, by age. A free seat is the next one in order. Where
    the candidate leaves at once, it takes the spare seat, `room`. No rank becomes free there: NEVER.
    """
    rows, tokens = leaves_RN.shape
    members = seats_RM.shape[1]
    seat_RC = np.empty((rows, tokens - members), np.int64)
    left_RC = np.full((rows, tokens - members), NEVER, np.int64)
    moves_C = np.zeros(tokens - members, np.bool_)
    by_age = np.empty(room + 1, np.int64)
    for row in range(rows):
        count = members
        by_age[:members] = np.arange(members)
        for offer in range(tokens - members):
            candidate = members + offer
            by_age[count] = candidate
            place = 0
            while place <= count and leaves_RN[row, by_age[place]] != offer:
                place += 1
            if place == count:
                seat_RC[row, offer] = room
                continue
            moves_C[offer] = True
            if place > count:  # nobody leaves
                seat_RC[row, offer] = count
                count += 1
                continue
            token = by_age[place]
            seat_RC[row, offer] = seats_RM[row, token] if token < members else seat_RC[row, token - members]
            left_RC[row, offer] = place
            for rank in range(place, count):
                by_age[rank] = by_age[rank + 1]
    return seat_RC, left_RC, moves_C
