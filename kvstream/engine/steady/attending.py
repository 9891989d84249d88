"""How a steady step attends: by fused attention, or on a GPU in float32 by products where those are quicker.

Fused attention for float32 may leave all of a head's keys to one multiprocessor; products spread them over the card. So
a long full cache would look slow that is not, and a bounded one beside it quick. Which is quicker is timed on the card,
once for each power of two that a cache grows to. Products in half precision or TF32 would round the scores: not taken.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T one token, S slots, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvstream.engine.backends.cuda import timing
from kvstream.engine.backends.reference import scaled_scores, weigh
from kvstream.engine.notes import note
from kvstream.engine.widest import float32_products

Attention = Callable[..., torch.Tensor]  # queries (B, H, G, 1, D), keys, values, scaling, bias → as queries
chosen: dict[tuple[Any, ...], Attention] = {}


def fused(
    q_BHGTD: torch.Tensor,
    keys_BHSD: torch.Tensor,
    values_BHSD: torch.Tensor,
    scaling: float,
    bias_1S: torch.Tensor | None = None,
) -> torch.Tensor:
    """Answer one token's queries by the fused attention there is: as many queries per kv-head as share it."""
    output_BHGD = scaled_dot_product_attention(q_BHGTD[..., 0, :], keys_BHSD, values_BHSD, bias_1S, scale=scaling)
    return output_BHGD[..., None, :]


def by_products(
    q_BHGTD: torch.Tensor,
    keys_BHSD: torch.Tensor,
    values_BHSD: torch.Tensor,
    scaling: float,
    bias_1S: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same by a product with the keys, softmax, and a product with the values."""
    scores_BHGTS = scaled_scores(q_BHGTD, keys_BHSD, scaling)
    return weigh(scores_BHGTS if bias_1S is None else scores_BHGTS + bias_1S, values_BHSD)


def attention_for(query_heads: int, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor, biased: bool) -> Attention:
    """Choose how so many heads attend to these keys; a step that is under way must not ask."""
    device, dtype, (B, H, S, D) = keys_BHSD.device, keys_BHSD.dtype, keys_BHSD.shape
    if device.type != "cuda" or dtype != torch.float32 or float32_products("cuda") != "ieee":
        return fused
    key = device, B, H, query_heads, S.bit_length(), D, biased
    if key not in chosen:
        q_BHGTD = keys_BHSD.new_zeros(B, H, max(1, query_heads // H), 1, D)
        given = q_BHGTD, keys_BHSD, values_BHSD, 1.0, keys_BHSD.new_zeros(1, S) if biased else None
        taken = {}
        for way in (fused, by_products):
            way(*given)  # what libraries do once
            taken[way] = timing.timed(partial(way, *given), device)
        chosen[key] = by_products if taken[by_products] < timing.CLEARLY * taken[fused] else fused
        if chosen[key] is by_products:
            ms, other_ms = taken[by_products], taken[fused]
            about = f"{S:,} slots of {H} heads of {D} in float32, batch {B}"
            note(f"decoding, {about}: products ({ms:.3f} ms) in place of fused attention ({other_ms:.3f} ms)")
    return chosen[key]
