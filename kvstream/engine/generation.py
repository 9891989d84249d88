"""New tokens under a policy: a prompt, then a step a token, each step the device's fastest.

`model.generate(ids, past_key_values=KVStreamCache(model, policy))` has all of transformers' ways to choose a token, and
launches each step anew.

Shape legend: B texts side by side, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import torch
from transformers import PreTrainedModel

from kvstream.engine.decode_engine import DecodeEngine
from kvstream.engine.token_ids import a_tensor, refuse_ids
from kvstream.engine.wrappers import unwrapped, vocabulary_of
from kvstream.policies import Policy

Choose = Callable[[torch.Tensor], torch.Tensor]


def likeliest(logits_BV: torch.Tensor) -> torch.Tensor:
    """Choose the token of the highest logit: (B,)."""
    return logits_BV.argmax(-1)


def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    policy: Policy,
    *,
    max_new_tokens: int,
    choose: Choose = likeliest,
    compiled: bool = False,
) -> torch.Tensor:
    """Go on from prompts of one length, (B, T) or (T,), by so many tokens: their ids, (B, max_new_tokens) or without B.

    choose: next ids, (B,), from logits, (B, V). Each text gets as many tokens; cut them at your end of text.
    compiled: have torch.compile fuse a step's operations once the budget is full; worth its many seconds for thousands
        of tokens.
    Raises ValueError for a prompt without tokens, for ids that are none of the model's, for a number of tokens below 1,
    for another shape from `choose`, or a model that `KVStreamCache` cannot serve.

    >>> generate(model, tokenizer("Call me", return_tensors="pt").input_ids, StreamingLLM(4, 252), max_new_tokens=1000)
    """
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens!r} is not valid; give a whole number of at least 1")
    if a_tensor(input_ids).ndim not in (1, 2) or not input_ids.numel():
        given = tuple(input_ids.shape)
        raise ValueError(f"input_ids: {given}; give prompts of at least one token as a tensor, (B, T) or (T,)")
    ids_BT, model = torch.atleast_2d(input_ids), unwrapped(model)
    refuse_ids(ids_BT, vocabulary_of(model))
    engine = DecodeEngine(model, policy, capacity=ids_BT.shape[1] + max_new_tokens, compiled=compiled)
    chosen = [_chosen(choose, engine.prefill(ids_BT))]
    for _ in range(max_new_tokens - 1):
        chosen.append(_chosen(choose, engine.step(chosen[-1][:, None])))
    new_BT = torch.stack(chosen, 1)
    return new_BT if input_ids.ndim == 2 else new_BT[0]


def _chosen(choose: Choose, logits_BV: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(False):
        next_B = choose(logits_BV.clone())  # its own, to be written on
    if next_B.shape != logits_BV.shape[:1]:
        raise ValueError(f"choose: it gave shape {tuple(next_B.shape)}; give one id for each text, ({len(logits_BV)},)")
    return next_B
