"""Decoding a known text token by token, with slots overwritten in place: what generation does, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.call_checks import refuse_ids
from kvstream.engine.replay import one_text, score
from kvstream.engine.wrappers import unwrapped, vocabulary_of
from kvstream.policies import Policy


@dataclass(frozen=True)
class Decoded:
    """nll_nats (T−1,): −ln p of each token but the first, in nats. step_s (T−1,): wall time per step, in seconds."""

    nll_nats: torch.Tensor
    step_s: torch.Tensor


def decode(model: PreTrainedModel, input_ids: torch.Tensor, policy: Policy) -> Decoded:
    """Feed `input_ids`, (T,) or (1, T), one token at a time under `policy`; a step's time includes its eviction.

    Raises ValueError for fewer than two tokens, for ids that are none of the model's, or a model that `KVStreamCache`
    cannot serve.
    """
    model, ids_1T = unwrapped(model), one_text(input_ids)
    refuse_ids(ids_1T, vocabulary_of(model))
    cache = KVStreamCache(model, policy, capacity=ids_1T.shape[1])
    nll, seconds, synchronize = [], [], synchronizer(ids_1T.device)
    for token in range(ids_1T.shape[1] - 1):
        started = time.perf_counter()
        hidden = cache.hidden_states(model, ids_1T[:, token : token + 1])
        nll.append(score(model, hidden[0], ids_1T[0, token + 1 : token + 2]).nll_nats)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return Decoded(nll_nats=torch.cat(nll), step_s=torch.tensor(seconds, dtype=torch.float64))


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has done all it was given; on a CPU there is nothing to wait for."""
    if device.type in ("cuda", "mps"):
        return getattr(torch, device.type).synchronize
    return lambda: None
