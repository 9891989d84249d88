"""Policies that take tokens in turn, on numbers small enough to follow by hand; plainly and compiled.

Each key is the logarithm of a whole number w, and each query is 1, so a token's attention to token j is w_j over the
sum of the w of all tokens that it sees.
"""

from math import log

import pytest
import torch

from kvstream import H2O, TOVA, KeyDiff, L2Compress, SnapKV
from kvstream.engine.backends.compiled_scan import scan_compiled
from kvstream.engine.backends.scan import scan_plainly
from kvstream.engine.scanned_layer import Arriving, ScannedLayer
from kvstream.engine.shared_tables import SharedTables

W = (4, 1, 2, 1, 8, 5, 1, 1)
SCANS = pytest.mark.parametrize("scan", [scan_plainly, scan_compiled])


def kept(policy, scan, keys_TD, tokens):
    """The tokens that one head keeps after each of the first `tokens`."""
    keys_BHTD = torch.tensor(keys_TD, dtype=torch.float64)[None, None]
    layer = ScannedLayer(SharedTables(None), policy, 0)
    layer.lazy_initialization(keys_BHTD, keys_BHTD)
    compared = policy.scored_by == "similarity"
    first_BHT = torch.zeros(keys_BHTD.shape[:3], dtype=torch.float64)
    if policy.scored_by == "token":
        first_BHT = policy.token_scores(keys_BHTD, keys_BHTD)
    found = []
    for t in range(tokens):
        key = keys_BHTD[:, :, t : t + 1]
        scored = {"apart_BHTD": key} if compared else {"score_BHT": first_BHT[..., t : t + 1]}
        arriving = Arriving(torch.ones_like(key)[:, :, None], key, key, **scored)
        scan(layer, arriving, 1.0)
        layer.seen += 1
        slots = layer.order_BUS[0, 0, : layer.held(layer.seen)]
        found.append(layer.token_BUS[0, 0, slots].tolist())
    return found


def logs(tokens):
    return [[log(w)] for w in W[:tokens]]


@SCANS
@pytest.mark.parametrize("normalise", ["none", "age"])
def test_h2o(scan, normalise):
    # After token 3, who sees 8 in all, the sums are 0: 1 + 4/5 + 4/7 + 4/8, 1: 1/5 + 1/7 + 1/8, 2: 2/7 + 2/8.
    # Then token 4 sees 15 in all: 2 has 0.54 + 2/15, 3 has 1/8 + 1/15. Divided by age the order is the same.
    policy = H2O(3, 1, normalise=normalise, position="absolute")
    assert kept(policy, scan, logs(5), 5) == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 2, 4]]


@SCANS
def test_h2o_by_age_is_fair_to_the_young(scan):
    # After token 4 the sums are 3: 1/7 + 1/17 and 2: 1/6 + 1/7 + 1/17, the older the larger; per query that saw them
    # 3 has 0.10 and 2 has 0.12. With w of token 3 twice as large it has 2/8 + 2/18, 0.18 a query, and 2 has 0.115.
    keys = [[log(w)] for w in (4, 1, 1, 2, 10)]
    by_sum, by_age = (H2O(4, 1, normalise=how, position="absolute") for how in ("none", "age"))
    # Sums: 0 large; 1: 1/5 + 1/6 + 1/8 + 1/18 = 0.55; 2: 1/6 + 1/8 + 1/18 = 0.35; 3: 2/8 + 2/18 = 0.36.
    assert kept(by_sum, scan, keys, 5)[-1] == [0, 1, 3, 4]
    # Per query: 1: 0.55 / 4 = 0.137; 2: 0.35 / 3 = 0.116; 3: 0.36 / 2 = 0.18.
    assert kept(by_age, scan, keys, 5)[-1] == [0, 1, 3, 4]
    # One query later, with w = 1: 1 has 0.55 + 1/18 and 3 has 0.36 + 2/18; but per query 0.121 and 0.157.
    keys += [[log(1)]]
    assert kept(by_sum, scan, keys, 6)[-1] == [0, 1, 4, 5]
    assert kept(by_age, scan, keys, 6)[-1] == [0, 3, 4, 5]


@SCANS
def test_tova(scan):
    # Token 3 attends to 1 and to itself alike, 1/8: the younger leaves. Token 4 attends least to 1: 1/15.
    assert kept(TOVA(3, position="absolute"), scan, logs(5), 5)[-2:] == [[0, 1, 2], [0, 2, 4]]


@SCANS
@pytest.mark.parametrize(
    ("kernel", "first", "second"),
    [
        # Tokens 4 and 5 attend to 0 … 3 by (4, 1, 2, 1) · c; of 1 and 3 the younger leaves first. Then 6 and 7
        # attend to 0, 2, 4, 5 by (4, 2, 8, 5) · c; with what 4 and 5 gave it, 0 would be before 5.
        (1, [0, 2, 4, 5], [4, 5, 6, 7]),
        # Pooled: (5, 7, 4, 3) · c / 3. Then 6 and 7 attend to 0, 1, 4, 5 by (4, 1, 8, 5), pooled (5, 13, 14, 13).
        (3, [0, 1, 4, 5], [1, 4, 6, 7]),
    ],
)
def test_snapkv(scan, kernel, first, second):
    found = kept(SnapKV(5, 2, kernel, 2, position="absolute"), scan, logs(8), 8)
    assert found[4:6] == [[0, 1, 2, 3, 4], first]
    assert found[6:] == [[*first, 6], second]


@SCANS
def test_keydiff(scan):
    # The unit vectors of 0, 1 and 2 sum to (1.6, 1.8): by cosine (1.6, 2.4, 1.8), so 1 leaves. With 3, of length 2,
    # those of 0, 2 and 3 sum to (0, 1): 2 points there. Those of 0, 3 and 4 sum to (0.8, -0.6), which is 4.
    keys = [[1, 0], [0.6, 0.8], [0, 1], [-2, 0], [0.8, -0.6]]
    assert kept(KeyDiff(2, 0, position="absolute"), scan, keys, 5)[-3:] == [[0, 2], [0, 3], [0, 3]]


@SCANS
def test_l2_compress(scan):
    # Norms 3, 1, 2, 1, 2: with 4 held the two largest leave; then again with 1, 3, 4 and 5.
    keys = [[3], [1], [2], [1], [2], [-4]]
    found = kept(L2Compress(0.5, 4, position="absolute"), scan, keys, 6)
    assert found[2:] == [[0, 1, 2], [1, 3], [1, 3, 4], [1, 3]]
