"""What tests of exactness share: policies, tolerances, the oracle's answers, and pairs of parameters.

Tolerances are the contract and are not to be loosened: 1e-5 nats with float64 weights, 1e-4 with float32.
"""

from itertools import combinations, product

import numpy as np
import torch
from oracle import Spec

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.replay import replay_windows, windows

FLOAT64, FLOAT32 = torch.float64, torch.float32
TOLERANCE = {FLOAT64: 1e-5, FLOAT32: 1e-4}
MODES = ["cache", "absolute", "frozen"]
BOUNDED = [
    StreamingLLM(start_size=4, recent_size=7),
    StreamingLLM(start_size=0, recent_size=9),
    RecentOnly(window_size=10),
    FixSizeL2(budget=11, keep_ratio=0.5, strategy="keep_low"),
    FixSizeL2(budget=11, keep_ratio=0.5, strategy="keep_high"),
    FixSizeL2(budget=11, keep_ratio=0.5, strategy="random", seed=20240611),
]


def go_on(cache, model, ids_T, chunk_size=CHUNK_SIZE):
    """Losses of tokens, but of the first, that follow those which a cache has seen."""
    return torch.cat([part.nll_nats[0] for part in replay_windows(model, windows([ids_T[None]], chunk_size), cache)])


def spec_of(policy) -> Spec:
    """Say a kvstream policy in the oracle's words."""
    if isinstance(policy, Full):
        return Spec()
    axes = {"position": policy.position, "skip_layers": tuple(policy.skip_layers)}
    if isinstance(policy, StreamingLLM):
        return Spec("streaming_llm", sinks=policy.start_size, recent=policy.recent_size, **axes)
    if isinstance(policy, RecentOnly):
        return Spec("recent_only", recent=policy.window_size, **axes)
    fields = ("budget", "keep_ratio", "strategy", "seed")
    return Spec("fix_size_l2", **{field: getattr(policy, field) for field in fields}, **axes)


def assert_close(ours: torch.Tensor, truth, tolerance: float, what: str = "") -> None:
    """Fail, naming the worst token, if losses differ by more than the tolerance."""
    ours, truth = np.asarray(ours, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    assert ours.shape == truth.shape, what
    off = np.abs(ours - truth)
    worst = int(off.argmax())
    assert off[worst] <= tolerance, f"{what}: |Δnll| = {off[worst]:.2e} at t = {worst}"


def every_pair(*axes: list) -> list[tuple]:
    """Few combinations, one value of each axis, in which every two values of two axes meet; always the same.

    Each next one is that of the whole product which shows most pairs not seen before.
    """
    everything = list(product(*(range(len(axis)) for axis in axes)))
    places = list(combinations(range(len(axes)), 2))
    missing = {(a, b, one[a], one[b]) for one in everything for a, b in places}
    chosen = []
    while missing:
        best = max(everything, key=lambda one: sum((a, b, one[a], one[b]) in missing for a, b in places))
        missing -= {(a, b, best[a], best[b]) for a, b in places}
        chosen.append(tuple(axis[index] for axis, index in zip(axes, best)))
    for a, b in places:
        assert len({(repr(one[a]), repr(one[b])) for one in chosen}) == len(axes[a]) * len(axes[b])
    return chosen
