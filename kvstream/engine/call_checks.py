"""What a call of the model says beside its tokens: kvstream computes it as asked, or refuses it in one sentence.

Knows no caches: what one holds is said.

Shape legend: B texts, T tokens of this call.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

from kvstream.engine.token_ids import refuse_ids
from kvstream.policies import Policy

BY_LENGTH = "group texts by length and give each group a cache of its own"


def refuse_unheard(said: dict[str, Any], seen: int, rows: int | None, vocabulary: int) -> None:
    """Raise ValueError for masks, positions, rows and ids that a cache holding `seen` tokens of `rows` texts cannot
    obey."""
    ids, embeds = said.get("input_ids"), said.get("inputs_embeds")
    given = ids if ids is not None else embeds
    if given is None:
        return
    B, T = given.shape[:2]
    if not T:
        raise ValueError(
            f"input_ids: none beyond the {seen} tokens that the cache holds; pass the whole conversation, or reset() it"
        )
    refuse_rows(B, rows)
    if said.get("output_attentions"):
        raise ValueError(
            "output_attentions: KVStreamCache keeps no attention weights; ask for them without past_key_values"
        )
    refuse_mask(said.get("attention_mask"))
    refuse_positions(said.get("position_ids"), seen, T)
    if ids is not None:
        refuse_ids(ids, vocabulary)


def refuse_unfit(policy: object, capacity: object, layers: int, model: str) -> None:
    """Raise ValueError for what is no policy or no capacity, and for layers that a model does not have."""
    if capacity is not None and (not isinstance(capacity, Integral) or capacity < 1):
        raise ValueError(f"capacity={capacity!r} is not valid; give a whole number of at least 1")
    if not isinstance(policy, Policy):
        remedy = (
            f"give parse_policy({policy!r})" if isinstance(policy, str) else "give one such as StreamingLLM(4, 252)"
        )
        raise ValueError(f"policy: {policy!r:.100} is not a policy; {remedy}")
    skipped = getattr(policy, "skip_layers", ())
    if beyond := [layer for layer in skipped if layer >= layers]:
        raise ValueError(
            f"skip_layers={skipped}: layer {beyond[0]} does not exist; {model} has layers 0 to {layers - 1}"
        )


def refuse_other_attention(now: str, ours: str) -> None:
    """Raise ValueError where a model's attention is no longer kvstream's."""
    if now != ours:
        raise ValueError(
            f"model: its attention was set to {now!r} after this cache was made; make it after that, or call "
            f"model.set_attn_implementation({ours!r})"
        )


def refuse_autocast(device: torch.device) -> None:
    """Raise ValueError under autocast."""
    if torch.is_autocast_enabled(device.type):
        raise ValueError(
            "autocast: KVStreamCache computes in the model's own dtype; leave autocast, and load the model with "
            "dtype=torch.bfloat16 instead"
        )


def refuse_training(base: Any) -> None:
    """Raise ValueError where a model in training mode drops out, or computes again what a cache has taken."""
    if not base.training:
        return
    rates = [module.p for module in base.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    rate = max(rates, default=0.0) or getattr(base.config, "attention_dropout", 0.0) or 0.0
    if rate or any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        what = f"drops out {rate} of its numbers" if rate else "checkpoints gradients"
        raise ValueError(f"model: it is in training mode and {what}; call model.eval() first")


def refuse_rows(rows: int, held: int | None) -> None:
    """Raise ValueError where a call has another number of texts than the cache."""
    if held is not None and rows != held:
        raise ValueError(
            f"input_ids: {rows} texts for a cache that holds {held}; reset() it, or bring its rows to that number with "
            "batch_select_indices or batch_repeat_interleave"
        )


def refuse_mask(mask: Any) -> None:
    """Raise ValueError for a mask that hides anything from anyone beyond what is yet to come."""
    if mask is None:
        return
    if isinstance(mask, dict):
        for each in mask.values():
            refuse_mask(each)
        return
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        what = f"{mask.ndim} dimensions" if isinstance(mask, torch.Tensor) else f"a {type(mask).__name__}"
        raise ValueError(
            f"attention_mask: {what}, and KVStreamCache computes causal attention alone; leave the mask out, and give "
            f"packed texts one by one: {BY_LENGTH}"
        )
    if not mask.bool().all():
        raise ValueError(f"attention_mask: padding is not supported by KVStreamCache; {BY_LENGTH}")


def refuse_positions(position_ids: Any, seen: int, tokens: int) -> None:
    """Raise ValueError unless the tokens of each row follow one another and what the cache holds."""
    if position_ids is None:
        return
    expected = torch.arange(seen, seen + tokens, device=position_ids.device)
    if position_ids.ndim != 2 or not bool((position_ids == expected).all()):
        raise ValueError(
            f"position_ids: KVStreamCache places these tokens at {seen} … {seen + tokens - 1}, and other positions "
            "(gaps, restarts, offsets, several axes) are not computed; leave position_ids out"
        )
