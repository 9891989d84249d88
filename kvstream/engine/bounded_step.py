"""One token through a layer with a budget: it overwrites the slot of one that left, is answered, and then one leaves.

With positions by rank the token finds the sinks turned (`sink_rotation`), so that one product serves sinks and recents.
Contested keys change rank, so they are kept unrotated, too, and are asked by a query of their own.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T one token, D head size, C tokens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from kvstream.engine.eviction import Takeover

if TYPE_CHECKING:
    from kvstream.engine.bounded_layer import BoundedLayer


def attend_token(
    layer: BoundedLayer, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Answer the queries, take the key and value into the layer, evict and count; shaped as the queries."""
    layout, token, members, G = layer.layout, layer.seen, layer.members, q_BHGTD.shape[2]
    here, shift = layer.positions.of(token), layer.shift
    slot, ring_end = layout.slot_of(token), layout.filled(token + 1)
    end = ring_end + members
    if members and not layer.turned:
        _turn_contested(layer, ring_end, members)
    # One rotation and one product for the key, the queries, and the queries as the contested keys see them.
    q_BHGD = q_BHGTD[..., 0, :]
    apart = bool(shift and members)
    vectors = torch.cat((q_BHGD, q_BHGD, k_BHTD) if apart else (q_BHGD, k_BHTD), dim=2)
    positions = (here,) * G + (here - shift,) * G + (here,) if apart else (here,)
    rotated = layer.tables.rotation_of(positions, k_BHTD)(vectors)
    layer.keys[:, :, slot] = rotated[:, :, -1]
    layer.values[:, :, slot] = v_BHTD[:, :, 0]
    layer.anchor(token, 1)
    held = layer.keys[:, :, :end], layer.values[:, :, :end]
    outputs_BHGD = layer.backend.step(rotated[:, :, :-1], *held, scaling, ring_end if apart else 0)
    if layer.eviction and token >= layout.protected:
        takeover = layer.eviction.step(token, members, partial(_arrived, layer))
        if takeover:  # else all candidates leave at once
            after = min(members + 1, layout.contested)
            layer.backend.seat(layer, token - layout.recent, takeover, after - 1, after)
    layer.seen += 1
    return outputs_BHGD[..., None, :]


def _turn_contested(layer: BoundedLayer, start: int, members: int) -> None:
    """Bring the contested keys, from slot `start` on, to their ranks, which have changed."""
    if layer.ranks and layer.eviction:
        turn = layer.ranks.table.pick(layer.layout.sinks + layer.eviction.rank_BHZ[:, :, :members])
        layer.keys[:, :, start : start + members] = turn(layer.plain_BHZD[:, :, :members])
    layer.turned = True


def seat_plainly(layer: BoundedLayer, candidate: int, takeover: Takeover, newest: int) -> None:
    """Let a token that lost its protection take a free seat, or that of the one who leaves, or the spare."""
    assert layer.eviction is not None
    source, contested_at = layer.layout.slot_of(candidate), layer.layout.contested_at
    key_BH1D, value_BH1D = layer.keys[:, :, source, None].clone(), layer.values[:, :, source, None].clone()
    seat_BH1D = takeover.of("seat_BHC")[..., None].expand_as(value_BH1D)
    if layer.positions.by_rank:
        layer.plain_BHZD.scatter_(2, seat_BH1D, layer.tables.rotation_of((-candidate,), key_BH1D)(key_BH1D))
    layer.keys.scatter_(2, contested_at + seat_BH1D, key_BH1D)
    layer.values.scatter_(2, contested_at + seat_BH1D, value_BH1D)
    layer.eviction.seat(takeover, newest)


def _arrived(layer: BoundedLayer, tokens: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of tokens that are in the ring: (B, H, C, D) each."""
    slots = [layer.layout.slot_of(token) for token in tokens]
    return layer.keys[:, :, slots], layer.values[:, :, slots]
