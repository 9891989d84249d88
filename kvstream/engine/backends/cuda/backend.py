"""The CUDA backend: a layer's whole chunk in a few kernels, and scores without a question to the device.

Single tokens are the reference's, but for those of a scan, and so are chunks that the kernels cannot take (`_fits`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from triton.errors import TritonError

from kvstream.engine.backends.cuda.chunk import attend_bounded, attend_causal
from kvstream.engine.backends.cuda.contest import MOST_SEATS
from kvstream.engine.backends.cuda.scan import MOST_SLOTS, scan_in_kernel
from kvstream.engine.backends.cuda.scoring import predicted
from kvstream.engine.backends.cuda.shedding import shed_in_kernel
from kvstream.engine.backends.reference import Reference
from kvstream.engine.notes import note
from kvstream.engine.vocabulary_blocks import Predicted

MOST_OFFSET = 2**31 - 1  # kernels count the numbers of a row of the batch, and those between two rows, in 32 bits
MOST_ROWS = 65_535  # of a grid's second axis: texts × query heads
refused: set[tuple[Any, ...]] = set()  # scans that a card does not take


class Cuda(Reference):
    """Chunks of many tokens by kernels."""

    logits_bytes = 512 << 20
    tells_lifetimes = False

    def causal(
        self, layer: Any, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Answer all queries at once; see `Reference.causal`."""
        call = layer, q_BHGTD, k_BHTD, v_BHTD, scaling
        if not _fits(layer, q_BHGTD, k_BHTD, v_BHTD):
            return super().causal(*call)
        with torch.cuda.device_of(k_BHTD):
            return attend_causal(*call)

    def bounded(
        self, layer: Any, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Answer all queries at once; see `Reference.bounded`."""
        call = layer, q_BHGTD, k_BHTD, v_BHTD, scaling
        if layer.layout.contested > MOST_SEATS or not _fits(layer, q_BHGTD, k_BHTD, v_BHTD):
            return super().bounded(*call)
        with torch.cuda.device_of(k_BHTD):
            return attend_bounded(*call)

    def scan(self, layer: Any, arriving: Any, scaling: float) -> torch.Tensor:
        """Take all tokens in one kernel, if the policy is one that it knows; see `Reference.scan`."""
        if layer.policy.scores_in_python or not _scans(layer):
            return super().scan(layer, arriving, scaling)
        try:
            with torch.cuda.device_of(layer.keys):
                return scan_in_kernel(layer, arriving, scaling)
        except TritonError as error:
            _refuse(layer, error)
            return super().scan(layer, arriving, scaling)

    def shed(self, layer: Any, token: int | torch.Tensor) -> None:
        """Decide as replay does, by the same lines; see `Reference.shed`."""
        if not _scans(layer):
            super().shed(layer, token)
            return
        token_1 = torch.full((1,), token, device=layer.device) if isinstance(token, int) else token
        try:
            shed_in_kernel(layer, token_1)
        except TritonError as error:
            _refuse(layer, error)
            super().shed(layer, token)

    def predict(
        self,
        head: nn.Linear,
        hidden_TE: torch.Tensor,
        targets_T: torch.Tensor,
        *,
        more: bool = False,
        keep: bool = False,
    ) -> Predicted:
        """Read each row of logits once; see `Reference.predict`."""
        with torch.cuda.device_of(hidden_TE):
            return predicted(head, hidden_TE, targets_T, self.logits_bytes, more=more, keep=keep)


def _kind(layer: Any) -> tuple[Any, ...]:
    """What a kernel that takes a `ScannedLayer`'s tokens is compiled for."""
    return layer.policy.name, layer.full, layer.keys.shape[3], layer.keys.dtype


def _refuse(layer: Any, error: TritonError) -> None:
    """Do without kernels from here on where a card does not take one, of which nothing was launched then."""
    refused.add(_kind(layer))
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    note(f"{layer.policy}: no kernel for this card, tokens pass in Python, slowly ({reason})")


def _scans(layer: Any) -> bool:
    """Whether kernels take a `ScannedLayer`'s slots."""
    return layer.full <= MOST_SLOTS and _kind(layer) not in refused


def _fits(layer: Any, *arrived: torch.Tensor) -> bool:
    """Whether kernels can address a chunk: each head of a token in one piece, no offset beyond 32 bits, few rows.

    arrived: queries (B, H, G, T, D), and then keys and values.
    """
    B, H, G, T, D = arrived[0].shape
    held = (layer.keys.shape[2] + T) * D
    answered = T * H * G * D  # of one text, (T, query heads, D)
    furthest = max(held, answered, *(T * each.stride(-2) for each in arrived))
    return furthest <= MOST_OFFSET and B * H * G <= MOST_ROWS and all(each.stride(-1) == 1 for each in arrived)
