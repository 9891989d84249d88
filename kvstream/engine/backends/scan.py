"""Tokens through a `ScannedLayer`, one after another, on any device: `compiled_scan` does the same, faster, on CPUs.

Each token takes a free slot, is answered, and may change the scores of all. Once the layer is full contested tokens
leave: the lowest score, of equals the youngest. All ways write the layer's slots, scores and order in place. One token
and many go the same way, so decoding and replay decide alike. On GPUs that is a kernel; in a recorded step torch
attends, which rounds otherwise than the kernel, and who leaves is decided by the kernel's own lines.

Shape legend: B batch, H kv-heads, U sets of kept tokens, N tokens held, by age, M contested ones, G query heads per
kv-head, T tokens, D head size, C and E as in `scanned_layer`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvstream.engine.scanned_layer import Arriving, ScannedLayer


def measured(layer: ScannedLayer, new: Arriving) -> Arriving:
    """Where keys are compared, turn and measure them: score_BHT is 1 ÷ their norms, 0 for a key of norm 0."""
    if new.apart_BHTD is None:
        return new
    own_BHTD = new.turn(new.apart_BHTD) if new.turn else new.apart_BHTD
    norm_BHT = torch.linalg.vector_norm(own_BHTD, dim=-1, dtype=layer.score_BHS.dtype)
    score_BHT = norm_BHT.reciprocal().masked_fill_(~(norm_BHT > 0), 0.0)
    return replace(new, score_BHT=score_BHT, own_BHTE=own_BHTD[..., : layer.own_BHSE.shape[-1]])


def scan_plainly(layer: ScannedLayer, new: Arriving, scaling: float) -> torch.Tensor:
    """Take some Python steps per token, on any device and in any dtype, under any policy: (B, H, G, T, D)."""
    new = measured(layer, new)
    tokens = range(layer.seen, layer.seen + new.k_BHTD.shape[2])
    outputs = [scan_step(layer, token, layer.held(token) + 1, t, new, scaling) for t, token in enumerate(tokens)]
    return torch.stack(outputs, -2)


def scan_step(
    layer: ScannedLayer, token: int | torch.Tensor, N: int, t: int, new: Arriving, scaling: float
) -> torch.Tensor:
    """Take number t of the arriving, the token of that index, which makes N held: (B, H, G, D).

    new: as `measured`. The index may be on the device: what is asked of it here is no question to the device.
    """
    policy = layer.policy
    slot_BUN = layer.order_BUS[:, :, :N]
    take(layer, token, slot_BUN[:, :, -1:], t, new)
    slot_BHN = slot_BUN.expand(-1, new.k_BHTD.shape[1], -1)
    slot_BHND = slot_BHN[..., None].expand(-1, -1, -1, new.k_BHTD.shape[-1])
    q_BHGD = new.q_BHGTD[..., t, :]
    wide = torch.promote_types(q_BHGD.dtype, torch.float32)
    keys_BHND, values_BHND = layer.keys.gather(2, slot_BHND).to(wide), layer.values.gather(2, slot_BHND)
    if layer.distances:
        keys_BHND = layer.distances.window(0, N)(keys_BHND)
        q_BHGD = layer.distances.window(N - 1, N)(q_BHGD.to(wide))
    weights_BHGN = (q_BHGD.to(wide) @ keys_BHND.mT * scaling).softmax(-1)
    to_go = layer.full - N  # queries until tokens leave
    if policy.scored_by == "attention" and (not policy.queries_heard or to_go < policy.queries_heard):
        begins = policy.queries_heard and to_go == policy.queries_heard - 1
        before_BHN = layer.score_BHS.gather(2, slot_BHN) * (0.0 if begins else 1.0)
        layer.score_BHS.scatter_(2, slot_BHN, policy.update_scores(before_BHN, weights_BHGN.to(before_BHN)))
    if layer.full == N:
        layer.backend.shed(layer, token)
    return (weights_BHGN @ values_BHND.to(wide)).to(new.v_BHTD.dtype)


def take(layer: ScannedLayer, token: int | torch.Tensor, slot_BU1: torch.Tensor, t: int, new: Arriving) -> None:
    """Put number t of the arriving, the token of that index, into a free slot."""
    slot_BH1 = slot_BU1.expand(-1, new.k_BHTD.shape[1], -1)
    slot_BH1D = slot_BH1[..., None].expand(-1, -1, -1, new.k_BHTD.shape[-1])
    layer.keys.scatter_(2, slot_BH1D, new.k_BHTD[:, :, t, None])
    layer.values.scatter_(2, slot_BH1D, new.v_BHTD[:, :, t, None])
    first_BHT = layer.score_BHS.new_zeros(()).expand(new.k_BHTD.shape[:3]) if new.score_BHT is None else new.score_BHT
    layer.score_BHS.scatter_(2, slot_BH1, first_BHT[:, :, t, None])
    layer.token_BUS.scatter_(2, slot_BU1, torch.zeros_like(slot_BU1) + token)
    if new.own_BHTE is not None:
        own_BHE = new.own_BHTE[:, :, t]
        E = own_BHE.shape[-1]
        layer.own_BHSE.scatter_(2, slot_BH1D[..., :E], own_BHE[:, :, None])
        own_BHC = torch.cat((own_BHE, new.k_BHTD[:, :, t, E:]), -1).to(layer.sum_BHC)
        layer.sum_BHC.add_(own_BHC * first_BHT[:, :, t, None])


def shed_plainly(layer: ScannedLayer, token: int | torch.Tensor) -> None:
    """Have contested tokens leave a layer whose slots are all taken; see `Reference.shed`."""
    policy, regions, N = layer.policy, layer.regions, layer.full
    slot_BUN = order_BUN = layer.order_BUS.clone()
    slot_BHN = slot_BUN.expand(-1, layer.keys.shape[1], -1)
    score_BHN = layer.score_BHS.gather(2, slot_BHN)
    compared = layer.sum_BHC.shape[-1] > 0
    decides_BHN = score_BHN
    if compared:
        own_BHNC = _own(layer, slot_BHN)
        decides_BHN = -(own_BHNC @ layer.sum_BHC[..., None])[..., 0] * score_BHN
    if policy.per_age:
        decides_BHN = decides_BHN / (token + 1 - layer.token_BUS.gather(2, slot_BUN)).clamp(min=1)
    if policy.shared_by_heads:
        decides_BHN = decides_BHN.mean(1, keepdim=True)
    decides_BUM = decides_BHN[:, :, regions.sinks : N - regions.recent]
    if policy.pooled > 1:
        rows_RM = decides_BUM.flatten(0, 1)
        decides_BUM = torch.nn.functional.avg_pool1d(rows_RM, policy.pooled, 1, policy.pooled // 2).view_as(decides_BUM)
    for held in range(N, layer.left, -1):
        lowest_BU1 = decides_BUM.amin(-1, keepdim=True)
        among_BUM = decides_BUM <= lowest_BU1 + lowest_BU1.abs() * layer.tie
        rank_N = torch.arange(N, device=layer.device)
        place_BU1 = (among_BUM * (1 + rank_N[: among_BUM.shape[-1]])).amax(-1, keepdim=True) - 1
        place_BU1 = place_BU1.clamp(min=0)  # −∞ is below no bar, NaN below none either
        if compared:
            slot_BH1 = order_BUN.gather(2, regions.sinks + place_BU1).expand(*score_BHN.shape[:2], 1)
            layer.sum_BHC.sub_(_own(layer, slot_BH1)[:, :, 0] * layer.score_BHS.gather(2, slot_BH1))
        order_BUN = _to_place(order_BUN, regions.sinks + place_BU1, held - 1)
        decides_BUM = _to_place(decides_BUM, place_BU1, decides_BUM.shape[-1] - 1)[..., :-1]
    layer.order_BUS.copy_(order_BUN)


def _own(layer: ScannedLayer, slot_BHN: torch.Tensor) -> torch.Tensor:
    """The keys in these slots as they are compared, as wide as their sum: (B, H, N, C)."""
    E = layer.own_BHSE.shape[-1]
    slot_BHND = slot_BHN[..., None].expand(-1, -1, -1, layer.keys.shape[-1])
    parts = layer.own_BHSE.gather(2, slot_BHND[..., :E]), layer.keys[..., E:].gather(2, slot_BHND[..., E:])
    return torch.cat(parts, -1).to(layer.sum_BHC)


def _to_place(x_BUN: torch.Tensor, from_BU1: torch.Tensor, to: int) -> torch.Tensor:
    """Move one of each row behind those up to `to`, which move up."""
    rank_N = torch.arange(x_BUN.shape[-1], device=x_BUN.device)
    source_BUN = rank_N + ((rank_N >= from_BU1) & (rank_N < to)).long()
    return x_BUN.gather(2, torch.where(rank_N == to, from_BU1, source_BUN))
