"""How attention's kernel cuts its work: as a card is quickest with, found on the first chunk long enough to tell.

A tile's sizes decide speed and the last digits alone. `triton.autotune` tries one kernel; here a second one depends on
the tile as well, which lists the contested keys that its queries see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any, Literal

import torch
from triton.runtime.errors import OutOfResources

from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.notes import note

Kind = Literal["causal", "band", "rank"]
ROUNDS = 5  # of which the quickest counts: whatever else a card does makes others slower


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


# What is tried, by bytes of a number and by how keys are seen. First what an H100 took least time with of some dozen,
# at 8,192 tokens of 8 heads of 64; then what a card with less shared memory or fewer registers may do better with.
CANDIDATES: dict[tuple[int, Kind], tuple[Tiles, ...]] = {
    (4, "causal"): (Tiles(128, 64, 32, 8, 2), Tiles(64, 64, 32, 4, 2), Tiles(64, 32, 32, 4, 2)),
    (4, "band"): (Tiles(128, 32, 32, 4, 2), Tiles(64, 64, 32, 4, 2), Tiles(64, 32, 32, 4, 2)),
    (4, "rank"): (Tiles(64, 64, 32, 4, 2), Tiles(64, 32, 32, 4, 2), Tiles(32, 32, 32, 4, 2)),
    (2, "causal"): (Tiles(64, 128, 64, 4, 3), Tiles(128, 64, 64, 8, 3), Tiles(64, 64, 64, 4, 2)),
    (2, "band"): (Tiles(128, 64, 64, 4, 3), Tiles(64, 128, 64, 4, 3), Tiles(64, 64, 64, 4, 2)),
    (2, "rank"): (Tiles(64, 64, 32, 4, 3), Tiles(64, 32, 32, 4, 2), Tiles(32, 32, 32, 4, 2)),
}
Run = Callable[[Tiles], torch.Tensor]
chosen: dict[tuple[Any, ...], Tiles] = {}  # by card, dtype, kind and head size
held: dict[tuple[Any, ...], Tiles] = {}  # what a card takes in place of tiles that are too large for it


def in_tiles(run: Run, kind: Kind, queries_BHTD: torch.Tensor) -> torch.Tensor:
    """Answer these queries in the tiles that suit a card: what `run`, which changes nothing, returns for them."""
    *_, T, D = queries_BHTD.shape
    key = queries_BHTD.device, queries_BHTD.dtype, kind, D
    if key not in chosen:
        tried = candidates(queries_BHTD.dtype, kind, D, queries_BHTD.device)
        if T < CHUNK_SIZE:
            return run(_holding(run, tried[0], key))
        chosen[key] = _quickest(run, tried, key)
    return run(chosen[key])


@cache
def candidates(dtype: torch.dtype, kind: Kind, head_size: int, device: torch.device) -> tuple[Tiles, ...]:
    """List tiles that fit into a multiprocessor's shared memory, as far as can be told before they are tried."""
    limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    size, head_size = dtype.itemsize, 1 << (head_size - 1).bit_length()

    def fits(tiles: Tiles) -> bool:
        queries = tiles.queries * (head_size + tiles.keys)
        return bool(size * (queries + 2 * tiles.stages * tiles.keys * head_size) <= limit)

    def fitting(tiles: Tiles) -> Tiles:
        tiles = next(filter(fits, shrinking(tiles)), tiles)
        return replace(tiles, warps=8) if tiles.queries * head_size > 128 * 64 else tiles

    return tuple(dict.fromkeys(map(fitting, CANDIDATES[size, kind])))


def shrinking(tiles: Tiles) -> Iterator[Tiles]:
    """Yield these tiles, and then ever smaller ones."""
    each: Tiles | None = tiles
    while each:
        yield each
        each = each.smaller()


def _holding(run: Run, tiles: Tiles, key: tuple[Any, ...]) -> Tiles:
    """Find tiles that a card can hold: these, or the first smaller ones."""
    if (tiles, *key) not in held:
        *larger, smallest = shrinking(tiles)
        held[tiles, *key] = next((each for each in larger if _holds(run, each)), smallest)
    return held[tiles, *key]


def _holds(run: Run, tiles: Tiles) -> bool:
    try:
        run(tiles)
    except OutOfResources:  # nothing was launched
        return False
    return True


def _quickest(run: Run, tried: tuple[Tiles, ...], key: tuple[Any, ...]) -> Tiles:
    """Time them all, and say which it is."""
    taken = {tiles: timed(partial(run, tiles)) for tiles in dict.fromkeys(_holding(run, each, key) for each in tried)}
    best = min(taken, key=lambda tiles: taken[tiles])
    device, dtype, kind, head_size = key
    what = f"{kind} attention in {str(dtype).removeprefix('torch.')}, heads of {head_size}"
    others = " and ".join(f"{taken[each] / taken[best]:.2f}" for each in taken if each is not best)
    beside = f" (others took {others} times as long)" if others else ""
    card = torch.cuda.get_device_name(device)
    note(f"{card}: {what}: tiles of {best.queries} queries and {best.keys} keys{beside}")
    return best


def timed(work: Callable[[], Any]) -> float:
    """Milliseconds that a card takes for work which was done once before."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return min(before.elapsed_time(after) for before, after in pairwise(marks))
