"""Serves one request: a prompt, then a token at a time, under a cache that lives as long as the engine.

On a GPU steps are recorded and repeated as soon as they are alike (`kvstream.engine.steady`); until then, and on other
devices, the cache serves them one by one. Knows no clock and no text: `decode` feeds it a known one, latency cells what
it predicts.

Shape legend: B texts side by side, T tokens, V vocabulary.
"""

from __future__ import annotations

from math import inf

import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.steady.layers import aligned
from kvstream.engine.steady.recorded import Recorded
from kvstream.engine.steady.step import SteadyStep
from kvstream.engine.wrappers import device_of, unwrapped
from kvstream.policies import Full, Policy
from kvstream.policies.sizes import kept_by_layer

ROOM = 1024  # tokens that a full cache grows by before steps are recorded anew: each reads all of its slots
EAGER, GRAPH = "eager", "CUDA graph"  # ways of launching a step
WORTH = 32  # steps alike for which one is recorded where each is made once


class DecodeEngine:
    """A model and a `KVStreamCache` under `policy`; `capacity`: the most tokens that a request will have.

    steady: whether steps that are alike are taken as such; None: where the device gains by it. compiled: whether
    torch.compile then makes fewer operations of them, which takes many seconds once for each request. repeated: whether
    requests go back and make the same few steps again and again, as latency cells do; else steps are taken as such only
    where many are alike.
    Raises ValueError for models that `KVStreamCache` cannot serve.
    """

    held = False  # whether each step takes the place of the last

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        *,
        capacity: int | None = None,
        steady: bool | None = None,
        compiled: bool = False,
        repeated: bool = False,
    ) -> None:
        self.model = unwrapped(model)
        self.steady = compiled or device_of(self.model).type == "cuda" if steady is None else steady
        room = aligned(capacity) if capacity and self.steady else capacity
        self.cache = KVStreamCache(self.model, policy, capacity=room)
        self.prompt_tokens, self.capacity = 0, None if repeated else capacity
        self.compiled = compiled
        self.room = None if compiled or repeated else ROOM
        self.fewest = 1 if repeated else WORTH  # steps alike for which one is recorded
        self.recorded: Recorded | None = None
        self.paused = False  # whether the last step was another than those that are recorded

    def prefill(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Begin a request with its prompt, chunk by chunk as replay does: logits after its last token, (B, V)."""
        self.rest()
        self.cache.reset()
        self.prompt_tokens = ids_BT.shape[1]
        *before, last = ids_BT.split(chunk_size_for(self.model, len(ids_BT)), dim=1)
        for chunk in before:
            self.cache.hidden_states(self.model, chunk)
        return self._logits(last)

    def step(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Take one more token of each text: logits after it, (B, V)."""
        if self.recorded and not self.recorded.step.goes_on:
            self.rest()
        if self.steady and self.recorded is None:
            found = SteadyStep.of(
                self.model, self.cache, held=self.held, room=self.room, fewest=self.fewest, most=self._to_come
            )
            self.recorded = Recorded(found, self.cache.device, compiled=self.compiled) if found else None
        self.paused = self.recorded is not None and self.recorded.step.pauses
        if not self.recorded or self.paused:
            logits_BV = self._logits(ids_B1)
            if self.recorded:
                self.recorded.step.passed()
            return logits_BV
        return self.recorded(ids_B1)

    def rewind(self) -> None:
        """Have the next steps cost what they do right after the prompt.

        Layers that still grow go back to its length; only their sizes do, as they may hold later tokens by now.
        """
        if self.recorded and self.recorded.step.rewind(self.prompt_tokens):
            return
        self.rest()
        for layer in self.cache.own_layers():
            layer.rewind(self.prompt_tokens)

    @property
    def launched(self) -> str:
        """How steps that are alike are launched by now: `eager`, `compiled`, `CUDA graph` or `compiled, CUDA graph`."""
        if self.recorded is None:
            return EAGER
        ways = "compiled" * self.recorded.compiled, GRAPH * (self.recorded.graph is not None)
        return ", ".join(filter(None, ways)) or EAGER

    @property
    def _to_come(self) -> float:
        """How many steps are still to come, as far as that was said."""
        left = (self.capacity or 0) - self.cache.get_seq_length()
        return left if left > 0 else inf

    @property
    def settled(self) -> bool:
        """Whether all is recorded that will be; asked after a step."""
        return self.recorded is None or self.recorded.settled

    def rest(self) -> None:
        """Leave the cache as its own calls expect it; a later step begins anew."""
        if self.recorded:
            self.recorded.step.end()
        self.recorded = None

    @torch.inference_mode()
    def _logits(self, ids_BT: torch.Tensor) -> torch.Tensor:
        hidden_BTE = self.cache.hidden_states(self.model, ids_BT)
        logits_BV: torch.Tensor = self.model.get_output_embeddings()(hidden_BTE[:, -1])
        return logits_BV


class HeldDecodeEngine(DecodeEngine):
    """The twin of a `DecodeEngine` without eviction: as many keys per layer as the policy keeps after the prompt.

    Every step overwrites the last, so its steps cost what the policy's would if keeping within the budget were free.
    """

    held = True

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        *,
        prompt_tokens: int,
        steady: bool | None = None,
        compiled: bool = False,
    ) -> None:
        layers = unwrapped(model).config.num_hidden_layers
        self.kept = kept_by_layer(policy, layers, prompt_tokens)
        super().__init__(model, Full(), capacity=max(self.kept) + 1, steady=steady, compiled=compiled, repeated=True)

    def prefill(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Fill the cache with the first tokens of a prompt: logits after the last of them, (B, V)."""
        return super().prefill(ids_BT[:, : max(self.kept)])

    def step(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Take one token in place of the one before: logits after it, (B, V)."""
        for layer, kept in zip(self.cache.own_layers(), self.kept):
            layer.rewind(kept)
        return super().step(ids_B1)

    def rewind(self) -> None:
        """Nothing grows."""
