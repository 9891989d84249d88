"""A single token's attention, compiled for CPUs: scores of the keys in some slots, their softmax, the values' sums.

Shape legend: S slots, N tokens held, in any order, G query heads that share keys, D head size, P pairs of dimensions
that are rotated, W dimensions turned by distance. slot_N: where each token is; away_N: how many of them came after it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

LANES = 64  # numbers of which a highest is kept apart, so that none waits for the one before
# e^x = 2^k · e^r, k the nearest integer to x ÷ ln 2. k · LN2_HIGH is exact: the constant has nine bits, k at most 11.
LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440054690583e-4
compiled: Any = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
as_written: Any = numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})  # which keeps x − k · ln 2 exact


@compiled
def copy(from_D: Any, to_D: Any) -> None:
    """Write one vector over another; numba takes seconds to compile an assignment of slices, for its error's text."""
    for d in range(np.uint64(to_D.shape[0])):
        to_D[d] = from_D[d]


@compiled
def scores(
    q_GD: Any, keys_SD: Any, slot_N: Any, away_N: Any, held: int, scaling: float, cos_SP: Any, sin_SP: Any,
    score_GN: Any,
) -> None:  # fmt: skip
    """Write the scores of the tokens in these slots for queries that share their keys, four at a time.

    With ranks, by distance: what is turned is each key, the other way round.
    """
    pairs, size = np.uint64(cos_SP.shape[1]), np.uint64(keys_SD.shape[1])
    for g in range(0, q_GD.shape[0], 4):
        for n in range(held):
            slot, away = slot_N[n], away_N[n]
            w = x = y = z = scaling - scaling
            for p in range(pairs):
                cos, sin, one, other = cos_SP[away, p], sin_SP[away, p], keys_SD[slot, p], keys_SD[slot, p + pairs]
                first, second = cos * one + sin * other, cos * other - sin * one
                w += q_GD[g, p] * first + q_GD[g, p + pairs] * second
                x += q_GD[g + 1, p] * first + q_GD[g + 1, p + pairs] * second
                y += q_GD[g + 2, p] * first + q_GD[g + 2, p + pairs] * second
                z += q_GD[g + 3, p] * first + q_GD[g + 3, p + pairs] * second
            for d in range(pairs + pairs, size):
                key = keys_SD[slot, d]
                w += q_GD[g, d] * key
                x += q_GD[g + 1, d] * key
                y += q_GD[g + 2, d] * key
                z += q_GD[g + 3, d] * key
            score_GN[g, n], score_GN[g + 1, n] = w * scaling, x * scaling
            score_GN[g + 2, n], score_GN[g + 3, n] = y * scaling, z * scaling


@compiled
def scores_of_one(
    q_D: Any, turned_D: Any, keys_SD: Any, slot_N: Any, away_N: Any, held: int, scaling: float, cos_SW: Any,
    sin_SW: Any, score_N: Any,
) -> None:  # fmt: skip
    """Write a query's scores of the tokens in these slots; with ranks, by distance.

    What is turned is the query; turned_D: its halves swapped, as a rotation adds them.
    """
    wide, size = np.uint64(cos_SW.shape[1]), np.uint64(keys_SD.shape[1])
    for n in range(held):
        slot, away, total = slot_N[n], away_N[n], scaling - scaling
        for d in range(wide):
            total += (q_D[d] * cos_SW[away, d] + turned_D[d] * sin_SW[away, d]) * keys_SD[slot, d]
        for d in range(wide, size):
            total += q_D[d] * keys_SD[slot, d]
        score_N[n] = total * scaling


@compiled
def softmax(x_N: Any, bits_N: Any, count: int) -> None:
    """Make the first `count` scores weights that add up to 1, within some units in the last place.

    x_N: float32 or float64; bits_N: the same memory as integers of that width. A weight below e^−86 (float32) or e^−700
    of the highest is that much instead. NaN makes all weights NaN.
    """
    top, total = _highest(x_N, count), x_N.dtype.type(0)
    _exp(x_N, bits_N, count, top)
    for n in range(count):
        total += x_N[n]
    for n in range(count):
        x_N[n] /= total


@compiled
def _highest(x_N: Any, count: int) -> Any:
    top_L, lanes = np.full(LANES, x_N[0]), np.uint64(LANES)
    end = np.uint64(count) // lanes * lanes
    for n in range(np.uint64(0), end, lanes):
        for lane in range(lanes):
            x = x_N[n + lane]
            top_L[lane] = x if x > top_L[lane] else top_L[lane]
    top = x_N[0]
    for n in range(end, np.uint64(count)):
        top = max(top, x_N[n])
    for lane in range(lanes):
        top = max(top, top_L[lane])
    return top


@as_written
def _exp(x_N: Any, bits_N: Any, count: int, top: Any) -> None:
    """Make each x e^(x − top), by Taylor's series of e^r, |r| ≤ ln 2 ÷ 2, to the 13th power."""
    real, whole = x_N.dtype.type, bits_N.dtype.type
    lowest, mantissa = (-86.0, 23) if x_N.itemsize == 4 else (-700.0, 52)
    k_N = np.empty(count, bits_N.dtype)
    for n in range(np.uint64(count)):
        x = x_N[n] - top
        x = real(lowest) if x < real(lowest) else x
        k = np.rint(x * real(LOG2_E))
        r = x - k * real(LN2_HIGH) - k * real(LN2_LOW)
        y = r * real(1 / 6227020800) + real(1 / 479001600)
        y = y * r + real(1 / 39916800)
        y = y * r + real(1 / 3628800)
        y = y * r + real(1 / 362880)
        y = y * r + real(1 / 40320)
        y = y * r + real(1 / 5040)
        y = y * r + real(1 / 720)
        y = y * r + real(1 / 120)
        y = y * r + real(1 / 24)
        y = y * r + real(1 / 6)
        y = y * r + real(1 / 2)
        y = y * r + real(1)
        x_N[n] = y * r + real(1)
        k_N[n] = whole(k)
    for n in range(np.uint64(count)):  # apart, as no compiler takes a number and its bits in one go
        bits_N[n] += k_N[n] << whole(mantissa)


@compiled
def weighted_sums(values_SD: Any, slot_N: Any, held: int, weight_GN: Any, out_GD: Any) -> None:
    """Write the values' weighted sums, of four at a time."""
    groups, size = out_GD.shape[0], np.uint64(values_SD.shape[1])
    for g in range(groups):
        for d in range(size):
            out_GD[g, d] = 0
    for n in range(0, held - 3, 4):
        first, second, third, fourth = slot_N[n], slot_N[n + 1], slot_N[n + 2], slot_N[n + 3]
        for g in range(groups):
            w, x, y, z = weight_GN[g, n], weight_GN[g, n + 1], weight_GN[g, n + 2], weight_GN[g, n + 3]
            for d in range(size):
                out_GD[g, d] += (w * values_SD[first, d] + x * values_SD[second, d]) + (
                    y * values_SD[third, d] + z * values_SD[fourth, d]
                )
    for n in range(held // 4 * 4, held):
        for g in range(groups):
            weight, slot = weight_GN[g, n], slot_N[n]
            for d in range(size):
                out_GD[g, d] += weight * values_SD[slot, d]
