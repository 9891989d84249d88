"""The hook into transformers, and what it refuses to compute.

transformers lets a model's attention be any registered function. Ours hands queries to the layer of a
`KVStreamCache`, which knows what is still cached; called with any other cache it does what "sdpa" does, so a model
that was once used with kvstream can still be used without.
https://huggingface.co/docs/transformers/attention_interface

Shape legend: B batch, T queries, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

if TYPE_CHECKING:
    from kvstream.engine.layer import Layer

NAME = "kvstream"
# What attention functions of transformers are given by models that need more than a softmax over all keys.
NOT_COMPUTED = ("sliding_window", "softcap", "logits_soft_cap", "s_aux", "sinks", "position_bias", "alibi")


class NotComputed(ValueError):
    """A model's attention is given something that kvstream does not compute."""


class NoGradient(torch.autograd.Function):
    """Passes an attention output on, and ends a `backward` that reaches it: what a cache answers has no gradient, and
    the model's own would be wrong in silence without it."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, learning: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        """Return the output, as if it depended on the other tensor."""
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:  # noqa: ARG004
        """Refuse."""
        raise RuntimeError(
            "KVStreamCache computes no gradients; call the model without past_key_values to train it, or under "
            "torch.no_grad() to evaluate it"
        )


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
    if isinstance(key, torch.Tensor):  # of another cache, or of none
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
    if torch.compiler.is_compiling() and not getattr(key, "decides_nothing", False):
        # Between two compiled graphs: what a cache holds and where is decided in Python.
        return torch.compiler.disable(_attend)(key, query, scaling, position_ids), None
    return _attend(key, query, scaling, position_ids), None


def _attend(layer: Layer, query: torch.Tensor, scaling: float, position_ids: torch.Tensor | None) -> torch.Tensor:
    # An adapter may be of values alone.
    learning = [each for each in (query, *layer.arrived) if each.requires_grad] if torch.is_grad_enabled() else []
    with torch.no_grad():
        output = layer.attend(query, scaling, position_ids)
    return NoGradient.apply(output, learning[0]) if learning else output


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
