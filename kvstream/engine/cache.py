"""The KV cache that replay and decoding share, and that any `model(..., past_key_values=cache)` accepts.

It lets one policy decide what each layer keeps. The work is done by the layers: `UnboundedLayer` for those that never
evict, `BoundedLayer` for the others. Knows neither Ray nor files.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvstream.engine import attention, model_check
from kvstream.engine.bounded_layer import BoundedLayer
from kvstream.engine.call_checks import (
    SERVING,
    Owner,
    Told,
    refuse_autocast,
    refuse_rows,
    refuse_training,
    refuse_unheard,
    watch,
)
from kvstream.engine.layer import Clock, Layer, UnboundedLayer
from kvstream.engine.rope import Rope
from kvstream.engine.wrappers import device_of, unwrapped, vocabulary_of
from kvstream.policies import BoundedPolicy, Full, Policy


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
            if model.config._attn_implementation != attention.NAME:
                model.set_attn_implementation(attention.NAME)
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
        skipped = policy.skip_layers if isinstance(policy, BoundedPolicy) else ()
        if beyond := [layer for layer in skipped if layer >= layers]:
            raise ValueError(
                f"skip_layers={skipped}: layer {beyond[0]} does not exist; "
                f"{type(model).__name__} has layers 0 to {layers - 1}"
            )
        self.policy, self.device, self.owner, self.told = policy, device_of(model), Owner(model.base_model), Told()
        self.admitted = False  # whether the call in hand was looked at
        self.clock = Clock(rope)
        super().__init__(layers=[self._layer(layer, capacity) for layer in range(layers)])
        self._own_layers()[-1].closes_call = True

    def admit(self, base: Any, said: dict[str, Any]) -> None:
        """Raise ValueError if this cache cannot serve a call of a model: `base`, without its head, and what was said.

        The model asks before its layers run.
        """
        self.owner.require(base)
        if (now := base.config._attn_implementation) != attention.NAME:
            raise ValueError(
                f"model: its attention was set to {now!r} after this cache was made; make it after that, or call "
                f"model.set_attn_implementation({attention.NAME!r})"
            )
        refuse_autocast(self.device)
        refuse_training(base)
        if self.clock.model_rotates:
            seen = self.get_seq_length()
            refuse_unheard(said, seen, self._rows(), vocabulary_of(base))
            self.told.take_back(seen)  # of a call that failed more may have been told
            self.told.add(said.get("input_ids"), seen)
        else:
            refuse_rows(said["input_ids"].shape[0], self._rows())
        self.admitted = True

    def _rows(self) -> int | None:
        """How many texts the cache holds, None while it holds none."""
        return self._own_layers()[0].keys.shape[0] if self.get_seq_length() else None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Any, Any]:
        """Hand a call's keys and values to their layer."""
        if torch.compiler.is_compiling():  # this is Python's to do, between two graphs
            return torch.compiler.disable(self._update)(key_states, value_states, layer_idx)
        return self._update(key_states, value_states, layer_idx)

    def _update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int) -> tuple[Any, Any]:
        if layer_idx == 0:
            if self.clock.model_rotates and not self.admitted:
                raise ValueError(
                    "past_key_values: this cache meets a model that kvstream has not looked at; make one "
                    "KVStreamCache(model, policy) for that model first"
                )
            self.admitted = False
            if self.clock.in_call:
                raise ValueError("cache: the last call was interrupted between two layers; reset() it and start again")
            self.clock.in_call = True
            if key_states.shape[2] == 1:
                self._turn_sinks()
        return self._own_layers()[layer_idx].update(key_states, value_states)

    def _turn_sinks(self) -> None:
        """Bring the sinks of all layers to where a single token finds them."""
        bounded = [layer for layer in self._own_layers() if isinstance(layer, BoundedLayer)]
        if bounded and bounded[0].sinks and (shift := bounded[0].shift):
            self.clock.sinks.turn(bounded, shift, self.clock.rotation_of)

    def _own_layers(self) -> list[Layer]:
        return self.layers  # type: ignore[return-value]  # nobody else puts any there

    def reset(self) -> None:
        """Forget everything; the next call starts a new text."""
        self.clock.in_call = False
        self.told = Told()
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens: −n removes n of them, 0 none; a positive number is how many are to stay.

        Raises ValueError, and takes none back, where a policy has evicted tokens meanwhile: those cannot come back.
        """
        seen = self.get_seq_length()
        stays = max(0, seen + tokens_to_remove) if tokens_to_remove <= 0 else min(tokens_to_remove, seen)
        if stays == seen:
            return
        if not stays:
            self.reset()
            return
        regions = [self.policy.regions_of(layer) for layer in range(len(self.layers))]
        if seen > min((each.sinks + each.recent for each in regions if each), default=seen):
            raise ValueError(
                f"crop({tokens_to_remove}): of the {seen} tokens seen, {self.policy} has evicted some, which cannot "
                "come back; deepcopy() the cache where you may want to go back to, or use one under full"
            )
        for layer in self._own_layers():
            layer.take_back(stays)
        self.told.take_back(stays)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order: what beam search needs."""
        for layer in self._own_layers():
            layer.reorder_cache(beam_idx)
        self.told.rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch, given by number or as a mask."""
        if rows := self._rows():
            self.reorder_cache(torch.arange(rows)[torch.as_tensor(indices).cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if rows := self._rows():
            self.reorder_cache(torch.arange(rows).repeat_interleave(repeats))

    def __copy__(self) -> KVStreamCache:
        """Copy the contents, too: two caches that share buffers would overwrite each other's tokens."""
        return copy.deepcopy(self)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything needed to go on from here in another cache under the same policy: tensors by name, on the CPU."""
        if self.clock.in_call:
            raise ValueError("cache: the last call was interrupted between two layers; reset() it and start again")
        held = {
            f"{place}.{name}": tensor.to("cpu", copy=True)
            for place, layer in enumerate(self._own_layers() if self.get_seq_length() else ())
            for name, tensor in layer.state().items()
        }
        label = torch.tensor(list(str(self.policy).encode()), dtype=torch.uint8)
        told = {} if self.told.ids is None else {"told": self.told.ids.cpu()}
        return held | told | {"seen": torch.tensor(self.get_seq_length()), "policy": label}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where the cache stood whose `state` this is.

        The state of a full cache serves any policy while all of its layers still keep, uncontested, every token.
        Raises ValueError for another number of layers, another dtype and a policy that this cache cannot go on from; it
        then is as before.
        """
        seen, label = int(state["seen"]), bytes(state["policy"].tolist()).decode()
        regions = [self.policy.regions_of(layer) for layer in range(len(self.layers))]
        uncontested = min((each.sinks + each.recent for each in regions if each), default=seen)
        if label != str(self.policy) and (label != str(Full()) or seen > uncontested):
            raise ValueError(
                f"state: {seen} tokens under {label}, this cache is under {self.policy}; "
                f"restore a state of the same policy, or of full with at most {uncontested} tokens"
            )
        if len({str(device) for device in self.owner.devices}) > 1:
            raise ValueError("state: the model lies on several devices, and a state on one; load it on one device")
        parts: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            place, dot, of_layer = name.partition(".")
            if dot:
                parts.setdefault(int(place), {})[of_layer] = tensor.to(self.device)
        if seen and sorted(parts) != list(range(len(self.layers))):
            raise ValueError(
                f"state: of {len(parts)} layers, the model has {len(self.layers)}; restore one of this model"
            )
        if seen and (held := parts[0]["keys"].dtype) != self.owner.dtype:
            raise ValueError(f"state: of a model in {held}, this is in {self.owner.dtype}; restore one of this model")
        self.reset()
        for layer, part in zip(self._own_layers(), (parts[place] for place in sorted(parts))):
            layer.restore(part, seen)
        self.told.add(state.get("told"), 0)

    def _layer(self, layer: int, capacity: int | None) -> Layer:
        if self.policy.regions_of(layer) is None:
            return UnboundedLayer(self.clock, capacity)
        assert isinstance(self.policy, BoundedPolicy)
        return BoundedLayer(self.clock, self.policy, layer)

    @torch.inference_mode()
    def hidden_states(self, model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
        """Run the next tokens through the model without its head: last hidden states, shape (B, T, hidden size).

        The model is kept at position 0, where its own rotation does nothing, so that all rotation is the cache's.
        """
        model = unwrapped(model)
        self.owner.require(model.base_model)
        self.clock.model_rotates, self.told.count = False, None
        try:
            zeros = torch.zeros_like(ids_BT)
            output = model.base_model(input_ids=ids_BT, position_ids=zeros, past_key_values=self, use_cache=True)
        finally:
            self.clock.model_rotates = True
        return output.last_hidden_state

    @property
    def kv_bytes(self) -> int:
        """Bytes allocated for keys and values, over all layers."""
        return sum(layer.kv_bytes for layer in self._own_layers())
