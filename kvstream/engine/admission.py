"""Whether a cache can serve the call in hand: of which model, with what said, after which other calls.

A model asks before its layers run (`model_watch`); the first layer's keys then find the call admitted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstream.engine import transformers_hook
from kvstream.engine.call_checks import (
    refuse_autocast,
    refuse_other_attention,
    refuse_rows,
    refuse_training,
    refuse_unheard,
)
from kvstream.engine.wrappers import vocabulary_of

if TYPE_CHECKING:
    from kvstream.engine.cache import KVStreamCache


def admit(cache: KVStreamCache, base: Any, said: dict[str, Any]) -> None:
    """Raise ValueError if a cache cannot serve a call of a model: `base`, without its head, and what was said."""
    cache.owner.require(base)
    refuse_other_attention(base.config._attn_implementation, transformers_hook.NAME)
    refuse_autocast(cache.device)
    refuse_training(base)
    if cache.tables.model_rotates:
        seen = cache.get_seq_length()
        refuse_unheard(said, seen, cache.rows, vocabulary_of(base))
        cache.told.take_back(seen)  # of a call that failed more may have been told
        cache.told.add(said.get("input_ids"), seen)
    else:
        refuse_rows(said["input_ids"].shape[0], cache.rows)
    cache.admitted = True


def begin_call(cache: KVStreamCache) -> None:
    """Raise ValueError for a call that was not admitted, or that follows one that never ended."""
    if cache.tables.model_rotates and not cache.admitted:
        raise ValueError(
            "past_key_values: this cache meets a model that kvstream has not looked at; make one "
            "KVStreamCache(model, policy) for that model first"
        )
    cache.admitted = False
    refuse_interrupted(cache)
    cache.tables.in_call = True


def refuse_interrupted(cache: KVStreamCache) -> None:
    """Raise ValueError between two layers of a call."""
    if cache.tables.in_call:
        raise ValueError("cache: the last call was interrupted between two layers; reset() it and start again")
