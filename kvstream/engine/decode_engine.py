"""Serves one request: a prompt, then a token at a time, under a cache that lives as long as the engine.

Steps run eagerly. What is asked of an engine (`prefill`, `step`, `rewind`) leaves room for one that replays a captured
graph. Knows no clock and no text: `decode` feeds it a known one, latency cells what it predicts.

Shape legend: B texts side by side, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.wrappers import unwrapped
from kvstream.policies import Full, Policy
from kvstream.policies.sizes import kept_by_layer


class DecodeEngine:
    """A model and a `KVStreamCache` under `policy`; `capacity`: the most tokens that a request will have.

    Raises ValueError for models that `KVStreamCache` cannot serve.
    """

    def __init__(self, model: PreTrainedModel, policy: Policy, *, capacity: int | None = None) -> None:
        self.model = unwrapped(model)
        self.cache = KVStreamCache(self.model, policy, capacity=capacity)
        self.prompt_tokens = 0

    def prefill(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Begin a request with its prompt, chunk by chunk as replay does: logits after its last token, (B, V)."""
        self.cache.reset()
        self.prompt_tokens = ids_BT.shape[1]
        *before, last = ids_BT.split(chunk_size_for(self.model, len(ids_BT)), dim=1)
        for chunk in before:
            self.cache.hidden_states(self.model, chunk)
        return self._logits(last)

    def step(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Take one more token of each text: logits after it, (B, V)."""
        return self._logits(ids_B1)

    def rewind(self) -> None:
        """Have the next steps cost what they do right after the prompt.

        Layers that still grow go back to its length; only their sizes do, as they may hold later tokens by now.
        """
        for layer in self.cache.own_layers():
            layer.rewind(self.prompt_tokens)

    @torch.inference_mode()
    def _logits(self, ids_BT: torch.Tensor) -> torch.Tensor:
        hidden_BTE = self.cache.hidden_states(self.model, ids_BT)
        logits_BV: torch.Tensor = self.model.get_output_embeddings()(hidden_BTE[:, -1])
        return logits_BV


class HeldDecodeEngine(DecodeEngine):
    """The twin of a `DecodeEngine` without eviction: as many keys per layer as the policy keeps after the prompt.

    Every step overwrites the last, so its steps cost what the policy's would if keeping within the budget were free.
    """

    def __init__(self, model: PreTrainedModel, policy: Policy, *, prompt_tokens: int) -> None:
        layers = unwrapped(model).config.num_hidden_layers
        self.kept = kept_by_layer(policy, layers, prompt_tokens)
        super().__init__(model, Full(), capacity=max(self.kept) + 1)

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
