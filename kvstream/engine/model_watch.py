"""Has a model ask its cache before it computes, and before `generate` cuts off what the cache holds already.

A cache is only shown keys and values. Which text they are of, which mask and positions the caller gave, whether rows
were added: of these it would learn nothing, and answer as if nothing had been said.
https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

WATCHED = "_kvstream_watched"
# Versions of transformers that do not say so tell by the length of the mask.
SAYS_WHAT_IT_CUTS = (
    "next_sequence_length" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)


def watch(model: PreTrainedModel) -> None:
    """Have a model ask its `KVStreamCache` before it computes, and its class before `generate` cuts a prompt.

    Calls with any other cache pass at once.
    """
    if not getattr(model.base_model, WATCHED, False):
        model.base_model.register_forward_pre_hook(_before_layers, with_kwargs=True)
        setattr(model.base_model, WATCHED, True)
    kind: Any = type(model)
    for name, asking in (("prepare_inputs_for_generation", _asking), ("_prefill", _whole)):
        method = getattr(kind, name, None)
        if method is not None and not hasattr(method, WATCHED):
            setattr(kind, name, asking(method))


@torch.compiler.disable
def _before_layers(base: Any, args: tuple[Any, ...], said: dict[str, Any]) -> None:
    if args:
        bound = inspect.signature(base.forward).bind_partial(*args, **said).arguments
        said = bound | bound.pop("kwargs", {})
    if admit := getattr(said.get("past_key_values"), "admit", None):
        admit(base, said)


def _asking(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Ask the cache whether a whole prompt goes on from what it holds, then do what the class does."""

    @functools.wraps(prepare)  # `generate` reads its signature
    def prepare_inputs_for_generation(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        cache: Any = kwargs.get("past_key_values")
        if hasattr(cache, "told") and _is_whole_prompt(input_ids, kwargs):
            cache.told.take_back(cache.get_seq_length())  # of a call that failed more may have been told
            if not cache.told.begins(input_ids):
                raise ValueError(
                    f"input_ids: they do not begin with the {cache.told.count} tokens that the cache holds, or end "
                    "there; pass the whole conversation, each turn appended to the ids before it, or reset() the cache "
                    "for another text"
                )
        return prepare(self, input_ids, *args, **kwargs)

    setattr(prepare_inputs_for_generation, WATCHED, True)
    return prepare_inputs_for_generation


def _whole(prefill: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse a prompt in pieces where a cache holds tokens: its head is cut off before anybody is asked."""

    @functools.wraps(prefill)
    def _prefill(self: Any, input_ids: Any, generation_config: Any, model_kwargs: Any, *more: Any, **named: Any) -> Any:
        cache = model_kwargs.get("past_key_values")
        if hasattr(cache, "told") and generation_config.prefill_chunk_size and cache.get_seq_length():
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size}: nobody could ask whether the prompt "
                f"goes on from the {cache.get_seq_length()} tokens that the cache holds; leave it out, or reset() the "
                "cache"
            )
        return prefill(self, input_ids, generation_config, model_kwargs, *more, **named)

    setattr(_prefill, WATCHED, True)
    return _prefill


def _is_whole_prompt(input_ids: torch.Tensor, said: dict[str, Any]) -> bool:
    """Whether `generate` has its first ids in hand, and takes them for all there are, not for what is new."""
    if not said.get("is_first_iteration") or said.get("inputs_embeds") is not None:
        return False
    if SAYS_WHAT_IT_CUTS:
        return said.get("next_sequence_length") is not None
    mask = said.get("attention_mask")
    return mask is None or mask.shape[-1] == input_ids.shape[1]
