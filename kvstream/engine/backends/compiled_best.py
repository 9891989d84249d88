"""The highest logit of each token, whose it is, and how many are above a given one, in one compiled pass.

Shape legend: T tokens, V a block of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

from kvstream.engine.backends.pace import PACES
from kvstream.engine.vocabulary_blocks import Best


class CompiledBest(Best):
    """`Best` on a CPU, tokens spread over as many of torch's threads as are worth it."""

    def look(self, logits_VT: torch.Tensor, start: int) -> None:
        """Look at a block; see `Best.look`."""
        logits, own, highest, top, above = (
            x.numpy() for x in (logits_VT, self.own_T, self.highest_T, self.top_T, self.above_T)
        )

        def some(tokens: slice) -> None:
            _look(logits, own, highest, top, above, start, tokens.start, tokens.stop)

        PACES["look"].spread(some, logits.shape[1], logits.size)


@numba.njit(cache=True, nogil=True)
def _look(
    logits_VT: Any, own_T: Any, highest_T: Any, top_T: Any, above_T: Any, start: int, first: int, stop: int
) -> None:
    for v in range(logits_VT.shape[0]):
        for t in range(np.uint64(first), np.uint64(stop)):  # unsigned: an index below 0 would count from the end
            logit, highest = logits_VT[v, t], highest_T[t]
            above_T[t] += np.int32(logit > own_T[t])
            higher = logit > highest
            top_T[t] = np.int32(start + v) if higher else top_T[t]
            highest_T[t] = logit if higher else highest
