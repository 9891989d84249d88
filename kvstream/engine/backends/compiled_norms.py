"""A key turned to its index and measured in one pass, compiled for CPUs: torch would take ten operations for a token.

Shape legend: T tokens, D head size, E rotated dimensions.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from kvstream.engine.backends.compiled_attention import compiled


@compiled
def turn_and_measure(key_D: Any, cos_TE: Any, sin_TE: Any, t: int, turned_E: Any) -> float:
    """Write what a key's first dimensions are turned to, and return 1 ÷ its norm, 0 for a norm of 0.

    Cosines and sines as in `rope.Rotation`, of which those of token t are taken; E = 0: the key is measured as it is.
    """
    half, D, squares = np.uint64(turned_E.shape[0] // 2), np.uint64(key_D.shape[0]), 0.0
    for d in range(half):
        x, y = key_D[d], key_D[d + half]
        first = x * cos_TE[t, d] + y * sin_TE[t, d]
        second = y * cos_TE[t, d + half] + x * sin_TE[t, d + half]
        turned_E[d], turned_E[d + half] = first, second
        squares += np.float64(first) ** 2 + np.float64(second) ** 2
    for d in range(half + half, D):
        squares += np.float64(key_D[d]) ** 2
    return 1 / sqrt(squares) if squares > 0 else 0.0
