"""The KV cache that replay and decoding share, and that any `model(..., past_key_values=cache)` accepts.

It lets one policy decide what each layer keeps. The work is done by the layers: `UnboundedLayer` for those that never
evict, `BoundedLayer` for the others. Knows neither Ray nor files.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvstream import attention
from kvstream.bounded import BoundedLayer
from kvstream.layer import Clock, Layer, UnboundedLayer
from kvstream.policies import BoundedPolicy, Full, Policy
from kvstream.probe import verify
from kvstream.rope import Rope


class KVStreamCache(Cache):
    """A cache bounded by a policy, for any transformers model with rotary embeddings and full attention.

    Sets the model's attention to kvstream's, which with any other cache computes what "sdpa" does.
    `capacity` preallocates layers that never evict, in tokens. Raises ValueError for models it cannot serve.

    >>> cache = KVStreamCache(model, StreamingLLM(start_size=4, recent_size=252))
    >>> model.generate(input_ids, past_key_values=cache, max_new_tokens=1000)
    """

    def __init__(self, model: PreTrainedModel, policy: Policy, *, capacity: int | None = None) -> None:
        layers = model.config.num_hidden_layers
        skipped = policy.skip_layers if isinstance(policy, BoundedPolicy) else ()
        if beyond := [layer for layer in skipped if layer >= layers]:
            raise ValueError(
                f"skip_layers={skipped}: layer {beyond[0]} does not exist; "
                f"{type(model).__name__} has layers 0 to {layers - 1}"
            )
        self.policy, self.device = policy, model.device
        self.clock = Clock(Rope(model))
        super().__init__(layers=[self._layer(layer, capacity) for layer in range(layers)])
        self._own_layers()[-1].closes_call = True
        if model.config._attn_implementation != attention.NAME:
            model.set_attn_implementation(attention.NAME)
        verify(
            model, lambda ids: model.get_output_embeddings()(KVStreamCache(model, Full()).hidden_states(model, ids)[0])
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Hand a call's keys and values to their layer."""
        if layer_idx == 0:
            if self.clock.in_call:
                raise ValueError("cache: the last call was interrupted between two layers; reset() it and start again")
            self.clock.in_call = True
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _own_layers(self) -> list[Layer]:
        return self.layers  # type: ignore[return-value]  # nobody else puts any there

    def reset(self) -> None:
        """Forget everything; the next call starts a new text."""
        self.clock.in_call = False
        super().reset()

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
        return held | {"seen": torch.tensor(self.get_seq_length()), "policy": label}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where the cache stood whose `state` this is.

        The state of a full cache serves any policy while all of its layers still keep, uncontested, every token.
        Raises ValueError for another number of layers and for a policy that this cache cannot go on from.
        """
        self.reset()
        seen, label = int(state["seen"]), bytes(state["policy"].tolist()).decode()
        regions = [self.policy.regions_of(layer) for layer in range(len(self.layers))]
        uncontested = min((each.sinks + each.recent for each in regions if each), default=seen)
        if label != str(self.policy) and (label != str(Full()) or seen > uncontested):
            raise ValueError(
                f"state: {seen} tokens under {label}, this cache is under {self.policy}; "
                f"restore a state of the same policy, or of full with at most {uncontested} tokens"
            )
        if not seen:
            return
        parts: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            place, dot, of_layer = name.partition(".")
            if dot:
                parts.setdefault(int(place), {})[of_layer] = tensor.to(self.device)
        if sorted(parts) != list(range(len(self.layers))):
            raise ValueError(
                f"state: of {len(parts)} layers, the model has {len(self.layers)}; restore one of this model"
            )
        for layer, part in zip(self._own_layers(), (parts[place] for place in sorted(parts))):
            layer.restore(part, seen)

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
        self.clock.model_rotates = False
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
