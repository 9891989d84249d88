"""How attention's kernel cuts its work: as a card is quickest with, found on the first chunk that keeps all of it busy.

A tile's sizes decide speed and the last digits alone. `triton.autotune` tries one kernel; here a second one depends on
the tile as well, which lists the contested keys that its queries see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Any, Literal

import torch
from triton.runtime.errors import OutOfResources

from kvstream.engine.backends.cuda.timing import CLEARLY, timed
from kvstream.engine.lack_of_memory import lacks_memory
from kvstream.engine.notes import note

Kind = Literal["causal", "band", "contested", "rank"]
BUSY = 3  # programs for each multiprocessor, of the largest tiles, from which on tiles can be told apart


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
meanwhile: dict[tuple[Any, ...], Tiles] = {}  # the same, until there is enough to do


def in_tiles(run: Run, kind: Kind, queries_BHTD: torch.Tensor) -> torch.Tensor:
    """Answer these queries in the tiles that suit a card: what `run`, which changes nothing, returns for them."""
    *rows, T, D = queries_BHTD.shape
    key = queries_BHTD.device, queries_BHTD.dtype, kind, D
    known, tried = chosen, candidates(queries_BHTD.dtype, kind, D, queries_BHTD.device)
    if key not in chosen:
        programs = prod(rows) * (T // max(tiles.queries for tiles in tried))
        if programs < BUSY * processors(queries_BHTD.device):
            known = meanwhile
        else:
            chosen[key] = _quickest(run, tried, key)
    # Another chunk may need more than that which told.
    known[key], output = _first(run, (known[key],) if key in known else tried)
    return output


@cache
def candidates(dtype: torch.dtype, kind: Kind, head_size: int, device: torch.device) -> tuple[Tiles, ...]:
    """List tiles that fit into a multiprocessor's shared memory, as far as can be told before they are tried."""
    limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    size, head_size = dtype.itemsize, 1 << (head_size - 1).bit_length()
    seen: Kind = "band" if kind == "contested" else kind  # the same are tried, but another kernel is timed

    def fits(tiles: Tiles) -> bool:
        queries = tiles.queries * (head_size + tiles.keys)
        return bool(size * (queries + 2 * tiles.stages * tiles.keys * head_size) <= limit)

    def fitting(tiles: Tiles) -> Tiles:
        tiles = next(filter(fits, shrinking(tiles)), tiles)
        return replace(tiles, warps=8) if tiles.queries * head_size > 128 * 64 else tiles

    return tuple(dict.fromkeys(map(fitting, CANDIDATES[size, seen])))


def shrinking(tiles: Tiles) -> Iterator[Tiles]:
    """Yield these tiles, and then ever smaller ones."""
    each: Tiles | None = tiles
    while each:
        yield each
        each = each.smaller()


def _held(run: Run, tiles: Tiles) -> tuple[Tiles, torch.Tensor]:
    """Run with these tiles, or the first smaller ones that a card can hold."""
    *larger, smallest = shrinking(tiles)
    for each in larger:
        with suppress(OutOfResources):  # nothing was launched
            return each, run(each)
    return smallest, run(smallest)


def _first(run: Run, tried: tuple[Tiles, ...]) -> tuple[Tiles, torch.Tensor]:
    """Run with the first of these for which there is room: what threads cannot keep in registers takes memory."""
    *others, last = tried
    for each in others:
        try:
            return _held(run, each)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
    return _held(run, last)


def _quickest(run: Run, tried: tuple[Tiles, ...], key: tuple[Any, ...]) -> Tiles:
    """Time what a card holds of these, and say which it is: the first, unless another is clearly quicker."""
    taken: dict[Tiles, float] = {}
    for place in range(len(tried)):
        try:
            tiles, _ = _first(run, tried[place:])
        except RuntimeError as error:
            if taken and lacks_memory(error):
                break
            raise
        if tiles not in taken:
            taken[tiles] = timed(partial(run, tiles), key[0])
    first, best = next(iter(taken)), min(taken, key=lambda tiles: taken[tiles])
    if taken[best] > CLEARLY * taken[first]:
        best = first
    device, dtype, kind, head_size = key
    what = f"{kind} attention in {str(dtype).removeprefix('torch.')}, heads of {head_size}"
    size = f"tiles of {best.queries} queries and {best.keys} keys"
    note(f"{torch.cuda.get_device_name(device)}: {what}: {size}, of {len(taken)} that were timed")
    return best


def processors(device: torch.device) -> int:
    """How many multiprocessors a card has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
