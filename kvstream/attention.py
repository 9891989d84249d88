"""The hook into transformers, and the products that attention consists of.

transformers lets a model's attention be any registered function. Ours hands queries to the layer of a
`KVStreamCache`, which knows what is still cached; called with any other cache it does what "sdpa" does, so a model
that was once used with kvstream can still be used without.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S keys, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "kvstream"


@dataclass(frozen=True)
class Part:
    """Some keys as the queries see them: scores of shape (B, H, G, T, S), values of shape (B, H, S, D)."""

    scores_BHGTS: torch.Tensor
    values_BHSD: torch.Tensor


def scores(
    queries_BHGTD: torch.Tensor, keys_BHSD: torch.Tensor, scaling: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled scores of shape (B, H, G, T, S). Where `mask`, broadcastable to (B, H, T, S), is False: −inf."""
    B, H, G, T, D = queries_BHGTD.shape
    S = keys_BHSD.shape[2]
    queries = queries_BHGTD.reshape(B * H, G * T, D)
    keys = keys_BHSD.reshape(B * H, S, D).transpose(1, 2)
    # beta=0 ignores the first argument: one pass for product and scaling.
    product = torch.baddbmm(queries.new_empty(()), queries, keys, beta=0, alpha=scaling).view(B, H, G, T, S)
    return product if mask is None else product.masked_fill_(~mask.unsqueeze(-3), -torch.inf)


def attend(parts: list[Part]) -> torch.Tensor:
    """Softmax over the keys of all parts together, then the weighted values: shape (B, H, G, T, D).

    The softmax of half-precision scores runs in float32.
    """
    joined = parts[0].scores_BHGTS if len(parts) == 1 else torch.cat([part.scores_BHGTS for part in parts], dim=-1)
    dtype = torch.promote_types(joined.dtype, torch.float32)
    weights = torch.softmax(joined, dim=-1, dtype=dtype).to(joined.dtype)
    B, H, G, T, _ = weights.shape
    output = None
    for part, share in zip(parts, weights.split([part.scores_BHGTS.shape[-1] for part in parts], dim=-1)):
        values = part.values_BHSD
        product = share.reshape(B, H, G * T, -1) @ values
        output = product if output is None else output.add_(product)
    assert output is not None
    return output.view(B, H, G, T, -1)


@runtime_checkable
class CacheLayer(Protocol):
    """What the hook needs of a layer's cache: it took this call's keys and values in `update`, now come the queries."""

    def attend(self, queries_BHTD: torch.Tensor, scaling: float, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Answer queries (B, query heads, T, D): shape (B, T, query heads, D)."""
        ...


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if not isinstance(key, CacheLayer):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    for feature in ("sliding_window", "softcap"):
        if kwargs.get(feature) is not None:
            raise ValueError(
                f"model: its attention uses {feature}={kwargs[feature]}, which kvstream does not compute; choose a "
                "model with full attention such as Pythia, Llama or Qwen2"
            )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return key.attend(query, scaling, position_ids), None


def _mask(*, kv_length: int, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    if kv_length:  # another cache, or none: mask as sdpa does
        return sdpa_mask(kv_length=kv_length, attention_mask=attention_mask, **kwargs)
    if attention_mask is not None and not attention_mask.bool().all():
        raise ValueError("attention_mask: padding is not supported by KVStreamCache; batch texts of equal length")
    return None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
