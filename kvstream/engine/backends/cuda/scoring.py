"""What tokens' logits say, from rows of logits that are read once: nothing is asked of the device.

`vocabulary_blocks` is the same in plain torch. Shape legend: T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn

from kvstream.engine.vocabulary_blocks import Predicted

WIDENED = 16_384  # rows


@triton.jit
def _predict(LOGITS, TARGET, NLL, TOP, ABOVE, LOG_SUM, stride, V: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * stride
    own = tl.load(LOGITS + tl.load(TARGET + row)).to(tl.float32)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    best = tl.full([], 0, tl.int32)
    above = tl.full([], 0, tl.int32)
    for v in range(0, V, BLOCK):
        at = v + tl.arange(0, BLOCK)
        x = tl.load(LOGITS + at, mask=at < V, other=float("-inf")).to(tl.float32)
        here = tl.max(x, 0)
        best = tl.where(here > top, tl.min(tl.where(x == here, at, V), 0), best)
        above += tl.sum((x > own).to(tl.int32), 0)
        higher = tl.maximum(top, here)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(x - safe), 0)
        top = higher
    tl.store(NLL + row, tl.log(total) + (top - own))
    tl.store(TOP + row, best.to(tl.int64))
    tl.store(ABOVE + row, above.to(tl.int64))
    tl.store(LOG_SUM + row, tl.log(total.to(tl.float64)) + top.to(tl.float64))


def parts_of(vocabulary: int) -> list[slice]:
    """Stretches of the vocabulary whose rows of the head are widened at a time, as not all of them should be."""
    return [slice(start, start + WIDENED) for start in range(0, vocabulary, WIDENED)]


def unrounded(head: nn.Linear, hidden_TE: torch.Tensor) -> torch.Tensor:
    """Logits in float32, (T, V), of a head in half precision."""
    logits_TV = hidden_TE.new_empty(len(hidden_TE), len(head.weight), dtype=torch.float32)
    for part in parts_of(len(head.weight)):
        logits_TV[:, part] = hidden_TE.float() @ head.weight[part].float().t()
    return logits_TV if head.bias is None else logits_TV.add_(head.bias)


def predicted(
    head: nn.Linear,
    hidden_TE: torch.Tensor,
    targets_T: torch.Tensor,
    logits_bytes: int,
    *,
    more: bool = False,
    keep: bool = False,
) -> Predicted:
    """What a head's logits say; logits_bytes: of logits that exist at once; see `Reference.predict`."""
    T, V = len(targets_T), len(head.weight)
    targets_T = targets_T.contiguous()  # one token of several texts lies apart
    nll, top, above, log_sum = (
        torch.empty(T, device=hidden_TE.device, dtype=dtype)
        for dtype in (torch.float32, torch.int64, torch.int64, torch.float64)
    )
    rounds = more and hidden_TE.element_size() < 4
    rows = max(64, logits_bytes // (V * (4 if rounds else hidden_TE.element_size())) // 64 * 64)
    mean = torch.empty(hidden_TE.shape, device=hidden_TE.device) if keep else None
    for low in range(0, T, rows):
        at = slice(low, low + rows)
        logits = head(hidden_TE[at])
        outputs = nll[at], top[at], above[at], log_sum[at]
        _predict[(len(logits),)](logits, targets_T[at], *outputs, logits.stride(0), V=V, BLOCK=4096, num_warps=8)
        if rounds:  # full's probabilities and ln Z are those before rounding
            logits = unrounded(head, hidden_TE[at])
            log_sum[at] = logits.logsumexp(-1).double()
        if mean is not None:
            p_TV = logits.sub_(log_sum[at, None]).exp_()
            mean[at] = sum(p_TV[:, part] @ head.weight[part].float() for part in parts_of(V))
    return Predicted(nll, top, log_sum, above, mean)
