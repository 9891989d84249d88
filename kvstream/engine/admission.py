"""Whether a cache can serve the call in hand: of which model, with what said, after which other calls.

A model asks before its layers run (`model_watch`); the first layer's keys then find the call admitted. A cache knows
the model it was made for (`Owner`) and the token ids it was shown (`Told`). Calls of another model, or of what has
become of it since, and prompts that do not go on from what the cache holds are refused.

Shape legend: B batch, T tokens, N tokens there is room for.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

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

SAMPLED = 64  # numbers of a weight


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


class Owner:
    """The model that a cache serves. Copies of a cache share it; a pickled one serves the first equal model it meets.

    Held weakly: a cache keeps no model alive.
    """

    def __init__(self, base: Any) -> None:
        self._bind(base)

    def _bind(self, base: Any) -> None:
        self.base, self.looks = weakref.ref(base), _looks(base)
        self.frequencies = base.rotary_emb.inv_freq  # another tensor once a model is converted or moved
        self.dtype = base.dtype
        self.devices = {weight.device for weight in base.parameters() if weight.device.type not in ("cpu", "meta")}

    def require(self, base: Any) -> None:
        """Raise ValueError if a call comes from another model than this, or from what has become of it since."""
        known: Any = self.base()
        if known is None and _looks(base) == self.looks:
            self._bind(base)
        elif known is not base:
            raise ValueError(
                f"past_key_values: this cache was made for another model than the {type(base).__name__} that is called "
                "with it; make one for each model"
            )
        elif base.rotary_emb.inv_freq is not self.frequencies:
            raise ValueError(
                "past_key_values: the model was converted or moved to another device after this cache was made; make a "
                "new one"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        """Share it: a copy of a cache serves the same model, unless that was copied along with it."""
        copied = memo.get(id(self.base()))
        return self if copied is None else Owner(copied)

    def __getstate__(self) -> dict[str, Any]:
        """Take along what the model looks like, and not the model."""
        return {"looks": self.looks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Belong to no model yet."""
        self.looks, self.base = state["looks"], lambda: None  # type: ignore[assignment]
        self.dtype, self.devices = None, set()


def _looks(base: Any) -> tuple[object, ...]:
    """What tells a model from another: its class, its size, and numbers of its first and last weights."""
    weights = list(base.parameters())
    samples = [[] if weight.is_meta else weight.flatten()[:SAMPLED].tolist() for weight in (weights[0], weights[-1])]
    return type(base).__name__, sum(weight.numel() for weight in weights), str(samples)


class Told:
    """The token ids that a cache has been shown, (B, T), as long as every call showed its own."""

    def __init__(self) -> None:
        self.count: int | None = 0  # None: some call showed none
        self.ids_BN: torch.Tensor | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was copied or pickled, so that it can be written outside inference mode as well."""
        vars(self).update(state)
        if self.ids_BN is not None and self.ids_BN.is_inference():
            with torch.inference_mode(False):
                self.ids_BN = self.ids_BN.clone()

    def add(self, ids_BT: torch.Tensor | None, seen: int) -> None:
        """Remember a call's ids, which follow `seen` tokens; on their own device, so that nothing waits for it."""
        if ids_BT is None or self.count != seen:
            self.count = None
            return
        if not seen:  # a call that failed before it began may have told of other rows
            self.ids_BN = None
        stop = seen + ids_BT.shape[1]
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written outside it
            if self.ids_BN is None:
                self.ids_BN = torch.empty((ids_BT.shape[0], 0), dtype=ids_BT.dtype, device=ids_BT.device)
            if stop > (held := self.ids_BN.shape[1]):
                more = (0, max(stop, 2 * held) - held)
                self.ids_BN = torch.nn.functional.pad(self.ids_BN, more)
            self.ids_BN[:, seen:stop] = ids_BT
        self.count = stop

    def take_back(self, count: int) -> None:
        """Forget all ids but the first so many."""
        self.count = None if self.count is None else min(self.count, count)

    def rows(self, picked: torch.Tensor) -> None:
        """Follow the cache's rows."""
        if self.ids_BN is not None:
            with torch.inference_mode(False):
                self.ids_BN = self.ids_BN.index_select(0, picked.to(self.ids_BN.device))

    @property
    def ids(self) -> torch.Tensor | None:
        """What was shown, (B, T), or None if it is not known."""
        return None if self.ids_BN is None or self.count is None else self.ids_BN[:, : self.count]

    def begins(self, prompt_BT: torch.Tensor) -> bool:
        """Whether a prompt goes on from what was shown; True where that is not known."""
        if not self.count or (held_BN := self.ids) is None:
            return True
        if prompt_BT.shape[0] != held_BN.shape[0]:  # more beams than texts: the rows are checked when they are used
            return True
        return prompt_BT.shape[1] > self.count and torch.equal(prompt_BT[:, : self.count].to(held_BN), held_BN)
