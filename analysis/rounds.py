"""Intervals over rounds of latency. Contenders take turns within a round, so a round's drift is common to all of them.

A ratio is taken within each round, a policy's seconds over full's (or over its twin's that does not evict) in the same
round; the median of these ratios is what the report gives, with a 95 % percentile bootstrap interval over rounds
(https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.bootstrap.html), its level widened for few rounds as
in `stats`: it covers the truth in 94 to 98 % of cases from five rounds on. Below that no interval is claimed. All
contenders of a cell are resampled at once. Knows no SQL and no files.
"""

import zlib
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import bootstrap

from analysis.stats import widened

MIN_ROUNDS = 5
RESAMPLES = 1999
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
            lows, highs = spread(np.array(list(ratios.values())), zlib.crc32(f"{cell}|{phase}|{against}".encode()))
            for label, low, high in zip(ratios, lows, highs):
                found.append(dict(zip(SCHEMA.names, (cell, label, phase, against, float(low), float(high)))))
    return pa.Table.from_pylist(found, schema=SCHEMA)


def spread(ratios_CR: Any, seed: int) -> tuple[Any, Any]:
    """Low and high end of the median over rounds R of each contender C, all resampled with the same draws."""
    result = bootstrap(
        (ratios_CR,),
        np.median,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // ratios_CR.size),
        vectorized=True,
        axis=-1,
        method="percentile",
        confidence_level=widened(ratios_CR.shape[-1]),
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high
