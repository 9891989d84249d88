"""What is measured side by side in a latency cell: one model, served from one kind of cache each.

    full                        a full cache in preallocated buffers, with nothing to copy: the baseline
    full (again)                the same under another name: what a difference between equals looks like here
    DynamicCache                transformers' default, which concatenates at every step
    <policy> without eviction   the same number of cached keys, none leaving: the difference is what eviction costs;
                                one for all policies that keep as many, and none where nothing is evicted

Knows no clock: see `kvstream.measure.latency`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from kvstream.engine.decode_engine import EAGER, DecodeEngine, HeldDecodeEngine
from kvstream.engine.steady.recorded import WARM_UP
from kvstream.policies import Full, Policy
from kvstream.policies.fields import policy_fields
from kvstream.policies.sizes import distinct_sizes, evicts_after, full_after, kept_by_layer

FULL_AGAIN = "full (again)"
DYNAMIC = "DynamicCache"
WITHOUT_EVICTION = "{} without eviction"
WARM_UP_STEPS = WARM_UP + 1  # with it a GPU records the step, whose memory is part of a request's


@dataclass(frozen=True)
class Protocol:
    """How a cell is measured: prompt length, texts at once, prefills and rounds per contender, steps per round.

    compiled: whether torch.compile fuses steps, if that is worth it.
    """

    context: int
    batch: int
    prefills: int
    rounds: int
    steps: int
    compiled: bool = False


class Contender(ABC):
    """A model with one kind of cache, serving one request after another."""

    role = "policy"

    def __init__(self, label: str, model: PreTrainedModel, protocol: Protocol, policy: Policy) -> None:
        self.label, self.model, self.protocol, self.policy = label, model, protocol, policy
        self.compiled = False  # whether its steps are
        self.engine: Any = None
        self.compiled_engine: Any = None  # while another takes a prompt
        self.peak_bytes: int | None = None  # of a request, where it was measured

    @abstractmethod
    def new_engine(self) -> Any:
        """Make what serves a request: a cache, with prefill, step, rewind and what `DecodeEngine` tells of steps."""

    def renew(self) -> None:
        """Let go of the cache, and make an empty one: neither is what a prompt waits for. Compiled steps are kept."""
        self.compiled_engine = self.engine if self.compiled else None
        self.engine = None
        self.engine = self.new_engine()

    def start(self, prompt_BT: torch.Tensor) -> None:
        """Take the prompt with the empty cache, and choose the first token."""
        self._choose(self.engine.prefill(prompt_BT[:, : self.protocol.context]))

    def take(self, prompt_BT: torch.Tensor) -> None:
        """Take the prompt with a new cache, and go on with steps that are compiled, if they are."""
        self.renew()
        self.start(prompt_BT)
        self.resume()

    def step(self) -> None:
        """Choose the next token."""
        self._choose(self.engine.step(self.token_B1))

    def resume(self) -> None:
        """Go on with steps that are compiled, if they are: behind as long a prompt they cost the same."""
        if self.compiled_engine:
            self.engine, self.compiled_engine = self.compiled_engine, None

    def rewind(self) -> None:
        """Go back to the prompt's length where the cache would otherwise grow."""
        self.engine.rewind()

    def settle(self) -> None:
        """Go back, and make steps until the next costs what those after it do: the first ones have more to do."""
        self.rewind()
        self.step()
        while not self.engine.settled:
            if not self.engine.paused:  # else the same would come again
                self.rewind()
            self.step()

    def release(self) -> None:
        """Let go of the cache."""
        self.engine = self.compiled_engine = None

    def serve(self, prompt_BT: torch.Tensor) -> None:
        """Take a prompt with a new cache and make a few tokens, on a GPU until a step is recorded."""
        self.release()
        self.renew()
        self.start(prompt_BT)
        for _ in range(WARM_UP_STEPS):
            self.step()
        while not self.engine.settled:
            self.step()

    @property
    def code(self) -> tuple[str, ...]:
        """What contenders have in common that run the same code: all but numbers."""
        return self.policy.name, *(value for value in vars(self.policy).values() if isinstance(value, str))

    @property
    def evicting(self) -> int:
        """Tokens after which some leave; zero where none ever do."""
        return evicts_after(self.policy, self.model.config.num_hidden_layers) or 0

    @property
    def in_python(self) -> bool:
        """Whether a token takes many steps in Python: on a CPU, which compiles how other policies score."""
        if self.model.device.type != "cpu" or not self.policy.scores_in_python:
            return False
        layers = self.model.config.num_hidden_layers
        return any(map(self.policy.in_layers(layers).in_turn, range(layers)))

    @property
    def description(self) -> dict[str, Any]:
        """What the report groups and labels by, as plain JSON values.

        of: the policy that a twin is of. launched: how its steps are.
        """
        return {
            "label": self.label,
            "role": self.role,
            "of": str(self.policy) if self.role == HeldContender.role else None,
            "full_after": full_after(self.policy, self.model.config.num_hidden_layers),
            "peak_bytes": self.peak_bytes,
            "launched": self.engine.launched,
        } | policy_fields(self.policy)

    @property
    def kv_bytes(self) -> dict[str, int]:
        """Bytes of keys and values over all layers: what the policy keeps after the prompt, and what is allocated."""
        layers = self.engine.cache.layers
        keys = layers[0].keys
        kept = sum(kept_by_layer(self.policy, len(layers), self.protocol.context))
        key_bytes = keys.shape[0] * keys.shape[1] * keys.shape[3] * keys.element_size()
        allocated = sum(getattr(layer, "kv_bytes", layer.keys.nbytes + layer.values.nbytes) for layer in layers)
        return {"kv_bytes": 2 * kept * key_bytes, "kv_bytes_allocated": allocated}

    def _choose(self, logits_BV: torch.Tensor) -> None:
        self.token_B1 = logits_BV.argmax(-1, keepdim=True)


