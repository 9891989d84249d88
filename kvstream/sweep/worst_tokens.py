"""The tokens at which a policy is furthest from the full cache, with the words around them: what was forgotten?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from kvstream.inputs.documents import Document

MOST = 20
BEFORE, AFTER = 40, 12  # tokens of context
LEAST_NATS = 1e-5  # below is rounding


def worst_tokens(rows: pa.Table, document: Document) -> list[dict[str, Any]]:
    """The 20 tokens of a document with the highest KL, the first of equals first, as plain JSON values.

    Each with its position, KL and loss in nats, and as text what stands before it, the token itself, and what follows.
    Empty where nothing was compared with full, or the words of the document's tokens are not known. Tokens whose KL or
    loss is no finite number are not among them: the report counts those.
    """
    if document.words is None or not rows.num_rows or rows["kl_nats"].null_count:
        return []
    position_N, kl_N, nll_N = (rows[name].to_numpy() for name in ("position", "kl_nats", "nll_nats"))
    known_N = np.isfinite(kl_N) & np.isfinite(nll_N)
    order = np.lexsort((position_N, -np.where(known_N, kl_N, -1.0)))
    found, ids_T = [], document.token_ids
    for row in order[:MOST]:
        if not (known_N[row] and kl_N[row] > LEAST_NATS):
            break
        at = int(position_N[row])
        pieces = ids_T[max(0, at - BEFORE) : at], ids_T[at : at + 1], ids_T[at + 1 : at + 1 + AFTER]
        words = dict(zip(("before", "token", "after"), map(document.words, pieces)))
        found.append({"position": at, "kl_nats": float(kl_N[row]), "nll_nats": float(nll_N[row]), **words})
    return found
