"""How attention is computed on each kind of device: one backend each, and one function that chooses.

Nothing else in the engine asks what a device is. A backend knows products; policies, slots and positions it does not.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S or U keys, D head size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from kvstream.engine.attention import Partial
from kvstream.engine.backends.cpu import Cpu
from kvstream.engine.backends.cuda import serves
from kvstream.engine.backends.reference import Reference
from kvstream.engine.positions import Ranks
from kvstream.engine.vocabulary_blocks import Predicted


class Backend(Protocol):
    """The products that the engine consists of. All take and return tensors of one device and one dtype.

    query_block: queries that share a product with keys which all of them see. tells_lifetimes: whether chunks of a
    `BoundedLayer` ask its eviction for them.
    """

    query_block: int
    tells_lifetimes: bool

    def step(
        self, q_BHGD: torch.Tensor, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor, scaling: float, apart: int = 0
    ) -> torch.Tensor:
        """Answer one token's queries, which see every key: outputs (B, H, G, D).

        With `apart` there are twice as many queries: the second half asks the keys from slot `apart` on, in place of
        the first half, which asks those before.
        """
        ...

    def block(
        self,
        queries_BHGTD: torch.Tensor,
        keys_BHSD: torch.Tensor,
        values_BHSD: torch.Tensor,
        scaling: float,
        mask: torch.Tensor | None = None,
    ) -> Partial:
        """Answer several queries, S ≥ 1. mask: added to the scores, 0 or −inf, shape (T, S) or (B, H, T, S)."""
        ...

    def block_by_rank(
        self,
        queries_BHGTD: torch.Tensor,
        keys_BHUD: torch.Tensor,
        values_BHUD: torch.Tensor,
        enter_BHU: torch.Tensor,
        leave_BHU: torch.Tensor,
        query_T: torch.Tensor,
        scaling: float,
        ranks: Ranks,
    ) -> Partial:
        """Answer queries from keys that stand at their rank, which differs from query to query; see `positions`.

        Keys are in order of age; neither they nor the queries are rotated. A key is seen by the queries whose token
        index, in query_T, lies between its enter and leave, both included.
        """
        ...

    def seat(self, layer: Any, candidate: int, takeover: Any, newest: int, members: int) -> None:
        """Let a token of a `BoundedLayer` that lost its protection take a seat, with rank `newest` of `members` there.

        Contested keys that changed rank are turned, or the layer is marked so that the next step turns them.
        """
        ...

    def scan(self, layer: Any, arriving: Any, scaling: float) -> torch.Tensor:
        """Take tokens, `Arriving`, one after another through a `ScannedLayer`: (B, H, G, T, D)."""
        ...

    def shed(self, layer: Any, token: int | torch.Tensor) -> None:
        """Have contested tokens leave a `ScannedLayer` whose slots are all taken, until as many are left as shall be.

        The lowest scores leave first, of equals the youngest. token: the newest's index, which may be on the device.
        """
        ...

    def causal(
        self, layer: Any, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Take many tokens through a layer that holds all so far, and go on holding all: (B, H, G, T, D)."""
        ...

    def bounded(
        self, layer: Any, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Take many tokens through a `BoundedLayer` whose evictions do not depend on attention: (B, H, G, T, D)."""
        ...

    def predict(
        self,
        head: nn.Linear,
        hidden_TE: torch.Tensor,
        targets_T: torch.Tensor,
        *,
        more: bool = False,
        keep: bool = False,
    ) -> Predicted:
        """Say what a plain head predicts for targets, given the hidden states before them; see `Predicted`."""
        ...


def backend_for(device: torch.device, dtype: torch.dtype) -> Backend:
    """Choose the backend for keys of a dtype on a device: `cpu`, `cuda`, or where neither serves `reference`."""
    if device.type == "cpu":
        return Cpu(device)
    if device.type != "cuda" or not serves(device, dtype):
        return Reference(device)
    from kvstream.engine.backends.cuda.backend import Cuda  # which needs Triton

    return Cuda(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """How long an action takes, until a device has done all of it."""
    synchronize(device)
    started = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all it was given, where it has a queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
