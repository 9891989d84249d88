"""Keys turned to their index and measured in one pass, compiled for CPUs: torch would take ten operations for a token.

Shape legend: R rows (batch × kv-heads), T tokens, D head size, E rotated dimensions.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from kvstream.engine.backends.compiled_attention import compiled


@compiled
def turn_and_measure(keys_RTD: Any, cos_TE: Any, sin_TE: Any, turned_RTE: Any, inverse_RT: Any) -> None:
    """Write what `Reference.compared` returns; cosines and sines as in `rope.Rotation`."""
    rows, tokens, size = keys_RTD.shape
    half, D = np.uint64(cos_TE.shape[1] // 2), np.uint64(size)
    for row in range(rows):
        for t in range(tokens):
            squares = 0.0
            for d in range(half):
                x, y = keys_RTD[row, t, d], keys_RTD[row, t, d + half]
                first = x * cos_TE[t, d] + y * sin_TE[t, d]
                second = y * cos_TE[t, d + half] + x * sin_TE[t, d + half]
                turned_RTE[row, t, d], turned_RTE[row, t, d + half] = first, second
                squares += np.float64(first) ** 2 + np.float64(second) ** 2
            for d in range(half + half, D):
                squares += np.float64(keys_RTD[row, t, d]) ** 2
            inverse_RT[row, t] = 1 / sqrt(squares) if squares > 0 else 0.0
