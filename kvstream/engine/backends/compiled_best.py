"""The highest logit of each token in one compiled pass, which takes no longer than finding the maximum alone.

Shape legend: T tokens, V a block of the vocabulary.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numba
import torch

from kvstream.engine.backends.pace import pool
from kvstream.engine.vocabulary_blocks import Best

LEAST_TOKENS = 64  # of a thread: fewer are done sooner than handed over


class CompiledBest(Best):
    """`Best` on a CPU, tokens spread over torch's threads."""

    def look(self, logits_VT: torch.Tensor, start: int) -> None:
        """Look at a block; see `Best.look`."""
        tokens = logits_VT.shape[1]
        arrays = [x.numpy() for x in (logits_VT, self.own_T, self.highest_T, self.top_T, self.above_T)]
        threads = min(torch.get_num_threads(), max(1, tokens // LEAST_TOKENS))
        bounds = [tokens * n // threads for n in range(threads + 1)]
        pieces = pairwise(bounds)
        if threads == 1:
            _look_at(arrays, start, (0, tokens))
        else:
            list(pool(threads).map(lambda piece: _look_at(arrays, start, piece), pieces))


def _look_at(arrays: list[Any], start: int, piece: tuple[int, int]) -> None:
    logits_VT, own_T, highest_T, top_T, above_T = arrays
    _look(logits_VT, own_T, highest_T, top_T, above_T, start, *piece)


@numba.njit(cache=True, nogil=True)
def _look(
    logits_VT: Any, own_T: Any, highest_T: Any, top_T: Any, above_T: Any, start: int, first: int, stop: int
) -> None:
    for v in range(logits_VT.shape[0]):
        for t in range(first, stop):
            logit, highest = logits_VT[v, t], highest_T[t]
            above_T[t] += logit > own_T[t]
            higher = logit > highest
            top_T[t] = start + v if higher else top_T[t]
            highest_T[t] = logit if higher else highest
