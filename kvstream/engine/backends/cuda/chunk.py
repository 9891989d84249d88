"""A chunk of tokens through a layer on a GPU: rotate, attend in one kernel, settle who stays. The host never waits.

The same as `causal_chunk` and `bounded_chunk`, which take blocks of queries one by one and merge what parts of the
cache answer.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S keys, C candidates, N contested keys by age,
Z seats, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvstream.engine import ring
from kvstream.engine.backends.cuda.band_attention import Contested, Old, Recent, attend
from kvstream.engine.backends.cuda.contest import leaving
from kvstream.engine.backends.cuda.rotation import turned
from kvstream.engine.backends.cuda.tiles import Kind, in_tiles
from kvstream.engine.contest import tie

if TYPE_CHECKING:
    from kvstream.engine.bounded_layer import BoundedLayer
    from kvstream.engine.layer import Layer

EVERYTHING = 1 << 29  # tokens back


def attend_causal(
    layer: Layer, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Answer the queries, take the keys and values into the layer, and count; the output is shaped as the queries."""
    start, T = layer.seen, k_BHTD.shape[2]
    new, held = slice(start, start + T), slice(start + T)
    turn = layer.tables.pairs(start, T, None, k_BHTD.device)
    turned(k_BHTD, turn, layer.keys[:, :, new])
    layer.values[:, :, new] = v_BHTD
    recent = Recent(layer.keys[:, :, held], layer.values[:, :, held], 0, EVERYTHING, turn)
    nothing = Old(layer.keys[:, :, :0], layer.values[:, :, :0], turn)
    q_BHTD = q_BHGTD.flatten(1, 2)
    output = in_tiles(lambda tiles: attend(q_BHTD, start, recent, nothing, None, scaling, tiles), "causal", q_BHTD)
    layer.seen += T
    return output.transpose(1, 2).unflatten(1, q_BHGTD.shape[1:3])


def attend_bounded(
    layer: BoundedLayer, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Answer the queries, take the keys and values into the layer, and count; the output is shaped as the queries."""
    layout, start, T, device = layer.layout, layer.seen, k_BHTD.shape[2], k_BHTD.device
    turn = old_turn = layer.tables.pairs(start, T, layer.positions.cap, device)
    if layer.positions.shift(start + T - 1):
        old_turn = layer.tables.pairs(start, T, layout.budget, device)
    first, keys_BHSD, values_BHSD = ring.extend(layer, turned(k_BHTD, turn), v_BHTD)
    recent = Recent(keys_BHSD, values_BHSD, first, layout.recent, turn)
    sinks = slice(min(layout.sinks, start + T))
    old = Old(layer.anchors_BHSD[:, :, sinks], layer.values[:, :, sinks], old_turn)
    found = _contest(layer, recent) if layer.eviction else None
    contested, score_BHN = found or (None, None)
    q_BHTD = q_BHGTD.flatten(1, 2)
    kind: Kind = "band" if contested is None else "rank" if layer.ranks else "contested"
    output = in_tiles(lambda tiles: attend(q_BHTD, start, recent, old, contested, scaling, tiles), kind, q_BHTD)

    ring.keep_newest(layer, first, keys_BHSD, values_BHSD)
    if contested and score_BHN is not None:
        _seat(layer, contested, score_BHN, start + T)
    layer.seen += T
    return output.transpose(1, 2).unflatten(1, q_BHGTD.shape[1:3])


def _contest(layer: BoundedLayer, recent: Recent) -> tuple[Contested, torch.Tensor] | None:
    """Play the contests between the members and the ring's tokens, which lose their protection in turn.

    Returns the contested keys, and their scores, (B, H, N). None: nobody is contested yet.
    """
    layout, members, eviction = layer.layout, layer.members, layer.eviction
    candidates = max(0, recent.keys_BHSD.shape[2] - layout.recent)
    if not members + candidates:
        return None
    assert eviction is not None, "asked where tokens are contested"
    keys_BHCD, values_BHCD = recent.keys_BHSD[:, :, :candidates], recent.values_BHSD[:, :, :candidates]
    score_BHN = eviction.contenders(members, keys_BHCD, values_BHCD)
    B, H, N = score_BHN.shape
    offered = recent.first + layout.recent
    deciding_BHN, draws = eviction.decisive(score_BHN, members, offered)
    draws_HC = None if draws is None else torch.from_numpy(draws).to(score_BHN.device, non_blocking=True)
    score_RN = deciding_BHN.reshape(-1, N).contiguous()
    leave_RN = leaving(score_RN, draws_HC, members, layout.contested, offered, tie(score_BHN.dtype))
    leave_RN = leave_RN.view(B, -1, N).expand(B, H, N).reshape(-1, N).contiguous()  # a row for each head

    seat_BHMD = eviction.by_age(members)[..., None].expand(-1, -1, -1, keys_BHCD.shape[-1])
    ranks = None
    if layer.positions.by_rank:
        cos, sin = layer.tables.pairs(recent.first, candidates, None, score_BHN.device)
        keys_BHCD = turned(keys_BHCD, (cos, -sin))
        cos, sin = layer.tables.pairs(0, layout.budget + 1, None, score_BHN.device)
        ranks = cos.t().contiguous(), sin.t().contiguous()
    keys_BHND, values_BHND = (
        torch.cat((held_BHZD.gather(2, seat_BHMD), new_BHCD), 2)
        for held_BHZD, new_BHCD in zip(layer.seats, (keys_BHCD, values_BHCD))
    )
    counts = members, layout.contested, offered, layout.budget
    return Contested(keys_BHND, values_BHND, leave_RN, *counts, ranks), score_BHN


def _seat(layer: BoundedLayer, contested: Contested, score_BHN: torch.Tensor, following: int) -> None:
    """Write those that the following query sees to their seats, by age."""
    assert layer.eviction is not None
    stay = min(layer.layout.contested, score_BHN.shape[2])
    listed_RKW, _ = contested.seen_by(range(following, following), 1)
    place_BHZ = listed_RKW[:, -1, :stay].long().view(*score_BHN.shape[:2], stay)
    place_BHZD = place_BHZ[..., None].expand(-1, -1, -1, contested.keys_BHND.shape[-1])
    for held_BHZD, each_BHND in zip(layer.seats, (contested.keys_BHND, contested.values_BHND)):
        held_BHZD[:, :, :stay] = each_BHND.gather(2, place_BHZD)
    layer.eviction.keep(score_BHN.gather(2, place_BHZ))
