"""The worst tokens of a text: those furthest from the full cache, the first of equals first, with their words."""

import math
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa

from kvstream.inputs.documents import Document
from kvstream.sweep.worst_tokens import worst_tokens

TOKENS = 120
DOCUMENT = Document(
    "d", np.arange(TOKENS, dtype=np.int32), "", words=lambda ids: "".join(f" w{number}" for number in ids)
)


def rows(kl, nll):
    columns = {"position": pa.array(range(1, len(kl) + 1), pa.int32())}
    columns |= {name: pa.array(held, pa.float32()) for name, held in (("kl_nats", kl), ("nll_nats", nll))}
    return pa.table(columns)


def said(numbers):
    return "".join(f" w{number}" for number in numbers)


def test_they_are_the_highest_with_their_words():
    draw = random.Random(7)
    kl = [draw.choice((0.0, 0.25, 0.5, 1.0, 2.0)) for _ in range(TOKENS - 1)]  # many are equal
    nll = [draw.randrange(64) / 8 for _ in kl]
    expected = sorted(((-one, place) for place, one in enumerate(kl, 1)))[:20]
    found = worst_tokens(rows(kl, nll), DOCUMENT)
    assert [(-one["kl_nats"], one["position"]) for one in found] == expected
    for one in found:
        at = one["position"]
        assert one["nll_nats"] == nll[at - 1]
        assert one["before"] == said(range(max(0, at - 40), at))
        assert one["token"] == said([at])
        assert one["after"] == said(range(at + 1, min(TOKENS, at + 13)))


def test_what_is_no_finite_number_is_not_among_them():
    """A record is JSON, which has no such numbers."""
    nan, inf = math.nan, math.inf
    found = worst_tokens(rows([nan, 1.0, inf, 3.0, 2.0, 0.5], [1.0, nan, 1.0, inf, 4.0, 1.0]), DOCUMENT)
    assert [(one["position"], one["kl_nats"], one["nll_nats"]) for one in found] == [(5, 2.0, 4.0), (6, 0.5, 1.0)]


def test_rounding_is_nobodys_worst_and_what_was_not_compared_has_none():
    assert worst_tokens(rows([1e-6, 0.0], [1.0, 1.0]), DOCUMENT) == []
    assert worst_tokens(rows([None, None], [1.0, 1.0]), DOCUMENT) == []
    assert worst_tokens(rows([], []), DOCUMENT) == []
    assert worst_tokens(rows([2.0], [1.0]), replace(DOCUMENT, words=None)) == []
