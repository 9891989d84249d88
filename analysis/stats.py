"""Intervals over documents. Tokens inside a document are correlated, so the document is the unit that is resampled.

Each policy is paired with `full` on the same document. From five documents on: a 95 % BCa bootstrap interval
(https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.bootstrap.html). Below that no interval is claimed;
the smallest and largest per-document change are given instead, and named as such. Knows no SQL and no files.
"""

import warnings
import zlib
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import DegenerateDataWarning, bootstrap

MIN_DOCUMENTS = 5
CONFIDENCE = 0.95
RESAMPLES = 4999
Statistic = Callable[..., Any]
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("setting", "policy")]
    + [("length", pa.int64()), ("spread", pa.string())]
    + [
        (f"{name}_{end}", pa.float64())
        for name in ("ppl_change", "ppl_mean_change", "points")
        for end in ("low", "high")
    ]
)


def ppl_change(nll: Any, n: Any, hits: Any, full_nll: Any, full_n: Any, full_hits: Any, axis: int = -1) -> Any:  # noqa: ARG001
    """Corpus perplexity against full, as a fraction: exp of the difference of mean losses, minus one."""
    return np.exp(nll.sum(axis) / n.sum(axis) - full_nll.sum(axis) / full_n.sum(axis)) - 1


def ppl_mean_change(nll: Any, n: Any, hits: Any, full_nll: Any, full_n: Any, full_hits: Any, axis: int = -1) -> Any:  # noqa: ARG001
    """Mean of per-document perplexities against full's, as a fraction."""
    return np.exp(nll / n).mean(axis) / np.exp(full_nll / full_n).mean(axis) - 1


def points(nll: Any, n: Any, hits: Any, full_nll: Any, full_n: Any, full_hits: Any, axis: int = -1) -> Any:  # noqa: ARG001
    """Accuracy against full, in percentage points."""
    return 100 * (hits.sum(axis) / n.sum(axis) - full_hits.sum(axis) / full_n.sum(axis))


STATISTICS: tuple[Statistic, ...] = (ppl_change, ppl_mean_change, points)


def intervals(documents: Iterable[dict[str, Any]]) -> pa.Table:
    """Spread of each (setting, policy, length) over its paired documents; rows must come sorted by these three."""
    found = []
    for (setting, policy, length), group in groupby(
        documents, lambda row: (row["setting"], row["policy"], row["length"])
    ):
        paired = [row for row in group if row["paired"]]
        if not paired or paired[0]["policy_name"] == "full":
            continue
        names = ("nll_sum", "n", "correct", "full_nll_sum", "full_n", "full_correct")
        columns = [np.array([row[name] for row in paired], dtype=np.float64) for name in names]
        row: dict[str, Any] = {"setting": setting, "policy": policy, "length": length}
        row["spread"] = "interval" if len(paired) >= MIN_DOCUMENTS else "range"
        for statistic in STATISTICS:
            seed = zlib.crc32(f"{setting}|{policy}|{length}|{statistic.__name__}".encode())
            row[f"{statistic.__name__}_low"], row[f"{statistic.__name__}_high"] = spread(statistic, columns, seed)
        found.append(row)
    return pa.Table.from_pylist(found, schema=SCHEMA)


def spread(statistic: Statistic, columns: list[Any], seed: int) -> tuple[float | None, float | None]:
    """Low and high end: a paired BCa interval, or below MIN_DOCUMENTS the range of the statistic over documents."""
    each = statistic(*(column[:, None] for column in columns))
    if len(each) < MIN_DOCUMENTS or np.ptp(each) == 0:
        return float(each.min()), float(each.max())
    options = {"paired": True, "vectorized": True, "method": "BCa", "confidence_level": CONFIDENCE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # it returns NaN then, and no interval is given
        result = bootstrap(columns, statistic, n_resamples=RESAMPLES, rng=np.random.default_rng(seed), **options)
    low, high = (float(end) for end in result.confidence_interval)
    return (low, high) if np.isfinite([low, high]).all() else (None, None)
