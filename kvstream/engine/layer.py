"""One layer's cache as transformers meets it, and the layer that never evicts.

`update` takes a call's keys and values; `attend`, called by the attention hook right after, takes the queries and
answers. Shape legend: B batch, H kv-heads, G query heads per kv-head, T tokens of this call, D head size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import CacheLayerMixin

from kvstream.engine.attention import joined, scores, seen, weighed
from kvstream.engine.rope import Rope, Rotation
from kvstream.engine.sink_rotation import Sinks

TABLE = 64  # positions whose rotations are computed at once for single tokens
QUERY_BLOCK = 128  # queries that share one masked product: larger wastes masked work, smaller wastes matrix speed


class NoGradient(torch.autograd.Function):
    """Passes an attention output on, and ends a `backward` that reaches it: what a cache answers has no gradient, and
    the model's own would be wrong in silence without it."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        """Return the output, as if it depended on the queries."""
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:  # noqa: ARG004
        """Refuse."""
        raise RuntimeError(
            "KVStreamCache computes no gradients; call the model without past_key_values to train it, or under "
            "torch.no_grad() to evaluate it"
        )


class Clock:
    """What the layers of a cache share: the model's rotary embedding, the sinks, rotations and masks in use."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        self.sinks = Sinks()
        self.in_call = False  # between the first layer's keys and the last layer's answer
        self._begin()

    def _begin(self) -> None:
        self.model_rotates = True
        self._rotations: dict[tuple[Any, ...], Rotation] = {}
        self._bands: dict[tuple[Any, ...], torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Take along what tables are made of, not the tables."""
        return {"rope": self.rope, "sinks": self.sinks, "in_call": self.in_call}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without tables."""
        vars(self).update(state)
        self._begin()

    def rotation(self, start: int, length: int, cap: int | None, like: torch.Tensor) -> Rotation:
        """Rotate to positions start … start + length − 1, none above `cap`."""
        key = ("span", start, length, cap, like.device)
        if key not in self._rotations:
            self._make_room()
            positions = torch.arange(start, start + length)
            self._rotations[key] = self.rope.at(positions if cap is None else positions.clamp(max=cap), like)
        return self._rotations[key]

    def rotation_of(self, positions: tuple[int, ...], like: torch.Tensor) -> Rotation:
        """Rotate to these positions; one position is good for any number of vectors."""
        key = (positions, like.device)
        if key not in self._rotations:
            self._make_room()
            # A step's positions lie beside those of the last: tables of them are cheaper than one rotation each.
            spans = [
                self.rotation(p - p % TABLE, TABLE, None, like).window(p % TABLE, p % TABLE + 1) for p in positions
            ]
            self._rotations[key] = Rotation.joined(spans)
        return self._rotations[key]

    def band(self, queries: int, keys: int, behind: int, reach: int, like: torch.Tensor) -> torch.Tensor:
        """Mask, to be added to scores: query i sees key j where 0 ≤ behind + i − j ≤ reach; shape (queries, keys)."""
        key = queries, keys, behind, reach, like.device
        if key not in self._bands:
            if len(self._bands) >= 8:  # a long text needs one or two
                self._bands.clear()
            age = behind + torch.arange(queries)[:, None] - torch.arange(keys)
            self._bands[key] = torch.zeros(queries, keys).masked_fill_((age < 0) | (age > reach), -torch.inf).to(like)
        return self._bands[key]

    def _make_room(self) -> None:
        if len(self._rotations) >= 16:  # a call needs a few, and the next call others
            self._rotations.clear()


def blocks(queries: int, size: int | None = None) -> list[tuple[int, int]]:
    """Cut a call's queries into blocks that share one masked product: (start, stop) of each."""
    size = size or QUERY_BLOCK
    return [(low, min(low + size, queries)) for low in range(0, queries, size)]


