"""One layer's cache as transformers meets it: what bounded and unbounded layers have in common.

`update` takes a call's keys and values; `attend`, called by the attention hook right after, takes the queries and
answers. Shape legend: B batch, H kv-heads, G query heads per kv-head, T tokens of this call, D head size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from kvstream.engine.backends import backend_for
from kvstream.engine.shared_tables import SharedTables


class Layer(CacheLayerMixin):
    """What bounded and unbounded layers have in common; a subclass answers a call in `_answer`."""

    is_compileable = False
    is_croppable = False  # without being asked for each length: see `KVStreamCache.crop`
    closes_call = False  # True for the last layer of a model
    is_sliding = False
    row_tensors: tuple[str, ...] = ("keys", "values")  # what the cache holds of the batch's rows
    keys: torch.Tensor
    values: torch.Tensor
    views: Any = None  # what a backend keeps of these tensors between calls

    def __init__(self, tables: SharedTables) -> None:
        super().__init__()
        self.tables = tables
        self.seen = 0
        self._arrived: tuple[torch.Tensor, torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Say what is to be copied or pickled: not the views, as a copy's tensors are others."""
        return vars(self) | {"views": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was copied or pickled, so that it can be written outside inference mode as well."""
        vars(self).update(state)
        with torch.inference_mode(False):
            for owner, name in self._held():
                if getattr(owner, name).is_inference():
                    setattr(owner, name, getattr(owner, name).clone())

    @abstractmethod
    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attend with unrotated queries and keys, evict and count; the output has the shape of the queries."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:  # noqa: ARG002
        """Remember shape, dtype and device; subclasses allocate."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.backend = backend_for(self.device, self.dtype)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Take this call's keys and values (B, H, T, D). What is returned reaches the attention hook as the keys."""
        if not self.is_initialized:
            with torch.inference_mode(False):  # buffers made in inference mode could not be written outside it
                self.lazy_initialization(key_states, value_states)
        self._arrived = key_states, value_states
        return self, self

    @property
    def arrived(self) -> tuple[torch.Tensor, ...]:
        """This call's keys and values, until they are answered."""
        return self._arrived or ()

    def attend(self, queries_BHTD: torch.Tensor, scaling: float, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Answer the queries (B, query heads, T, D) of this call: shape (B, T, query heads, D)."""
        assert self._arrived is not None, "attend follows update"
        keys, values = self._arrived
        self._arrived = None
        if self.tables.model_rotates:
            if position_ids is None:
                raise ValueError("position_ids did not reach the attention; kvstream needs transformers 5 or newer")
            undo = self.tables.rope.undo(position_ids, keys)
            queries_BHTD, keys = undo(queries_BHTD), undo(keys)
        B, heads, T, D = queries_BHTD.shape
        output_BHGTD = self._answer(queries_BHTD.view(B, keys.shape[1], -1, T, D), keys, values, scaling)
        if self.closes_call:
            self.tables.in_call = False
        return output_BHGTD.reshape(B, heads, T, D).transpose(1, 2)

    def reset(self) -> None:
        """Forget everything; the next call starts a new text."""
        self.seen, self._arrived, self.is_initialized = 0, None, False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order: what beam search needs."""
        with torch.inference_mode(False):
            for owner, name in self._held():
                setattr(owner, name, getattr(owner, name).index_select(0, beam_idx.to(self.device)))

    def state(self) -> dict[str, torch.Tensor]:
        """Everything this layer holds of the tokens seen, by name; the tensors are its own, not copies."""
        return {name: getattr(owner, name)[:, :, : self._filled(name)] for owner, name in self._held()}

    @property
    def names(self) -> set[str]:
        """What tensors a state of this layer may hold."""
        return set(self.row_tensors)

    def restore(self, state: dict[str, torch.Tensor], seen: int) -> None:
        """Go on from a state after `seen` tokens. What is missing from it has its value at the start of a text."""
        with torch.inference_mode(False):
            self.lazy_initialization(state["keys"], state["values"])
            self.seen = seen
            self._reserve(seen)
            for owner, name in self._held():
                if name in state:
                    getattr(owner, name)[:, :, : self._filled(name)] = state[name]

    def _held(self) -> Iterator[tuple[Any, str]]:
        """Yield each tensor that holds something of the batch's rows: its owner, and its name there."""
        if self.is_initialized:
            yield from ((self, name) for name in self.row_tensors)

    @abstractmethod
    def _filled(self, name: str) -> int:
        """How much of a tensor, along its third dimension, is in use."""

    def _reserve(self, tokens: int) -> None:
        """Make room for this many tokens, where that depends on their number."""

    def take_back(self, tokens: int) -> None:
        """Count again from so many tokens, of which a layer that has evicted some may hold others."""
        self.seen = tokens

    def rewind(self, tokens: int) -> None:
        """Have the next steps cost what they would after so many tokens; contents may be later tokens'."""
        self.take_back(tokens)

    def get_seq_length(self) -> int:
        """Count the tokens seen so far, from which transformers numbers the next ones."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """No mask: tells the mask hook that the cache does the masking."""
        return 0, 0

    def get_max_length(self) -> int:
        """No limit to the text."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No limit to the text, as transformers before 5.17 asks."""
        return -1

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0
