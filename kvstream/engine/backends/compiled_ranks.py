"""Scores of keys that stand at their rank, which differs from query to query, compiled for CPUs.

Shape legend: R rows (batch × kv-heads), G query heads per kv-head, T queries, U keys, D rotated dimensions, S
distances.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstream.engine.backends.compiled_attention import compiled


@compiled
def add_by_rank(
    scores_RGTU: Any, q_RGTD: Any, k_RUD: Any, enter_RU: Any, leave_RU: Any, query_T: Any, position_T: Any,
    cos_SD: Any, sin_SD: Any,
) -> None:  # fmt: skip
    """Add the rotated dimensions' share to scores of the others, −inf where a query does not see a key.

    cos_SD, sin_SD: as in `rope.Rotation`, of distances 0, 1, …: both halves of a pair, the first sine negated.
    """
    rows, groups, queries, size = q_RGTD.shape
    half = size // 2
    for row in range(rows):
        for t in range(queries):
            distance = position_T[t] + 1
            for u in range(k_RUD.shape[1]):
                if enter_RU[row, u] > query_T[t] or leave_RU[row, u] < query_T[t]:
                    scores_RGTU[row, :, t, u] = -np.inf
                    continue
                distance -= 1
                for g in range(groups):
                    total = scores_RGTU[row, g, t, u]
                    for p in range(half):
                        q1, q2 = q_RGTD[row, g, t, p], q_RGTD[row, g, t, p + half]
                        k1, k2 = k_RUD[row, u, p], k_RUD[row, u, p + half]
                        total += cos_SD[distance, p] * (q1 * k1 + q2 * k2) + sin_SD[distance, p] * (q2 * k1 - q1 * k2)
                    scores_RGTU[row, g, t, u] = total
