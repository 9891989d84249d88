"""The contest for the older tokens: who leaves, played over many steps at once, compiled.

Each step one candidate, the token that just lost its protection, is offered to the contested region. There is room,
or one token leaves: the lowest score (the youngest of equals), or the one drawn by its rank in age. `leaving_offers`
is that definition. Knows numbers alone: no keys, no slots.

Shape legend: R rows (batch × kv-heads), N tokens by age (members, then candidates), C candidates, M members.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

NEVER = np.iinfo(np.int64).max


def tie(dtype: torch.dtype) -> float:
    """Relative difference up to which two scores are equal.

    In the first layer a key depends on its token alone, so repeated tokens tie; a product over one token and one over
    many round them apart, by an ulp or two. Unequal keys this close are too rare to matter.
    """
    return 16 * torch.finfo(dtype).eps


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
        for token in range(members):
            by_age[token] = token
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
