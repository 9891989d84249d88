"""What a call of the model says beside its tokens: kvstream computes it as asked, or refuses it in one sentence.

A cache is only shown keys and values. Which text they are of, which mask and positions the caller gave, whether rows
were added: of these a cache learns nothing, and would answer as if nothing had been said. So each model that a
`KVStreamCache` serves asks the cache before its layers run (`watch`), and before `generate` cuts off what the cache
holds already. Knows no policies. https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

WATCHED = "_kvstream_watched"
SAMPLED = 64  # numbers of a weight
# Versions of transformers that do not say so tell by the length of the mask.
SAYS_WHAT_IT_CUTS = (
    "next_sequence_length" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
SERVING = threading.RLock()  # held while a model is looked at and changed: others would see it half changed
BY_LENGTH = "group texts by length and give each group a cache of its own"


class Owner:
    """The model that a cache serves. Copies of a cache share it; a pickled one serves the first equal model it meets.

    Held weakly: a cache keeps no model alive.
    """

    def __init__(self, base: Any) -> None:
        self._bind(base)

    def _bind(self, base: Any) -> None:
        self.base, self.looks = weakref.ref(base), _looks(base)
        self.frequencies = base.rotary_emb.inv_freq  # another tensor once a model is converted or moved
        self.dtype, self.devices = base.dtype, set(getattr(base, "hf_device_map", {}).values())

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

    def add(self, ids_BT: torch.Tensor | None, seen: int) -> None:
        """Remember a call's ids, which follow `seen` tokens; on their own device, so that nothing waits for it."""
        if ids_BT is None or self.count != seen:
            self.count = None
            return
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


def watch(model: PreTrainedModel) -> None:
    """Have a model ask its `KVStreamCache` before it computes, and its class before `generate` cuts a prompt.

    Calls with any other cache pass at once.
    """
    if not getattr(model.base_model, WATCHED, False):
        model.base_model.register_forward_pre_hook(_before_layers, with_kwargs=True)
        setattr(model.base_model, WATCHED, True)
    kind: Any = type(model)
    prepare = getattr(kind, "prepare_inputs_for_generation", None)
    if prepare is not None and not hasattr(prepare, WATCHED):
        kind.prepare_inputs_for_generation = _asking(prepare)


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


def _is_whole_prompt(input_ids: torch.Tensor, said: dict[str, Any]) -> bool:
    """Whether `generate` has its first ids in hand, and takes them for all there are, not for what is new."""
    if not said.get("is_first_iteration") or said.get("inputs_embeds") is not None:
        return False
    if SAYS_WHAT_IT_CUTS:
        return said.get("next_sequence_length") is not None
    mask = said.get("attention_mask")
    return mask is None or mask.shape[-1] == input_ids.shape[1]


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
    refuse_mask(said.get("attention_mask"), seen + T)
    refuse_positions(said.get("position_ids"), seen, T)
    if ids is not None:
        refuse_ids(ids, vocabulary)


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


def refuse_mask(mask: Any, tokens: int) -> None:
    """Raise ValueError for a mask that hides anything from anyone beyond what is yet to come."""
    if mask is None:
        return
    if isinstance(mask, dict):
        for each in mask.values():
            refuse_mask(each, tokens)
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


def refuse_ids(ids: torch.Tensor, vocabulary: int) -> None:
    """Raise ValueError for ids outside the vocabulary, which on a GPU would end the process."""
    if ids.numel() and (ids.is_floating_point() or ids.is_complex()):
        raise ValueError(f"input_ids: {ids.dtype} is not a dtype of token ids; give whole numbers")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
        *_, place = first = ((ids < 0) | (ids >= vocabulary)).nonzero()[0].tolist()
        raise ValueError(
            f"input_ids: {int(ids[tuple(first)])} at position {place} is no token, the model knows ids 0 to "
            f"{vocabulary - 1}; tokenise with the model's own tokenizer"
        )
