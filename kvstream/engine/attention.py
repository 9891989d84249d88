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
from transformers.masking_utils import causal_mask_function, sdpa_mask

NAME = "kvstream"
# What attention functions of transformers are given by models that need more than a softmax over all keys.
NOT_COMPUTED = ("sliding_window", "softcap", "logits_soft_cap", "s_aux", "sinks", "position_bias", "alibi")


class NotComputed(ValueError):
    """A model's attention is given something that kvstream does not compute."""


@dataclass(frozen=True)
class Part:
    """What some of the keys answer, as if there were no others: outputs (B, H, G, T, D) and log Σ exp (B, H, G, T).

    The latter, −inf where a query sees none of the keys, is all that `joined` needs to weigh several parts.
    """

    outputs_BHGTD: torch.Tensor
    logsumexp_BHGT: torch.Tensor


def scores(queries_BHGTD: torch.Tensor, keys_BHSD: torch.Tensor, scaling: float) -> torch.Tensor:
    """Scaled scores of shape (B, H, G, T, S)."""
    B, H, G, T, D = queries_BHGTD.shape
    S = keys_BHSD.shape[2]
    queries = queries_BHGTD.reshape(B * H, G * T, D)
    keys = keys_BHSD.reshape(B * H, S, D).transpose(1, 2)
    # beta=0 ignores the first argument: one pass for product and scaling.
    return torch.baddbmm(queries.new_empty(()), queries, keys, beta=0, alpha=scaling).view(B, H, G, T, S)


def weighed(scores_BHGTS: torch.Tensor, values_BHSD: torch.Tensor) -> torch.Tensor:
    """Softmax over the keys, then the weighted values: shape (B, H, G, T, D).

    The softmax of half-precision scores runs in float32.
    """
    B, H, G, T, S = scores_BHGTS.shape
    dtype = torch.promote_types(scores_BHGTS.dtype, torch.float32)
    weights = torch.softmax(scores_BHGTS, dim=-1, dtype=dtype).to(scores_BHGTS.dtype)
    return (weights.view(B, H, G * T, S) @ values_BHSD).view(B, H, G, T, -1)


def scored(scores_BHGTS: torch.Tensor, values_BHSD: torch.Tensor) -> Part:
    """Answer from scores, −inf where a query does not see a key."""
    total = scores_BHGTS.to(torch.promote_types(scores_BHGTS.dtype, torch.float32)).logsumexp(-1)
    blind = total.isneginf()[..., None]
    return Part(weighed(scores_BHGTS.masked_fill(blind, 0), values_BHSD), total)


def seen(
    queries_BHGTD: torch.Tensor,
    keys_BHSD: torch.Tensor,
    values_BHSD: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> Part:
    """Answer from keys, S ≥ 1. mask: added to the scores, 0 or −inf, shape (T, S) or (B, H, T, S)."""
    B, H, G, T, D = queries_BHGTD.shape
    if queries_BHGTD.device.type != "cpu":
        found = scores(queries_BHGTD, keys_BHSD, scaling)
        return scored(found if mask is None else found.add_(mask.unsqueeze(-3)), values_BHSD)
    # torch's fused kernel never writes the scores down, and says what `joined` must know.
    if mask is not None:
        mask = mask.unsqueeze(-3).expand(*mask.shape[:-2], G, *mask.shape[-2:]).flatten(-3, -2)
    outputs, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries_BHGTD.reshape(B, H, G * T, D), keys_BHSD, values_BHSD, 0.0, False, attn_mask=mask, scale=scaling
    )
    if mask is not None:  # the kernel's sum over no keys at all is 0
        total = total.masked_fill(mask.amax(-1).isneginf(), -torch.inf)
    return Part(outputs.view(B, H, G, T, D), total.view(B, H, G, T))


def joined(parts: list[Part]) -> torch.Tensor:
    """Answer from the keys of all parts together: shape (B, H, G, T, D). Every query sees a key of some part."""
    if len(parts) == 1:
        return parts[0].outputs_BHGTD
    total = parts[0].logsumexp_BHGT
    for part in parts[1:]:
        total = torch.logaddexp(total, part.logsumexp_BHGT)
    shares = [(part.logsumexp_BHGT - total).exp_().to(parts[0].outputs_BHGTD.dtype)[..., None] for part in parts]
    output = parts[0].outputs_BHGTD * shares[0]
    for part, share_BHGT1 in zip(parts[1:], shares[1:]):
        output.addcmul_(part.outputs_BHGTD, share_BHGT1)
    return output


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
    asked = {name: kwargs[name] for name in NOT_COMPUTED if kwargs.get(name) is not None}
    if attention_mask is not None:
        window = getattr(attention_mask, "window", None)
        asked |= {"sliding_window": window} if window else {"attention_mask": attention_mask}
    if asked:
        feature, value = next(iter(asked.items()))
        shown = tuple(value.shape) if isinstance(value, torch.Tensor) else value
        raise NotComputed(
            f"model: its attention uses {feature}={shown}, which kvstream does not compute; choose a "
            "model with full attention such as Pythia, Llama or Qwen2"
        )
    if kwargs.get("dropout"):
        raise ValueError(f"model: its attention drops out {kwargs['dropout']} of its weights; call model.eval() first")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.compiler.is_compiling():
        return _attend_outside(key, query, scaling, position_ids), None
    return key.attend(query, scaling, position_ids), None


@torch.compiler.disable
def _attend_outside(
    layer: CacheLayer, query: torch.Tensor, scaling: float, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """Answer between two compiled graphs: what a cache holds and where is decided in Python."""
    return layer.attend(query, scaling, position_ids)


def _mask(*, kv_length: int, **kwargs: Any) -> torch.Tensor | None:
    if kv_length:
        return sdpa_mask(kv_length=kv_length, **kwargs)
    # Layers of a KVStreamCache count no keys and mask by themselves; what the caller's mask says, `calls` has asked.
    window, rule = kwargs.get("local_size"), kwargs.get("mask_function", causal_mask_function)
    if window is None and rule == causal_mask_function:
        return None
    # A model may make it for layers that it does not have: only the attention that gets it refuses.
    other = torch.zeros(1, 1, 1, 1)
    other.window = window  # type: ignore[attr-defined]
    return other


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
