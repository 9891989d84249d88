"""The layers of a `KVStreamCache` as a steady step takes its token through them, in their own slots.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T one token, D head size, S slots, Z seats.
"""

from __future__ import annotations

from math import inf

import torch

from kvstream.engine.bounded_layer import BoundedLayer
from kvstream.engine.layer import Layer
from kvstream.engine.scanned_layer import ScannedLayer
from kvstream.engine.shared_tables import SharedTables
from kvstream.engine.steady.attending import Attention, attention_for, fused
from kvstream.engine.steady.counter import Counter
from kvstream.engine.unbounded_layer import UnboundedLayer

ALIGNED = 16  # slots whose bias fused attention takes as it is; any other number each layer would pad, by a copy


class SteadyLayer(Layer):
    """One layer during steady steps, in the tensors of a cache's layer, `of`.

    since, until: its steps are alike while that has seen at least, and less than, so many tokens. shown: how many slots
    a token's queries look at. biased: whether some of them are free, and hidden by a bias.
    """

    row_tensors = ()  # all are the other's
    decides_nothing = True  # in Python, so that a compiler can go on through it
    since: int = 0
    until: float = inf
    shown = 0
    biased = False
    attention: Attention = staticmethod(fused)

    def __init__(self, of: Layer, tables: SharedTables, counter: Counter) -> None:
        super().__init__(tables)
        self.of, self.counter, self.is_initialized = of, counter, True

    def choose_attention(self, query_heads: int) -> None:
        """Attend from here on by what is quicker for so many heads."""
        if self.shown:
            keys, values = (x[:, :, : self.shown] for x in (self.of.keys, self.of.values))
            self.attention = attention_for(query_heads, keys, values, self.biased)

    def _filled(self, name: str) -> int:  # noqa: ARG002
        return 0


class Growing(SteadyLayer):
    """A layer that holds all tokens so far, each in the slot of its index, and has room for more."""

    biased = True

    def __init__(self, of: Layer, tables: SharedTables, counter: Counter, slots: int, cap: int | None) -> None:
        super().__init__(of, tables, counter)
        self.shown, self.until, self.cap = min(aligned(slots), of.keys.shape[2]), slots, cap
        self.since = of.layout.sinks if isinstance(of, BoundedLayer) else 0
        for held in (of.keys, of.values):  # a weight of 0 would not hide what memory happened to hold
            held[:, :, of.seen : self.shown] = 0

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        rotate, slots = self.counter.rotation(k_BHTD, self.cap), self.shown
        keys, values = self.of.keys[:, :, :slots], self.of.values[:, :, :slots]
        keys.index_copy_(2, self.counter.token_1, rotate(k_BHTD))
        values.index_copy_(2, self.counter.token_1, v_BHTD)
        return self.attention(rotate(q_BHGTD), keys, values, scaling, self.counter.free(slots, k_BHTD))


class Held(SteadyLayer):
    """A layer each of whose tokens overwrites the last: as many keys at every step, and none evicted."""

    def __init__(self, of: Layer, tables: SharedTables, counter: Counter) -> None:
        super().__init__(of, tables, counter)
        self.shown = of.seen + 1

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        rotate = self.counter.rotation(k_BHTD)
        keys, values = (x[:, :, : self.shown] for x in (self.of.keys, self.of.values))
        keys[:, :, -1:] = rotate(k_BHTD)
        values[:, :, -1:] = v_BHTD
        return self.attention(rotate(q_BHGTD), keys, values, scaling)


class Evicting(SteadyLayer):
    """A full layer: the token overwrites the slot of one that left, is answered, and then one leaves.

    As `bounded_step`, but that the contested keys stand where the one query finds them, and that each contest is played
    on the device.
    """

    of: BoundedLayer

    def __init__(self, of: BoundedLayer, tables: SharedTables, counter: Counter) -> None:
        super().__init__(of, tables, counter)
        self.since = of.layout.budget
        self.first, self.shown = of.layout.contested_at, of.layout.contested_at + of.layout.contested

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        of, counter, layout = self.of, self.counter, self.of.layout
        rotate, slot_1 = counter.rotation(k_BHTD, of.positions.cap), counter.slot(layout)
        of.keys.index_copy_(2, slot_1, rotate(k_BHTD))
        of.values.index_copy_(2, slot_1, v_BHTD)
        if of.eviction and of.ranks:
            turn = counter.shifted(layout.sinks, layout.sinks + layout.contested, layout.budget, k_BHTD)
            of.keys[:, :, self.first : self.shown] = turn.pick(of.eviction.rank_BHZ[:, :, : layout.contested])(
                of.plain_BHZD[:, :, : layout.contested]
            )
        shown = of.keys[:, :, : self.shown], of.values[:, :, : self.shown]
        output = self.attention(rotate(q_BHGTD), *shown, scaling)
        if of.eviction:
            self._contest()
        return output

    def prepare_draws(self) -> None:
        """Lay out what this step and following draw, where draws decide."""
        if self.of.eviction:
            self.of.eviction.prepare_draws(self.of.seen)

    def _contest(self) -> None:
        """Have the token that loses its protection take the seat of whoever leaves, which may be itself."""
        of, layout, eviction = self.of, self.of.layout, self.of.eviction
        assert eviction is not None, "asked where tokens are contested"
        slot_1 = self.counter.slot(layout, behind=layout.recent)
        key_BH1D, value_BH1D = of.keys.index_select(2, slot_1), of.values.index_select(2, slot_1)
        seat_BH1 = eviction.play(key_BH1D, value_BH1D, self.counter.token_1)
        seat_BH1D = seat_BH1[..., None].expand_as(key_BH1D)
        if of.positions.by_rank:
            back = self.counter.rotation_back(layout.recent, key_BH1D)
            of.plain_BHZD.scatter_(2, seat_BH1D, back(key_BH1D))
        else:
            of.keys.scatter_(2, self.first + seat_BH1D, key_BH1D)
        of.values.scatter_(2, self.first + seat_BH1D, value_BH1D)


def aligned(slots: int) -> int:
    """As many, or the next number whose bias need not be padded."""
    return -(-slots // ALIGNED) * ALIGNED


def steady_until(layer: Layer, room: int | None) -> float:
    """How many tokens a layer can see while its steps are alike; 0 where they differ from each other as it is now.

    room: a layer that never evicts is given slots for so many tokens more at a time; None: all that it has.
    """
    if isinstance(layer, UnboundedLayer):
        return layer.keys.shape[2] if room is None else min(layer.keys.shape[2], (layer.seen // room + 1) * room)
    if isinstance(layer, ScannedLayer):
        return inf if layer.seen >= layer.left else 0
    assert isinstance(layer, BoundedLayer)
    if layer.seen >= layer.layout.budget:
        return inf
    return layer.layout.protected if layer.layout.sinks <= layer.seen < layer.layout.protected else 0
