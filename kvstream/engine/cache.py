"""The KV cache that replay and decoding share, and that any `model(..., past_key_values=cache)` accepts.

It lets one policy decide what each layer keeps. The work is done by the layers: `UnboundedLayer` for those that never
evict, `BoundedLayer` for the others. Knows neither Ray nor files.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvstream.engine import admission, cache_state, model_check, transformers_hook
from kvstream.engine.admission import Owner, Told
from kvstream.engine.bounded_layer import BoundedLayer
from kvstream.engine.call_checks import refuse_autocast, refuse_unfit
from kvstream.engine.layer import Layer
from kvstream.engine.model_watch import watch
from kvstream.engine.rope import Rope
from kvstream.engine.scanned_layer import ScannedLayer
from kvstream.engine.shared_tables import SharedTables
from kvstream.engine.unbounded_layer import UnboundedLayer
from kvstream.engine.wrappers import device_of, unwrapped
from kvstream.policies import BoundedPolicy, Policy

SERVING = threading.RLock()  # held while a model is looked at and changed: others would see it half changed


class KVStreamCache(Cache):
    """A cache bounded by a policy, for any transformers model with rotary embeddings and full attention.

    Sets the model's attention to kvstream's, which with any other cache computes what "sdpa" does; the first time, asks
    the model whether it computes what kvstream assumes (`kvstream.engine.model_check`), and leaves it as it was if not.
    `capacity` preallocates layers that never evict, in tokens. A cache is a value: `copy`, `deepcopy`, `pickle` and
    `torch.save` give an equal, independent one. Raises ValueError for models it cannot serve.

    >>> cache = KVStreamCache(model, StreamingLLM(start_size=4, recent_size=252))
    >>> model.generate(input_ids, past_key_values=cache, max_new_tokens=1000)
    """

    def __init__(self, model: PreTrainedModel, policy: Policy, *, capacity: int | None = None) -> None:
        model = unwrapped(model)
        refuse_autocast(device_of(model))
        with SERVING:
            model_check.check(model)
            if model.config._attn_implementation != transformers_hook.NAME:
                model.set_attn_implementation(transformers_hook.NAME)
            watch(model)
        self._begin(model, policy, Rope(model), capacity)

    @classmethod
    def unchecked(cls, model: PreTrainedModel, policy: Policy, rope: Rope) -> KVStreamCache:
        """Make a cache for a model whose attention is kvstream's, with a rotation that need not be the model's own."""
        cache = cls.__new__(cls)
        cache._begin(model, policy, rope, None)
        return cache

    def _begin(self, model: PreTrainedModel, policy: Policy, rope: Rope, capacity: int | None) -> None:
        layers = model.config.num_hidden_layers
        refuse_unfit(policy, capacity, layers, type(model).__name__)
        self.policy, self.device, self.owner, self.told = policy, device_of(model), Owner(model.base_model), Told()
        self.admitted = False  # whether the call in hand was looked at
        self.tables = SharedTables(rope)
        bound = policy.in_layers(layers)
        super().__init__(layers=[_new_layer(bound, layer, self.tables, capacity) for layer in range(layers)])
        self.own_layers()[-1].closes_call = True

    def admit(self, base: Any, said: dict[str, Any]) -> None:
        """Raise ValueError if this cache cannot serve a call of a model: `base`, without its head, and what was said.

        The model asks before its layers run.
        """
        admission.admit(self, base, said)

    @property
    def rows(self) -> int | None:
        """How many texts the cache holds, None while it holds none."""
        return self.own_layers()[0].keys.shape[0] if self.get_seq_length() else None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Any, Any]:
        """Hand a call's keys and values to their layer."""
        # Python's to do, between two graphs.
        update = torch.compiler.disable(self._update) if torch.compiler.is_compiling() else self._update
        return update(key_states, value_states, layer_idx)

    def _update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int) -> tuple[Any, Any]:
        if layer_idx == 0:
            admission.begin_call(self)
            if key_states.shape[2] == 1:
                _turn_sinks(self)
        return self.own_layers()[layer_idx].update(key_states, value_states)

    def own_layers(self) -> list[Layer]:
        """Return the layers, as what they are."""
        return self.layers  # type: ignore[return-value]  # nobody else puts any there

    def reset(self) -> None:
        """Forget everything; the next call starts a new text."""
        self.tables.in_call = False
        self.told = Told()
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens: −n removes n of them, 0 none; a positive number is how many are to stay.

        Raises ValueError, and takes none back, where a policy has evicted tokens meanwhile: those cannot come back.
        """
        seen = self.get_seq_length()
        stays = max(0, seen + tokens_to_remove) if tokens_to_remove <= 0 else min(tokens_to_remove, seen)
        if not stays:
            self.reset()
        elif stays < seen:
            cache_state.refuse_lost_tokens(self, f"crop({tokens_to_remove})")
            for layer in self.own_layers():
                layer.take_back(stays)
            self.told.take_back(stays)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order: what beam search needs."""
        for layer in self.own_layers():
            layer.reorder_cache(beam_idx)
        self.told.rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch, given by number or as a mask."""
        if rows := self.rows:
            self.reorder_cache(torch.arange(rows)[torch.as_tensor(indices).cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if rows := self.rows:
            self.reorder_cache(torch.arange(rows).repeat_interleave(repeats))

    def __copy__(self) -> KVStreamCache:
        """Copy the contents, too: two caches that share buffers would overwrite each other's tokens."""
        return copy.deepcopy(self)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything needed to go on from here in another cache under the same policy: tensors by name, on the CPU."""
        admission.refuse_interrupted(self)
        return cache_state.collect(self)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where the cache stood whose `state` this is.

        The state of a full cache serves any policy while all of its layers still keep, uncontested, every token.
        Raises ValueError for another number of layers, another dtype and a policy that this cache cannot go on from; it
        then is as before.
        """
        cache_state.restore(self, state)

    @torch.inference_mode()
    def hidden_states(self, model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
        """Run the next tokens through the model without its head: last hidden states, shape (B, T, hidden size).

        The model is kept at position 0, where its own rotation does nothing, so that all rotation is the cache's.
        """
        model = unwrapped(model)
        self.owner.require(model.base_model)
        self.tables.model_rotates, self.told.count = False, None
        try:
            zeros = torch.zeros_like(ids_BT)
            output = model.base_model(input_ids=ids_BT, position_ids=zeros, past_key_values=self, use_cache=True)
        finally:
            self.tables.model_rotates = True
        return output.last_hidden_state

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for keys and values, over all layers."""
        return sum(layer.kv_bytes for layer in self.own_layers())


def _new_layer(policy: Policy, layer: int, tables: SharedTables, capacity: int | None) -> Layer:
    regions = policy.regions_of(layer)
    if regions is None:
        return UnboundedLayer(tables, capacity)
    assert isinstance(policy, BoundedPolicy)
    return (ScannedLayer if policy.in_turn(layer) else BoundedLayer)(tables, policy, layer)


def _turn_sinks(cache: KVStreamCache) -> None:
    """Bring the sinks of all layers to where a single token finds them."""
    bounded = [layer for layer in cache.own_layers() if isinstance(layer, BoundedLayer)]
    if bounded and cache.get_seq_length():
        cache.tables.sinks.turn(bounded, cache.tables.rotation_of)
