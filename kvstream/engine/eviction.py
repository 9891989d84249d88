"""Who leaves a layer whose older tokens are contested, and when: by what tokens are, or by draws.

An `Eviction` owns the scores of one layer, and who sits in which contested seat. It is asked step by step (`step`), or
about many steps at once (`lifetimes`), with the same outcome: all is known ahead, as soon as the candidates have
arrived. Where attention decides, nothing is: see `ScannedLayer`. A layer without contested tokens has no `Eviction`:
there the oldest recent token leaves.

Shape legend: B batch, H kv-heads, G query heads per kv-head, S slots, Z seats, M members by age, C candidates,
N contested tokens by age (members, then candidates), R rows (B × H), D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kvstream.engine.contest import leaving_offers, takeovers, tie
from kvstream.engine.lifetimes import Lifetimes
from kvstream.engine.slot_layout import SlotLayout
from kvstream.engine.widest import exact_dtype
from kvstream.policies import Policy

FORESIGHT = 64  # steps whose contests are settled at once
Arrived = Callable[[range], tuple[torch.Tensor, torch.Tensor]]  # tokens → their keys and values, both (B, H, C, D)


@dataclass(frozen=True)
class Settled:
    """Contests settled ahead, for the steps from `start` on.

    seat_BHC, left_BHC, score_BHC: for each candidate the seat that it takes, the rank that became free, its score.
    moves: whether any row changes, known on the host.
    """

    start: int
    seat_BHC: torch.Tensor
    left_BHC: torch.Tensor
    score_BHC: torch.Tensor
    moves: list[bool]

    def covers(self, step: int) -> bool:
        """Whether a step is settled."""
        return step < self.start + len(self.moves)

    def at(self, step: int) -> Takeover | None:
        """What happens at a step, or None if nothing does."""
        offer = step - self.start
        return Takeover(self, offer) if self.moves[offer] else None


@dataclass(frozen=True)
class Takeover:
    """What happens at one step: candidate number `offer` takes its seat, in every row."""

    settled: Settled
    offer: int

    def of(self, name: str) -> torch.Tensor:
        """The seats, ranks or scores of this step, (B, H, 1)."""
        every: torch.Tensor = getattr(self.settled, name)
        return every[..., self.offer : self.offer + 1]


class Eviction:
    """The scores of one layer's contested tokens, their seats, and how a contest is played.

    members, in all methods: how many contested tokens are held, the same number in every row. rank_BHZ: of the token
    in each seat, by age, among the members.
    """

    row_tensors = ("score_BHZ", "rank_BHZ")  # what it holds of the batch's rows

    def __init__(self, policy: Policy, layer: int, layout: SlotLayout) -> None:
        self.policy, self.layer, self.layout = policy, layer, layout

    def allocate(self, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> None:
        """Make room for as many rows and slots as these have."""
        # Seats are first taken in order, so a seat's number is its first member's rank.
        self.rank_BHZ = torch.arange(self.layout.seats, device=keys_BHSD.device).repeat(*keys_BHSD.shape[:2], 1)
        self.score_BHZ = self._score(keys_BHSD[:, :, :0], values_BHSD[:, :, :0]).new_zeros(self.rank_BHZ.shape)
        self.deciding = 1 if self.policy.shared_by_heads else keys_BHSD.shape[1]
        self.draws_HN = self.rank_BHZ.new_zeros(self.deciding, FORESIGHT)
        self.forget()

    def forget(self) -> None:
        """Drop what was settled ahead."""
        self.settled: Settled | None = None

    def by_age(self, members: int) -> torch.Tensor:
        """Seats of the members, oldest first: (B, H, M)."""
        return self.rank_BHZ[:, :, :members].argsort(-1)

    def step(self, token: int, members: int, arrived: Arrived) -> Takeover | None:
        """Say who takes a seat at step `token`, for `seat`; settle those after it, too, as far as they arrived."""
        if self.settled is None or not self.settled.covers(token):
            candidate = token - self.layout.recent
            score_BHC = self._score(*arrived(range(candidate, min(candidate + FORESIGHT, token + 1))))
            self.settled = self._settle(self.score_BHZ.gather(2, self.by_age(members)), score_BHC, token)
        return self.settled.at(token)

    def seat(self, takeover: Takeover, newest: int) -> None:
        """Write down who sits where: the younger than who left move up, and the candidate has rank `newest`."""
        seat_BH1 = takeover.of("seat_BHC")
        self.score_BHZ.scatter_(2, seat_BH1, takeover.of("score_BHC"))
        self.rank_BHZ.sub_((self.rank_BHZ > takeover.of("left_BHC")).long())
        self.rank_BHZ.scatter_(2, seat_BH1, newest)

    def prepare_draws(self, token: int) -> None:
        """Lay the draws out on the device from which `play` takes those of this step and following, in the same place.

        To be called before the first step played, and then whenever a step's number is a multiple of `FORESIGHT`.
        """
        start = token - token % FORESIGHT
        drawn = self.policy.draws(self.layer, self.deciding, range(start, start + FORESIGHT))
        if drawn is not None:
            self.draws_HN.copy_(torch.from_numpy(drawn))

    def play(self, key_BH1D: torch.Tensor, value_BH1D: torch.Tensor, token_1: torch.Tensor) -> torch.Tensor:
        """Play a full region's contest at step `token_1`, on the device alone; returns the candidate's seat, (B, H, 1).

        The outcome is `step`'s. Whom it asks is there already: the candidate sits in the spare seat, the youngest.
        """
        room, score_BH1 = self.layout.contested, self._score(key_BH1D, value_BH1D)
        self.score_BHZ[..., room:] = score_BH1
        self.rank_BHZ[..., room:] = room
        rank_BHZ, score_BHZ = self.rank_BHZ, self.score_BHZ
        if self.policy.shared_by_heads:
            rank_BHZ, score_BHZ = rank_BHZ[:, :1], score_BHZ.to(exact_dtype(score_BHZ)).mean(1, keepdim=True)
        if self.policy.scored_by == "nothing":
            leaves_BHZ = rank_BHZ == self.draws_HN.index_select(1, token_1 % FORESIGHT)
        else:
            lowest_BH1 = score_BHZ.amin(-1, keepdim=True)
            leaves_BHZ = score_BHZ <= lowest_BH1 + lowest_BH1.abs() * tie(score_BH1.dtype)
            leaves_BHZ |= ~leaves_BHZ.any(-1, keepdim=True) & (rank_BHZ == 0)  # −∞ is below no bar
        left_BH1, seat_BH1 = torch.where(leaves_BHZ, rank_BHZ, -1).max(-1, keepdim=True)
        seat_BH1 = seat_BH1.expand_as(score_BH1)
        self.rank_BHZ.sub_((self.rank_BHZ > left_BH1).long())
        self.rank_BHZ.scatter_(2, seat_BH1, room - 1)
        self.score_BHZ.scatter_(2, seat_BH1, score_BH1)
        return seat_BH1

    def lifetimes(self, token: int, members: int, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor) -> Lifetimes:
        """Settle step `token` and following, one candidate each; what is held is then as after the last of them."""
        score_BHN = self.contenders(members, keys_BHCD, values_BHCD)
        offer_BHN = torch.from_numpy(self._leaving(score_BHN, members, token)).view_as(score_BHN)
        found = Lifetimes.of(token, members, offer_BHN.to(score_BHN.device))
        self.keep(score_BHN.gather(2, found.survivors()))
        return found

    def contenders(self, members: int, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor) -> torch.Tensor:
        """Score the members, by age, and behind them candidates: (B, H, N)."""
        held_BHM = self.score_BHZ.gather(2, self.by_age(members))
        return torch.cat((held_BHM, self._score(keys_BHCD, values_BHCD)), 2)

    def keep(self, score_BHZ: torch.Tensor) -> None:
        """Take over the scores of the members that several steps left, by age: they sit in that order."""
        self.score_BHZ[:, :, : score_BHZ.shape[2]] = score_BHZ
        self.rank_BHZ.copy_(torch.arange(self.layout.seats, device=self.rank_BHZ.device))

    def _settle(self, held_BHM: torch.Tensor, score_BHC: torch.Tensor, token: int) -> Settled:
        """Say who takes whose seat at step `token` and following, given the members' scores by age."""
        members = held_BHM.shape[2]
        leaves_RN = self._leaving(torch.cat((held_BHM, score_BHC), 2), members, token)
        seats_RM = self.by_age(members).reshape(len(leaves_RN), -1).cpu().numpy()
        seat_RC, left_RC, moves_C = takeovers(leaves_RN, seats_RM, self.layout.contested)
        seat, left = (torch.from_numpy(x).view(score_BHC.shape).to(score_BHC.device) for x in (seat_RC, left_RC))
        return Settled(token, seat, left, score_BHC, moves_C.tolist())

    def _leaving(self, score_BHN: torch.Tensor, members: int, token: int) -> np.ndarray:
        """Play the contests of step `token` and following: see `leaving_offers`; int64, shape (R, N)."""
        B, H, N = score_BHN.shape
        equal = tie(score_BHN.dtype)
        score_BHN, draws_HC = self.decisive(score_BHN, members, token)
        deciding = score_BHN.shape[1]
        draws_RC = np.empty((B * deciding, 0), np.int64) if draws_HC is None else np.tile(draws_HC, (B, 1))
        score_RN = score_BHN.reshape(B * deciding, N).cpu().numpy()
        leaves_RN = leaving_offers(score_RN, draws_RC, members, self.layout.contested, score_RN.dtype.type(equal))
        return np.repeat(leaves_RN, H // deciding, axis=0)

    def decisive(self, score_BHN: torch.Tensor, members: int, token: int) -> tuple[torch.Tensor, np.ndarray | None]:
        """What decides the contests of step `token` and following: scores (B, H, N), and draws (H, C) if those do.

        Where one set of tokens is kept for all heads, H is 1.
        """
        if self.policy.shared_by_heads:
            score_BHN = score_BHN.to(exact_dtype(score_BHN)).mean(1, keepdim=True)
        if self.policy.scored_by != "nothing":
            return score_BHN, None
        _, deciding, N = score_BHN.shape
        draws_HC = self.policy.draws(self.layer, deciding, range(token, token + N - members))
        if draws_HC is None:
            raise TypeError(f"{self.policy.name} contests tokens, but neither scores nor draws say who leaves")
        return score_BHN, draws_HC

    def _score(self, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor) -> torch.Tensor:
        """Score tokens, (B, H, C), in float32 or wider; zeros where draws decide."""
        if self.policy.scored_by == "nothing":
            return keys_BHCD.new_zeros(keys_BHCD.shape[:3], dtype=torch.float32)
        score_BHC = self.policy.token_scores(keys_BHCD, values_BHCD)
        return score_BHC.to(torch.promote_types(score_BHC.dtype, torch.float32))
