"""How a token takes its seat among the contested ones of a `BoundedLayer`, compiled for CPUs.

Shape legend: B batch, H kv-heads, S slots, Z seats, C candidates, D head size, R rotated dimensions; cosines and sines
as in `rope.Rotation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstream.engine.backends.compiled_attention import as_written


@as_written
def seat_compiled(
    keys_BHSD: Any, values_BHSD: Any, plain_BHZD: Any, score_BHZ: Any, rank_BHZ: Any, seat_BHC: Any, left_BHC: Any,
    score_BHC: Any, back_cos_1R: Any, back_sin_1R: Any, cos_SR: Any, sin_SR: Any, offer: int, source: int,
    contested_at: int, newest: int, first: int, members: int,
) -> None:  # fmt: skip
    """Do what `bounded_step.seat_plainly` does, and turn keys whose rank that changes: of the first `members`.

    back_cos_1R, back_sin_1R: from the candidate's position back to 0. cos_SR, sin_SR, first: as in `positions.Ranks`.
    Where ranks are no positions plain_BHZD has no seats, and members is 0.
    """
    B, H, Z = rank_BHZ.shape
    size = back_cos_1R.shape[1]
    for b in range(B):
        for h in range(H):
            seat, left = seat_BHC[b, h, offer], left_BHC[b, h, offer]
            for z in range(Z):
                rank_BHZ[b, h, z] -= rank_BHZ[b, h, z] > left
            rank_BHZ[b, h, seat] = newest
            score_BHZ[b, h, seat] = score_BHC[b, h, offer]
            slot = contested_at + seat
            for d in range(keys_BHSD.shape[3]):
                keys_BHSD[b, h, slot, d] = keys_BHSD[b, h, source, d]
                values_BHSD[b, h, slot, d] = values_BHSD[b, h, source, d]
            if plain_BHZD.shape[2] > 0:
                for d in range(size, keys_BHSD.shape[3]):
                    plain_BHZD[b, h, seat, d] = keys_BHSD[b, h, source, d]
                _rotate(keys_BHSD, b, h, source, back_cos_1R, back_sin_1R, 0, plain_BHZD, seat)
            for z in range(members):
                rank = rank_BHZ[b, h, z]
                if rank >= left or z == seat:
                    _rotate(plain_BHZD, b, h, z, cos_SR, sin_SR, first + rank, keys_BHSD, contested_at + z)


@as_written
def _rotate(
    from_BHSD: Any, b: int, h: int, source: int, cos_SR: Any, sin_SR: Any, place: int, to_BHSD: Any, target: int
) -> None:
    half = np.uint64(cos_SR.shape[1] // 2)
    for d in range(half):
        x, y = from_BHSD[b, h, source, d], from_BHSD[b, h, source, d + half]
        to_BHSD[b, h, target, d] = x * cos_SR[place, d] + y * sin_SR[place, d]
        to_BHSD[b, h, target, d + half] = y * cos_SR[place, d + half] + x * sin_SR[place, d + half]