class PolicyContender(Contender):
    """A `KVStreamCache` under a policy."""

    def new_engine(self) -> DecodeEngine:
        """Make one with room for the prompt and the steps until it goes back, twice as many where some are apart."""
        full, left = self.policy.shed(self.policy.regions) if self.policy.regions else (0, 0)
        most = max(self.protocol.steps + 1, WARM_UP_STEPS) * (2 if full - left > 1 else 1)
        capacity = self.protocol.context + most
        return DecodeEngine(self.model, self.policy, capacity=capacity, compiled=self.compiled, repeated=True)


class AgainContender(PolicyContender):
    """The same once more: what it differs by from its equal is noise."""

    role = "again"


class HeldContender(Contender):
    """As many cached keys per layer as `policy` keeps, and no eviction."""

    role = "without eviction"

    def new_engine(self) -> HeldDecodeEngine:
        """Make one that holds what the policy keeps of the prompt."""
        tokens = self.protocol.context
        return HeldDecodeEngine(self.model, self.policy, prompt_tokens=tokens, compiled=self.compiled)


class DynamicContender(Contender):
    """transformers' DynamicCache."""

    role = "dynamic"

    @property
    def code(self) -> tuple[str, ...]:
        """transformers' own."""
        return (DYNAMIC,)

    def new_engine(self) -> DynamicEngine:
        """Make one with an empty cache."""
        return DynamicEngine(self.model)


class DynamicEngine:
    """A model with transformers' DynamicCache and its own prefill, all at once; shapes as in `DecodeEngine`."""

    settled, paused, launched = True, False, EAGER

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.cache, self.prompt_tokens = model, DynamicCache(config=model.config), 0

    def prefill(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Begin a request with its prompt: logits after its last token."""
        self.prompt_tokens = ids_BT.shape[1]
        return self.step(ids_BT)

    @torch.inference_mode()
    def step(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Take more tokens: logits after the last."""
        output: Any = self.model.base_model(input_ids=ids_BT, past_key_values=self.cache, use_cache=True)
        logits_BV: torch.Tensor = self.model.get_output_embeddings()(output.last_hidden_state[:, -1])
        return logits_BV

    def rewind(self) -> None:
        """Crop what came after the prompt, if anything did: older versions of transformers crop all at zero."""
        if came := self.cache.get_seq_length() - self.prompt_tokens:
            self.cache.crop(-came)


def contenders(model: PreTrainedModel, policies: Sequence[Policy], protocol: Protocol) -> list[Contender]:
    """Full and every policy once, full again, DynamicCache, and a twin that does not evict for each number of keys."""
    sizes = distinct_sizes(policies, model.config.num_hidden_layers, protocol.context)
    return [
        *(PolicyContender(str(policy), model, protocol, policy) for policy in dict.fromkeys((Full(), *policies))),
        AgainContender(FULL_AGAIN, model, protocol, Full()),
        DynamicContender(DYNAMIC, model, protocol, Full()),
        *(HeldContender(WITHOUT_EVICTION.format(policy), model, protocol, policy) for policy in sizes),
    ]
