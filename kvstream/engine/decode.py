"""Decoding a known text token by token, with slots overwritten in place: what generation does, timed step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvstream.engine.backends import synchronize
from kvstream.engine.decode_engine import DecodeEngine
from kvstream.engine.scoring import score_logits
from kvstream.engine.token_ids import one_text, refuse_ids
from kvstream.engine.wrappers import unwrapped, vocabulary_of
from kvstream.policies import Policy


@dataclass(frozen=True)
class Decoded:
    """nll_nats (T−1,): −ln p of each token but the first, in nats. step_s (T−1,): wall time per step, in seconds, up to
    its logits: scoring them is not included."""

    nll_nats: torch.Tensor
    step_s: torch.Tensor


def decode(model: PreTrainedModel, input_ids: torch.Tensor, policy: Policy, *, compiled: bool = False) -> Decoded:
    """Feed `input_ids`, (T,) or (1, T), one token at a time under `policy`; a step's time includes its eviction.

    compiled: have torch.compile fuse a step's operations once steps are alike; the first such step takes many seconds.
    Raises ValueError for fewer than two tokens, for ids that are none of the model's, or a model that `KVStreamCache`
    cannot serve.
    """
    ids_1T, model = one_text(input_ids), unwrapped(model)
    refuse_ids(ids_1T, vocabulary_of(model))
    engine = DecodeEngine(model, policy, capacity=ids_1T.shape[1], compiled=compiled)
    nll, seconds = [], []
    for token in range(ids_1T.shape[1] - 1):
        synchronize(ids_1T.device)  # what scores the last step is none of this one's time
        started = time.perf_counter()
        logits_1V = engine.step(ids_1T[:, token : token + 1])
        synchronize(ids_1T.device)
        seconds.append(time.perf_counter() - started)
        nll.append(score_logits(logits_1V, ids_1T[0, token + 1 : token + 2]).nll_nats)
    return Decoded(nll_nats=torch.cat(nll), step_s=torch.tensor(seconds, dtype=torch.float64))
