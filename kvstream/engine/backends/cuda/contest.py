"""The contest for the older tokens, played on the device: the host is told nothing and asked nothing.

The rule is that of `kvstream.engine.contest.leaving_offers`, which is the same as a compiled loop on the host. One
program plays for one row. A candidate that is not above the lowest member leaves at once and changes nothing, so most
steps are one comparison.

Shape legend: R rows (batch × heads that decide), N tokens by age (members, then candidates), C candidates, K blocks of
queries, W most tokens that a block can see.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

NEVER = 2**31 - 1  # of what stays, as the query that last sees it
MOST_SEATS = 1 << 17  # a program holds all of them at once


@triton.jit(do_not_specialize=["N", "members", "room", "offered", "columns"])
def _leave(
    SCORE, DRAWS, LEAVE, N, members, room, offered, columns, tie,
    HEADS: tl.constexpr, DRAWN: tl.constexpr, SEATS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    seat = tl.arange(0, SEATS)
    taken = seat < room
    SCORE += row * N
    LEAVE += row * N
    owner = tl.where(taken, seat, -1)  # the first `room` tokens sit without a contest
    if DRAWN:
        DRAWS += (row % HEADS) * columns
        rank = tl.where(taken, seat, -1)
        for n in range(room, N):
            drawn = tl.load(DRAWS + n - members)
            leaver = tl.where(drawn == room, n, tl.sum(tl.where(rank == drawn, owner, 0)))
            tl.store(LEAVE + leaver, offered + n - members)
            out = rank == drawn
            owner = tl.where(out, n, owner)
            rank = tl.where(out, room - 1, tl.where(rank > drawn, rank - 1, rank))
    else:
        score = tl.load(SCORE + seat, mask=taken, other=float("inf"))
        lowest = tl.min(score)
        bar = lowest + tl.abs(lowest) * tie
        candidate = tl.load(SCORE + room)
        for n in range(room, N):
            following = tl.load(SCORE + n + 1, mask=n + 1 < N, other=0.0)
            leaver = n
            if candidate > bar:  # not so where either is NaN
                leaver = tl.max(tl.where(score <= bar, owner, -1))
                out = owner == leaver
                score = tl.where(out, candidate, score)
                owner = tl.where(out, n, owner)
                lowest = tl.min(score)
                bar = lowest + tl.abs(lowest) * tie
            tl.store(LEAVE + leaver, offered + n - members)
            candidate = following


def leaving(
    score_RN: torch.Tensor, draws_HC: torch.Tensor | None, members: int, room: int, offered: int, tie: float
) -> torch.Tensor:
    """Compute the last query, by token index, that sees each token, NEVER for those that stay: int32, (R, N).

    The first candidate is offered at step `offered`. Draws, where given, decide instead of scores.
    """
    R, N = score_RN.shape
    leave = torch.full((R, N), NEVER, dtype=torch.int32, device=score_RN.device)
    if room < N:
        seats = triton.next_power_of_2(room)
        draws = score_RN if draws_HC is None else draws_HC
        _leave[(R,)](
            score_RN, draws, leave, N, members, room, offered, draws.shape[1], tie,
            HEADS=len(draws), DRAWN=draws_HC is not None, SEATS=seats, num_warps=min(max(seats // 1024, 1), 32),
        )  # fmt: skip
    return leave


@triton.jit(do_not_specialize=["N", "members", "offered", "start", "T", "width"])
def _list(LEAVE, LIST, COUNT, N, members, offered, start, T, width, BM: tl.constexpr, BLOCK: tl.constexpr):
    block, row = tl.program_id(0), tl.program_id(1)
    low = tl.minimum(start + block * BM, start + T)  # the last block is the query after the chunk
    high = tl.maximum(tl.minimum(low + BM, start + T) - 1, low)
    at = row * tl.num_programs(0) + block
    LEAVE += row.to(tl.int64) * N
    LIST += at.to(tl.int64) * width
    count = 0
    for first in range(0, tl.minimum(N, tl.maximum(members + high - offered, members)), BLOCK):
        n = first + tl.arange(0, BLOCK)
        enter = tl.where(n < members, 0, offered + 1 + n - members)
        leave = tl.load(LEAVE + n, mask=n < N, other=-1)
        alive = ((enter <= high) & (leave >= low) & (enter <= leave)).to(tl.int32)
        place = count + tl.cumsum(alive, 0) - 1
        tl.store(LIST + place, n, mask=alive != 0)
        count += tl.sum(alive)
    tl.store(COUNT + at, count)


def visible(
    leave_RN: torch.Tensor, members: int, room: int, offered: int, queries: range, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """List which tokens each block of queries sees, by age, and how many: int32, (R, K, W) and (R, K).

    The last block is the one query after these: what it sees are the members from then on.
    """
    R, N = leave_RN.shape
    blocks, width = triton.cdiv(len(queries), block) + 1, min(room + block, N)
    listed = leave_RN.new_empty(R, blocks, width)
    count = leave_RN.new_empty(R, blocks)
    _list[(blocks, R)](
        leave_RN, listed, count, N, members, offered, queries.start, len(queries), width, BM=block, BLOCK=1024
    )
    return listed, count
