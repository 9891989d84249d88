"""Intervals over documents. Tokens inside a document are correlated, so the document is the unit that is resampled.

Each policy is paired with `full` on the same document, and policies with the same documents are resampled with the same
draws. From ten documents on: a 95 % BCa bootstrap interval
(https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.bootstrap.html), its level widened for few documents
(https://doi.org/10.1080/00031305.2015.1089789). Without widening BCa covers the truth in 90 % of cases at ten documents
and 93 % at thirty, with it in 93 to 95 % at either and 90 % at five, hence ten. Below that no interval is claimed;
the smallest and largest value of a document are given instead, and named as such. Knows no SQL and no files.
"""

import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import scipy  # `scipy.stats` is imported where it is used first: it takes a second

MIN_DOCUMENTS = 10
CONFIDENCE = 0.95
RESAMPLES = 4999
SUMS = ("nll_sum", "n", "correct", "full_nll_sum", "full_n", "full_correct", "kl_sum", "kl_n", "same_top")
CHANGES = ("ppl_change", "ppl_mean_change", "points", "accuracy_change")
LEVELS = ("ppl_corpus", "ppl_mean", "accuracy", "kl", "same_top")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("setting", "policy")]
    + [("length", pa.int64()), ("spread", pa.string())]
    + [(f"{name}_{end}", pa.float64()) for name in (*CHANGES, *LEVELS) for end in ("low", "high")]
)


def intervals(documents: Iterable[dict[str, Any]]) -> pa.Table:
    """Spread of each (setting, policy, length) over its paired documents; rows come sorted by setting, length, policy.

    Of `full` only the levels have one. Fractions, but for `points`, which are percentage points.
    """
    found = []
    for (setting, length), group in groupby(documents, lambda row: (row["setting"], row["length"])):
        alike: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = defaultdict(dict)
        for policy, rows in groupby((row for row in group if row["paired"]), lambda row: row["policy"]):
            mine = list(rows)
            alike[tuple(row["document"] for row in mine)][policy] = mine
        for names, policies in alike.items():
            sums_CPD = np.array([[[row[name] for row in mine] for mine in policies.values()] for name in SUMS], float)
            seed = zlib.crc32("|".join((setting, str(length), *names)).encode())
            lows_SP, highs_SP = spread(sums_CPD, seed)
            kind = "interval" if len(names) >= MIN_DOCUMENTS else "range"
            for place, policy in enumerate(policies):
                row = {"setting": setting, "policy": policy, "length": length, "spread": kind}
                for name, low, high in zip((*CHANGES, *LEVELS), lows_SP[:, place], highs_SP[:, place]):
                    known = np.isfinite([low, high]).all() and not (policy == "full" and name in CHANGES)
                    row |= {f"{name}_low": float(low), f"{name}_high": float(high)} if known else {}
                found.append(row)
    return pa.Table.from_pylist(found, schema=SCHEMA)


def spread(sums_CPD: Any, seed: int) -> tuple[Any, Any]:
    """Low and high ends, each (S, P), of CHANGES and LEVELS: paired BCa intervals, or the range over few documents.

    sums_CPD: SUMS of P policies on the same D documents.
    """
    count = sums_CPD.shape[-1]
    ppl_2PD = np.exp(sums_CPD[[0, 3]] / sums_CPD[[1, 4]])
    columns_CPD = np.concatenate([sums_CPD, ppl_2PD, np.ones_like(ppl_2PD[:1])])
    each_SPD = statistics(columns_CPD)
    lows_SP, highs_SP = each_SPD.min(-1), each_SPD.max(-1)
    if count < MIN_DOCUMENTS:
        return lows_SP, highs_SP

    def of_samples(chosen: Any, axis: int = -1) -> Any:  # noqa: ARG001
        weights_BD = np.stack([(chosen == document).sum(-1) for document in range(count)], -1)
        found_SPB = statistics(columns_CPD @ weights_BD.reshape(-1, count).T)
        # Rounded, so that each document once ties with the whole sample however the machine orders its sums.
        return np.round(found_SPB, 10).reshape(-1, *chosen.shape[:-1])

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # It returns NaN then, and no interval is given.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result = scipy.stats.bootstrap(
            (np.arange(count),),
            of_samples,
            n_resamples=RESAMPLES,
            vectorized=True,
            method="BCa",
            confidence_level=widened(count),
            rng=np.random.default_rng(seed),
        )
    constant_SP = lows_SP == highs_SP  # it never evicted: every document says the same, and so does the interval
    low_SP, high_SP = (end.reshape(lows_SP.shape) for end in result.confidence_interval)
    return np.where(constant_SP, lows_SP, low_SP), np.where(constant_SP, highs_SP, high_SP)


def statistics(sums_CPB: Any) -> Any:
    """CHANGES and LEVELS, (S, P, B), from sums over documents, (C, P, B): SUMS, two sums of perplexities, the count."""
    nll, n, hits, full_nll, full_n, full_hits, kl, compared, same, ppl, full_ppl, documents = sums_CPB
    accuracy, full_accuracy = hits / n, full_hits / full_n
    with np.errstate(divide="ignore", invalid="ignore"):  # full may have guessed nothing right: then there is none
        relative = accuracy / full_accuracy - 1
    changes = (np.exp(nll / n - full_nll / full_n) - 1, ppl / full_ppl - 1, 100 * (accuracy - full_accuracy), relative)
    return np.stack([*changes, np.exp(nll / n), ppl / documents, accuracy, kl / compared, same / compared])


def widened(count: int) -> float:
    """The level at which a bootstrap interval over `count` units covers as a t interval does at CONFIDENCE.

    A bootstrap's spread is too small by √((n − 1) / n), and its ends are a normal's, not a t's.
    """
    tail = scipy.stats.norm.cdf(-np.sqrt(count / (count - 1)) * scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return float(1 - 2 * tail)
