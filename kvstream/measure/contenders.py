"""What is measured side by side in a latency cell: one model, served from one kind of cache each.

    full                        a full cache in preallocated buffers: the strongest honest baseline
    full (again)                the same under another name: what a difference between equals looks like here
    DynamicCache                transformers' default, which concatenates at every step
    <policy> without eviction   the same number of cached keys, none leaving: the difference is what eviction costs;
                                one for all policies that keep as many, and none where nothing is evicted

Knows no clock: see `kvstream.measure.latency`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.unbounded_layer import UnboundedLayer
from kvstream.measure.peak_memory import peak_bytes
from kvstream.policies import Full, Policy
from kvstream.policies.fields import policy_fields
from kvstream.policies.sizes import distinct_sizes

FULL_AGAIN = "full (again)"
DYNAMIC = "DynamicCache"
WITHOUT_EVICTION = "{} without eviction"
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Protocol:
    """How a cell is measured: prompt length, texts at once, prefills and rounds per contender, steps per round."""

    context: int
    batch: int
    prefills: int
    rounds: int
    steps: int
    seed: int = 0


class Contender:
    """A model with one kind of cache, serving one request: `start` takes the prompt, `step` makes one token."""

    def __init__(self, label: str, model: PreTrainedModel, protocol: Protocol, policy: Policy) -> None:
        self.label, self.model, self.protocol, self.policy = label, model, protocol, policy

    def start(self, prompt_BT: torch.Tensor) -> None:
        """Prefill the prompt and choose the first token."""
        self.cache = self._new_cache()
        self.token_B1 = self._next(self._prefill(prompt_BT[:, : self.protocol.context]))

    def step(self) -> None:
        """Choose the next token."""
        self.token_B1 = self._next(self._hidden(self.token_B1))

    def rewind(self) -> None:
        """Go back to the prompt's length where the cache would otherwise grow."""

    def release(self) -> None:
        """Let go of the cache."""
        self.cache = None

    def serve(self, prompt_BT: torch.Tensor) -> None:
        """Take a prompt and make a few tokens."""
        self.start(prompt_BT)
        for _ in range(WARM_UP_STEPS):
            self.step()

    def peak(self, prompt_BT: torch.Tensor, device: str) -> int:
        """Peak bytes of serving a prompt, beyond the model's weights and whatever else is held before."""
        return peak_bytes(device, partial(self.serve, prompt_BT))

    @property
    def description(self) -> dict[str, Any]:
        """What the report groups and labels by, as plain JSON values."""
        return {"label": self.label, "role": "dynamic", "of": None, **policy_fields(self.policy)}

    @property
    def kv_bytes(self) -> dict[str, int]:
        """Bytes of keys and values over all layers: what the policy keeps after the prompt, and what is allocated."""
        keys = [layer.keys for layer in self.cache.layers]
        kept = sum(self.policy.kept(layer, self.protocol.context) for layer in range(len(keys)))
        key_bytes = keys[0].shape[0] * keys[0].shape[1] * keys[0].shape[3] * keys[0].element_size()
        allocated = sum(
            getattr(layer, "kv_bytes", layer.keys.nbytes + layer.values.nbytes) for layer in self.cache.layers
        )
        return {"kv_bytes": 2 * kept * key_bytes, "kv_bytes_allocated": allocated}

    def _new_cache(self) -> Any:
        return None

    def _prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        return self._hidden(prompt_BT)

    def _hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.cache.hidden_states(self.model, ids_BT)

    @torch.inference_mode()
    def _next(self, hidden_BTE: torch.Tensor) -> torch.Tensor:
        return self.model.get_output_embeddings()(hidden_BTE[:, -1:]).argmax(-1)


class PolicyContender(Contender):
    """A `KVStreamCache` under a policy, prefilled in chunks as replay does."""

    @property
    def description(self) -> dict[str, Any]:
        """The policy's axes, and whether this is the second full."""
        role = "again" if self.label == FULL_AGAIN else "policy"
        return super().description | {"role": role}

    def rewind(self) -> None:
        """Take every layer back to the prompt's length, but full ones, which cost the same at any later token.

        Only sizes go back: a layer that has not been full yet may hold some later tokens in place of earlier ones.
        """
        for layer in self.cache.layers:
            if isinstance(layer, UnboundedLayer):
                layer.seen = self.protocol.context
            elif self.protocol.context < layer.budget:
                layer.take_back(self.protocol.context)

    def _new_cache(self) -> KVStreamCache:
        most = self.protocol.context + max(self.protocol.steps + 1, WARM_UP_STEPS)
        return KVStreamCache(self.model, self.policy, capacity=most)

    def _prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        for chunk in prompt_BT.split(CHUNK_SIZE, dim=1):
            hidden = self._hidden(chunk)
        return hidden


class HeldContender(PolicyContender):
    """As many cached keys per layer as `policy` keeps, and no eviction: every step overwrites the last."""

    @property
    def description(self) -> dict[str, Any]:
        """The axes of the policy it is the twin of."""
        return super().description | {"role": "without eviction", "of": str(self.policy)}

    def start(self, prompt_BT: torch.Tensor) -> None:
        """Fill the cache with what the prompt's first tokens leave, layer by layer to the policy's own size."""
        self.kept = [
            self.policy.kept(layer, self.protocol.context) for layer in range(self.model.config.num_hidden_layers)
        ]
        self.cache = KVStreamCache(self.model, Full(), capacity=max(self.kept) + 1)
        self.token_B1 = self._next(self._prefill(prompt_BT[:, : max(self.kept)]))

    def step(self) -> None:
        """Choose the next token, from the same number of keys each time."""
        for layer, kept in zip(self.cache.layers, self.kept):
            layer.seen = kept
        super().step()

    def rewind(self) -> None:
        """Nothing grows."""


class DynamicContender(Contender):
    """transformers' DynamicCache with its own prefill, all at once."""

    @torch.inference_mode()
    def _hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.model.base_model(input_ids=ids_BT, past_key_values=self.cache, use_cache=True).last_hidden_state

    def rewind(self) -> None:
        """Crop what came after the prompt."""
        self.cache.crop(self.protocol.context - self.cache.get_seq_length())

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)


def contenders(model: PreTrainedModel, policies: Sequence[Policy], protocol: Protocol) -> list[Contender]:
    """Full and every policy once, full again, DynamicCache, and a twin that does not evict for each number of keys."""
    sizes = distinct_sizes(policies, model.config.num_hidden_layers, protocol.context)
    return [
        *(PolicyContender(str(policy), model, protocol, policy) for policy in dict.fromkeys((Full(), *policies))),
        PolicyContender(FULL_AGAIN, model, protocol, Full()),
        DynamicContender(DYNAMIC, model, protocol, Full()),
        *(HeldContender(WITHOUT_EVICTION.format(policy), model, protocol, policy) for policy in sizes),
    ]