class Layer(CacheLayerMixin):
    """What bounded and unbounded layers have in common; a subclass answers a call in `_answer`."""

    is_compileable = False
    is_croppable = False  # without being asked for each length: see `KVStreamCache.crop`
    closes_call = False  # True for the last layer of a model
    is_sliding = False
    row_tensors: tuple[str, ...] = ("keys", "values")  # what the cache holds of the batch's rows
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.seen = 0
        self._arrived: tuple[torch.Tensor, torch.Tensor] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was copied or pickled, so that it can be written outside inference mode as well."""
        vars(self).update(state)
        with torch.inference_mode(False):
            for name in self.row_tensors if self.is_initialized else ():
                if getattr(self, name).is_inference():
                    setattr(self, name, getattr(self, name).clone())

    @abstractmethod
    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attend with unrotated queries and keys, then evict; the output has the shape of the queries."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:  # noqa: ARG002
        """Remember shape, dtype and device; subclasses allocate."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Take this call's keys and values (B, H, T, D). What is returned reaches the attention hook as the keys."""
        if not self.is_initialized:
            with torch.inference_mode(False):  # buffers made in inference mode could not be written outside it
                self.lazy_initialization(key_states, value_states)
        self._arrived = key_states, value_states
        return self, self

    def attend(self, queries_BHTD: torch.Tensor, scaling: float, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Answer the queries (B, query heads, T, D) of this call: shape (B, T, query heads, D)."""
        with torch.no_grad():
            output_BTHD = self._attended(queries_BHTD, scaling, position_ids)
        if torch.is_grad_enabled() and queries_BHTD.requires_grad:
            return NoGradient.apply(output_BTHD, queries_BHTD)
        return output_BTHD

    def _attended(self, queries_BHTD: torch.Tensor, scaling: float, position_ids: torch.Tensor | None) -> torch.Tensor:
        assert self._arrived is not None, "attend follows update"
        keys, values = self._arrived
        self._arrived = None
        if self.clock.model_rotates:
            if position_ids is None:
                raise ValueError("position_ids did not reach the attention; kvstream needs transformers 5 or newer")
            undo = self.clock.rope.undo(position_ids, keys)
            queries_BHTD, keys = undo(queries_BHTD), undo(keys)
        B, heads, T, D = queries_BHTD.shape
        output_BHGTD = self._answer(queries_BHTD.view(B, keys.shape[1], -1, T, D), keys, values, scaling)
        self.seen += T
        if self.closes_call:
            self.clock.in_call = False
        return output_BHGTD.reshape(B, heads, T, D).transpose(1, 2)

    def reset(self) -> None:
        """Forget everything; the next call starts a new text."""
        self.seen, self._arrived, self.is_initialized = 0, None, False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order: what beam search needs."""
        with torch.inference_mode(False):
            for name in self.row_tensors if self.is_initialized else ():
                setattr(self, name, getattr(self, name).index_select(0, beam_idx.to(self.device)))

    def state(self) -> dict[str, torch.Tensor]:
        """Everything this layer holds of the tokens seen, by name; the tensors are its own, not copies."""
        return {name: getattr(self, name)[:, :, : self._filled(name)] for name in self.row_tensors}

    def restore(self, state: dict[str, torch.Tensor], seen: int) -> None:
        """Go on from a state after `seen` tokens. What is missing from it has its value at the start of a text."""
        with torch.inference_mode(False):
            self.lazy_initialization(state["keys"], state["values"])
            self.seen = seen
            self._reserve(seen)
            for name in state.keys() & set(self.row_tensors):
                getattr(self, name)[:, :, : self._filled(name)] = state[name]

    @abstractmethod
    def _filled(self, name: str) -> int:
        """How much of a tensor, along its third dimension, is in use."""

    def _reserve(self, tokens: int) -> None:
        """Make room for this many tokens, where that depends on their number."""

    def take_back(self, tokens: int) -> None:
        """Count again from so many tokens, of which a layer that has evicted some may hold others."""
        self.seen = tokens

    def _causal(self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attend to all tokens so far, whose slots are their indices; the values of this call are in theirs already."""
        start, T = self.seen, k_BHTD.shape[2]
        rotate = self.clock.rotation(start, T, None, k_BHTD)
        q_BHGTD = rotate(q_BHGTD)
        self.keys[:, :, start : start + T] = rotate(k_BHTD)
        outputs = []
        for low, high in blocks(T):
            before, own = slice(start + low), slice(start + low, start + high)
            queries, mask = q_BHGTD[:, :, :, low:high], self.clock.band(high - low, high - low, 0, high, q_BHGTD)
            parts = [seen(queries, self.keys[:, :, own], self.values[:, :, own], scaling, mask)]
            if start + low:
                parts.append(seen(queries, self.keys[:, :, before], self.values[:, :, before], scaling))
            outputs.append(joined(parts))
        return torch.cat(outputs, dim=-2)

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


class UnboundedLayer(Layer):
    """Keeps every token, in buffers that double when they are full, or never if `capacity` tokens suffice."""

    is_croppable = True

    def __init__(self, clock: Clock, capacity: int | None = None) -> None:
        super().__init__(clock)
        self.capacity = capacity or 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the capacity asked for."""
        super().lazy_initialization(key_states, value_states)
        B, H, _, D = key_states.shape
        self.keys = key_states.new_empty(B, H, self.capacity, D)
        self.values = torch.empty_like(self.keys)

    def _answer(
        self, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        T = k_BHTD.shape[2]
        start, stop = self.seen, self.seen + T
        self._reserve(stop)
        self.values[:, :, start:stop] = v_BHTD
        if T == 1:
            G = q_BHGTD.shape[2]
            rotated = self.clock.rotation_of((start,), k_BHTD)(torch.cat((q_BHGTD[..., 0, :], k_BHTD), dim=2))
            self.keys[:, :, start] = rotated[:, :, G]
            visible = scores(rotated[:, :, :G, None], self.keys[:, :, :stop], scaling)
            return weighed(visible, self.values[:, :, :stop])
        return self._causal(q_BHGTD, k_BHTD, scaling)

    def _filled(self, name: str) -> int:  # noqa: ARG002
        return self.seen

    def _reserve(self, tokens: int) -> None:
        if tokens > (held := self.keys.shape[2]):
            more = (0, 0, 0, max(tokens, 2 * held) - held)
            with torch.inference_mode(False):
                self.keys, self.values = functional.pad(self.keys, more), functional.pad(self.values, more)
