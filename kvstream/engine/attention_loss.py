"""Where eviction hurts: the attention that a full cache pays to tokens which a policy has evicted, by layer and head.

Of one token in so many the full cache's attention weights are written down, and beside them which tokens the policy's
own run holds at that moment. Nothing is changed in either run. H2O, which began from such weights:
https://arxiv.org/abs/2306.14048

Shape legend: H kv-heads, G query heads per kv-head, S keys, N contested tokens by age, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from kvstream.engine.backends.reference import Reference
from kvstream.engine.bounded_layer import BoundedLayer
from kvstream.engine.cache import KVStreamCache
from kvstream.engine.layer import Layer
from kvstream.engine.lifetimes import Lifetimes
from kvstream.engine.scanned_layer import ScannedLayer
from kvstream.engine.token_ids import one_text, refuse_ids
from kvstream.engine.wrappers import unwrapped, vocabulary_of
from kvstream.policies import Full, Policy

EVERY = 61  # tokens, of which one is asked: a prime, as some policies evict in even steps


@torch.inference_mode()
def attention_loss(
    model: PreTrainedModel, input_ids: torch.Tensor, policy: Policy, *, every: int = EVERY
) -> torch.Tensor:
    """Compute which share of full's attention goes to evicted tokens: (layers, query heads), float64, means of tokens.

    input_ids: one text, (T,) or (1, T). Asked is each `every`-th token after which the policy has evicted any; all is 0
    where it never has. Raises ValueError for ids that are none of the model's, for an `every` below 2, or a model that
    `KVStreamCache` cannot serve.
    """
    if type(every) is not int or every < 2:
        raise ValueError(f"every={every!r} is not valid; give a whole number of at least 2")
    ids_1T, model = one_text(input_ids), unwrapped(model)
    refuse_ids(ids_1T, vocabulary_of(model))
    full, bounded = KVStreamCache(model, Full()), KVStreamCache(model, policy)
    asked = [_Asked(layer) for layer in full.own_layers()]
    holders = [_Holder(layer) for layer in bounded.own_layers()]
    sums = torch.zeros(len(asked), model.config.num_attention_heads, dtype=torch.float64)
    count = last = 0
    for token in range(every, ids_1T.shape[1], every):
        bounded.hidden_states(model, ids_1T[:, last:token])
        full.hidden_states(model, ids_1T[:, last + bool(last) : token + 1])
        last = token
        evicted = [~holder.holds(token) for holder in holders]
        if not any(bool(each.any()) for each in evicted):
            continue
        count += 1
        for layer, (full_layer, evicted_HS) in enumerate(zip(asked, evicted)):
            weights_HGS = full_layer.weights()[..., :token]
            sums[layer] += (weights_HGS * evicted_HS[:, None].cpu()).sum(-1).flatten()
    return sums / max(count, 1)


class _Asked:
    """A layer of a full cache whose last query is remembered."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        answer = layer._answer

        def remembering(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
            self.query_HGD, self.scaling = q[0, :, :, -1].clone(), scaling
            return answer(q, k, v, scaling)

        vars(layer)["_answer"] = remembering  # of this object alone

    def weights(self) -> torch.Tensor:
        """The last query's attention to all tokens so far: (H, G, S), float64, on the CPU."""
        layer = self.layer
        rotation = layer.tables.rotation_of((layer.seen - 1,), layer.keys)
        query_HGD = rotation(self.query_HGD).cpu().double()
        keys_HSD = layer.keys[0, :, : layer.seen].cpu().double()
        return (self.scaling * query_HGD @ keys_HSD.transpose(1, 2)).softmax(-1)


class _Holder:
    """A layer under a policy, watched for which tokens it holds."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.contested_HN = torch.empty(0, 0, dtype=torch.int64)
        if isinstance(layer, BoundedLayer) and layer.eviction:
            lifetimes = layer.eviction.lifetimes

            def watching(token: int, members: int, *arrived: torch.Tensor) -> Lifetimes:
                found = lifetimes(token, members, *arrived)
                self._follow(token - layer.layout.recent, found)
                return found

            vars(layer.eviction)["lifetimes"] = watching  # of this object alone
            allocate = layer.lazy_initialization

            def allocating(key_states: torch.Tensor, value_states: torch.Tensor) -> None:
                allocate(key_states, value_states)
                if not layer.backend.tells_lifetimes:  # then nobody would be watched
                    layer.backend = Reference(layer.device)

            vars(layer)["lazy_initialization"] = allocating

    def _follow(self, candidate: int, found: Lifetimes) -> None:
        """Take down which contested tokens stay, once candidates from this token on were offered."""
        leave_HN = found.leave_BHN[0]
        heads, members = len(leave_HN), self.contested_HN.shape[1]
        offered_N = torch.arange(candidate, candidate + leave_HN.shape[1] - members, device=leave_HN.device)
        held_HN = self.contested_HN.to(leave_HN.device) if members else offered_N.new_empty(heads, 0)
        tokens_HN = torch.cat((held_HN, offered_N.expand(heads, -1)), 1)
        self.contested_HN = tokens_HN.gather(1, found.survivors()[0])

    def holds(self, seen: int) -> torch.Tensor:
        """Which of the tokens seen are held: bool, (H or 1, S)."""
        layer = self.layer
        held_HS = torch.zeros(layer.keys.shape[1], seen, dtype=torch.bool, device=layer.keys.device)
        if isinstance(layer, ScannedLayer):
            slots_HN = layer.order_BUS[0, :, : layer.held(seen)]
            tokens_HN = layer.token_BUS[0].gather(1, slots_HN)
            return held_HS.scatter_(1, tokens_HN.expand(len(held_HS), -1), True)
        if not isinstance(layer, BoundedLayer):
            return ~held_HS
        held_HS[:, : layer.layout.sinks] = True
        held_HS[:, max(0, seen - layer.layout.recent) :] = True
        return held_HS.scatter_(1, self.contested_HN, True) if self.contested_HN.numel() else held_HS
