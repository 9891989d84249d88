"""How well tokens were predicted, from rows of logits that are read once: nothing is asked of the device.

`vocabulary_blocks` is the same in plain torch. Shape legend: T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def _score(LOGITS, TARGET, NLL, CORRECT, stride, V: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * stride
    target = tl.load(TARGET + row)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    best = tl.full([], 0, tl.int32)
    for v in range(0, V, BLOCK):
        at = v + tl.arange(0, BLOCK)
        x = tl.load(LOGITS + at, mask=at < V, other=float("-inf")).to(tl.float32)
        here = tl.max(x, 0)
        best = tl.where(here > top, tl.min(tl.where(x == here, at, V), 0), best)
        higher = tl.maximum(top, here)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(x - safe), 0)
        top = higher
    own = tl.load(LOGITS + target).to(tl.float32)
    nll = tl.log(total) + (top - own)
    tl.store(NLL + row, nll)
    tl.store(CORRECT + row, (best == target) & (nll == nll))


def scored(
    head: nn.Linear, hidden_TE: torch.Tensor, targets_T: torch.Tensor, logits_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """−ln p in nats, float32, and whether the argmax, the first of equals, was the token: (T,) each.

    logits_bytes: of logits that exist at once.
    """
    T, V = len(targets_T), len(head.weight)
    targets_T = targets_T.contiguous()  # one token of several texts lies apart
    nll = torch.empty(T, device=hidden_TE.device)
    correct = torch.empty(T, dtype=torch.bool, device=hidden_TE.device)
    rows = max(64, logits_bytes // (V * hidden_TE.element_size()) // 64 * 64)
    for low in range(0, T, rows):
        logits = head(hidden_TE[low : low + rows])
        _score[(len(logits),)](
            logits, targets_T[low:], nll[low:], correct[low:], logits.stride(0), V=V, BLOCK=4096, num_warps=8
        )
    return nll, correct
