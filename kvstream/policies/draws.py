"""Counter-based random draws: each a function of its coordinates alone, so no order of evaluation can change one.

The generator is SplitMix64's finaliser chained over the coordinates (https://doi.org/10.1145/2660193.2660195).
"""

import hashlib

import numpy as np


def uniform_ranks(seed: int, layer: int, heads: int, steps: range, outcomes: int) -> np.ndarray:
    """Draw ranks in 0 … outcomes−1 for each head and step: int64, shape (heads, len(steps)).

    The high 32 bits of the hash are scaled to the number of outcomes: the bias is below outcomes / 2³².
    """
    head_H1 = np.arange(heads, dtype=np.uint64)[:, None]
    step_T = np.arange(steps.start, steps.stop, dtype=np.uint64)
    hashed = _mix(_mix(_mix(_mix(np.array(seed, np.uint64)) ^ np.uint64(layer)) ^ head_H1) ^ step_T)
    return ((hashed >> np.uint64(32)) * np.uint64(outcomes) >> np.uint64(32)).astype(np.int64)


def derived_seed(seed: int, document: str) -> int:
    """Mix a document's name into a policy's seed, so that documents draw independently."""
    digest = hashlib.sha256(f"{seed}\0{document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
