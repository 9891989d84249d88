"""How many threads should a cell take? Few threads for many cells at once, or many for few: a machine's own answer.

Cores, caches and memory decide, so candidates are tried on the first text for some seconds each. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.grid.cells import QualityCell
from kvstream.sweep.cluster import Node, Slots

WORTH_PACING_S = 300.0  # of estimated work: below, measuring costs more than it can gain
GUESSED_FLOPS = 5e10  # per CPU core and second


def splits(slots: Slots, nodes: Sequence[Node], cells: Sequence[QualityCell]) -> list[Slots]:
    """List the ways to divide CPUs that give every slot a cell; only the one given where nothing is to be chosen."""
    cores = sum(node.cores for node in nodes)
    work = sum(cell.tokens * cell.model.flops_per_token for cell in cells) / (GUESSED_FLOPS * cores)
    whole_chunks = cells[0].tokens > CHUNK_SIZE
    if slots.device != "cpu" or slots.asked_threads or work < WORTH_PACING_S or not whole_chunks:
        return [slots]
    most = max(node.cores for node in nodes)
    threads = [1 << power for power in range(most.bit_length())]
    ways = [replace(slots, threads=each, count=sum(node.cores // each for node in nodes)) for each in threads]
    return [way for way in ways if 0 < way.count <= len(cells)] or [slots]


def together(paces: Sequence[Sequence[float]]) -> float:
    """Tokens per second of replays that ran at once, from the times at which each finished its chunks.

    Counted is the time in which all of them ran, and of chunks at its ends the share that lies within.
    """
    start, end = max(pace[0] for pace in paces), min(pace[-1] for pace in paces)
    if end <= start:
        return 0.0
    chunks = sum(np.diff(np.interp([start, end], pace, range(len(pace))))[0] for pace in paces)
    return float(chunks * CHUNK_SIZE / (end - start))
