"""Intervals over rounds of latency. Contenders take turns within a round, so a round's drift is common to all of them.

A ratio is taken within each round, a policy's seconds over full's (or over its twin's that does not evict) in the same
round; the median of these ratios is what the report gives, with a 95 % interval from their ranks, interpolated between
two neighbours (https://doi.org/10.1016/0167-7152(86)90021-0). A bootstrap of a median can only end at some rank, too,
and covers the truth in 90 or 98 % of cases where rounds are few. Below five no interval is claimed. Knows no SQL and
no files.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import scipy

from analysis.numbers.stats import CONFIDENCE

MIN_ROUNDS = 5
AGAINST = {"full": "full_ratio", "twin": "twin_ratio"}
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("cell", "label", "phase", "against")]
    + [(name, pa.float64()) for name in ("low", "high")]
)


def round_intervals(rounds: Iterable[dict[str, Any]]) -> pa.Table:
    """Interval of each ratio of each (cell, phase, label); rows must come sorted by these three and the round."""
    found = []
    for (cell, phase), of_cell in groupby(rounds, lambda row: (row["cell"], row["phase"])):
        mine = [(label, list(group)) for label, group in groupby(of_cell, lambda row: row["label"])]
        for against, field in AGAINST.items():
            ratios = {
                label: [row[field] for row in group]
                for label, group in mine
                if label != against and None not in (row[field] for row in group)
            }
            if not ratios or len(next(iter(ratios.values()))) < MIN_ROUNDS:
                continue
            lows, highs = spread(np.array(list(ratios.values())))
            for label, low, high in zip(ratios, lows, highs):
                found.append(dict(zip(SCHEMA.names, (cell, label, phase, against, float(low), float(high)))))
    return pa.Table.from_pylist(found, schema=SCHEMA)


def spread(ratios_CR: Any) -> tuple[Any, Any]:
    """Low and high end of the interval of the median over rounds R of each contender C.

    From the k-th smallest to the k-th largest of n values it holds the median with probability 1 − 2·P(B < k), B of
    Binomial(n, ½). Taken is a point between the last k that holds it often enough and the next.
    """
    count = ratios_CR.shape[-1]
    sorted_RC = np.sort(ratios_CR, axis=-1).T
    held = 1 - 2 * scipy.stats.binom.cdf(np.arange(count // 2), count, 0.5)  # with k − 1 values left out at each end
    k = max(1, int((held >= CONFIDENCE).sum()))
    inward = 0.0  # of five values all are needed, for 94 %
    if held[k - 1] > CONFIDENCE:
        share = (held[k - 1] - CONFIDENCE) / (held[k - 1] - held[k])
        inward = (count - k) * share / (k + (count - 2 * k) * share)
    return (
        (1 - inward) * sorted_RC[k - 1] + inward * sorted_RC[k],
        (1 - inward) * sorted_RC[-k] + inward * sorted_RC[-k - 1],
    )
