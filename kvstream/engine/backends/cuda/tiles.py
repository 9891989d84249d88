"""How attention's kernel cuts its work: as measured on an H100, smaller where another head or card needs it.

A tile's sizes decide speed alone, not what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

Kind = Literal["causal", "band", "rank"]


@dataclass(frozen=True)
class Tiles:
    """Queries, keys and contested keys at a time; warps that share a tile; loads under way at once."""

    queries: int
    keys: int
    contested: int
    warps: int
    stages: int

    def smaller(self) -> Tiles | None:
        """Half as many keys or queries at a time, whichever are more; None where that is too few for a product."""
        if max(self.queries, self.keys) <= 16:
            return None
        if self.keys >= self.queries:
            return replace(self, keys=self.keys // 2, contested=min(self.contested, self.keys // 2))
        return replace(self, queries=self.queries // 2)


# By bytes of a number, and by how keys are seen; the fastest of some dozen at 8,192 tokens of 8 heads of 64.
MEASURED: dict[tuple[int, Kind], Tiles] = {
    (4, "causal"): Tiles(128, 64, 32, 8, 2),
    (4, "band"): Tiles(128, 32, 32, 4, 2),
    (4, "rank"): Tiles(64, 64, 32, 4, 2),
    (2, "causal"): Tiles(64, 128, 64, 4, 3),
    (2, "band"): Tiles(128, 64, 64, 4, 3),
    (2, "rank"): Tiles(64, 64, 32, 4, 3),
}


@cache
def tiles_of(dtype: torch.dtype, kind: Kind, head_size: int, device: torch.device) -> Tiles:
    """Choose tiles that fit into a multiprocessor's shared memory, as far as can be told before they are tried."""
    tiles, size = MEASURED[dtype.itemsize, kind], dtype.itemsize
    limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    head_size = 1 << (head_size - 1).bit_length()
    for each in shrinking(tiles):
        queries = each.queries * (head_size + each.keys)
        if size * (queries + 2 * each.stages * each.keys * head_size) <= limit:
            tiles = each
            break
    return replace(tiles, warps=8) if tiles.queries * head_size > 128 * 64 else tiles


def shrinking(tiles: Tiles) -> Iterator[Tiles]:
    """Yield these tiles, and then ever smaller ones."""
    each: Tiles | None = tiles
    while each:
        yield each
        each = each.smaller()
