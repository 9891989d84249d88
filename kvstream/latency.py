"""A latency cell: what a request costs under each policy, measured side by side in one process. Knows no Ray, no files.

All contenders take turns in a seeded random order, round after round, so that whatever drifts on a machine drifts
under all of them. Beside the policies run:

    full                        a full cache in preallocated buffers: the strongest honest baseline
    full (again)                the same under another name: what a difference between equals looks like here
    DynamicCache                transformers' default, which concatenates at every step
    <policy> without eviction   the same number of cached keys, none leaving: the difference is what eviction costs

Definitions are vLLM's (https://docs.vllm.ai/en/latest/benchmarking/cli.html): TTFT, the seconds from a prompt to its
first output token, eviction included; ITL, the gap between two output tokens; TPOT, the mean gap of one request,
(latency − TTFT) / (output tokens − 1).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import DynamicCache, PreTrainedModel

from kvstream.cache import KVStreamCache
from kvstream.layer import UnboundedLayer
from kvstream.policies import BoundedPolicy, Full, Policy
from kvstream.replaying import CHUNK_SIZE

FULL_AGAIN = "full (again)"
DYNAMIC = "DynamicCache"
WITHOUT_EVICTION = "{} without eviction"
WARM_UP_STEPS = 3

LATENCY_ROWS = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),  # "ttft": a prefill; "step": one output token after the first
        pa.field("round", pa.int32(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),  # place in the round's random order
        pa.field("step", pa.int32(), nullable=False),  # 0 for a prefill
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)


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

    def __init__(self, label: str, model: PreTrainedModel, protocol: Protocol) -> None:
        self.label, self.model, self.protocol = label, model, protocol

    def start(self, prompt_BT: torch.Tensor) -> None:
        """Prefill the prompt and choose the first token."""
        self.cache = self._new_cache()
        self.token_B1 = self._next(self._prefill(prompt_BT))

    def step(self) -> None:
        """Choose the next token."""
        self.token_B1 = self._next(self._hidden(self.token_B1))

    def rewind(self) -> None:
        """Go back to the prompt's length where the cache would otherwise grow."""

    def _new_cache(self) -> Any:
        return None

    def _prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        return self._hidden(prompt_BT)

    def _hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.cache.hidden_states(self.model, ids_BT)

    def _next(self, hidden_BTE: torch.Tensor) -> torch.Tensor:
        return self.model.get_output_embeddings()(hidden_BTE[:, -1:]).argmax(-1)


class PolicyContender(Contender):
    """A `KVStreamCache` under a policy, prefilled in chunks as replay does."""

    def __init__(self, label: str, model: PreTrainedModel, protocol: Protocol, policy: Policy) -> None:
        super().__init__(label, model, protocol)
        self.policy = policy

    def rewind(self) -> None:
        """Unbounded layers forget what came after the prompt; bounded ones cost the same at any later token."""
        for layer in self.cache.layers:
            if isinstance(layer, UnboundedLayer):
                layer.seen = self.protocol.context

    def _new_cache(self) -> KVStreamCache:
        return KVStreamCache(self.model, self.policy, capacity=self.protocol.context + self.protocol.steps)

    def _prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        for chunk in prompt_BT.split(CHUNK_SIZE, dim=1):
            hidden = self._hidden(chunk)
        return hidden


class HeldContender(PolicyContender):
    """As many cached keys per layer as `policy` keeps, and no eviction: every step overwrites the last."""

    def start(self, prompt_BT: torch.Tensor) -> None:
        """Fill the cache with what the prompt's first tokens leave, layer by layer to the policy's own size."""
        self.kept = [
            self.policy.kept(layer, prompt_BT.shape[1]) for layer in range(self.model.config.num_hidden_layers)
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


def contenders(model: PreTrainedModel, policies: tuple[Policy, ...], protocol: Protocol) -> list[Contender]:
    """Every policy once, full twice, DynamicCache, and each bounded policy's twin that does not evict."""
    found: list[Contender] = [PolicyContender(str(policy), model, protocol, policy) for policy in (Full(), *policies)]
    found = list({contender.label: contender for contender in found}.values())
    found.append(PolicyContender(FULL_AGAIN, model, protocol, Full()))
    found.append(DynamicContender(DYNAMIC, model, protocol))
    return found + [
        HeldContender(WITHOUT_EVICTION.format(policy), model, protocol, policy)
        for policy in dict.fromkeys(policies)
        if isinstance(policy, BoundedPolicy)
    ]


def measure(
    cell: str, runners: list[Contender], prompt_BT: torch.Tensor, protocol: Protocol
) -> Iterator[tuple[float, str] | pa.Table]:
    """Measure all `runners`: yields (share done, what comes next) before each turn, and last the raw samples."""
    synchronize = _synchronizer(prompt_BT.device)
    order = np.random.default_rng(protocol.seed)
    samples: list[tuple[str, str, int, int, int, float]] = []
    prefilled = [runner for runner in runners if not isinstance(runner, HeldContender)]
    turns = len(prefilled) * (protocol.prefills + 1) + len(runners) * protocol.rounds
    done = 0

    def clock(action: Callable[[], None]) -> float:
        synchronize()
        started = time.perf_counter()
        action()
        synchronize()
        return time.perf_counter() - started

    with _undisturbed():
        for runner in runners:  # warm-up: code paths, allocator, caches; nothing of it is kept
            yield done / turns, f"warm-up, {runner.label}"
            runner.start(prompt_BT)
            for _ in range(WARM_UP_STEPS):
                runner.step()
            done += not isinstance(runner, HeldContender)
        for number in range(protocol.prefills):
            for turn, place in enumerate(order.permutation(len(prefilled))):
                runner = prefilled[place]
                yield done / turns, f"prefill {number + 1} of {protocol.prefills}, {runner.label}"
                samples.append((runner.label, "ttft", number, turn, 0, clock(lambda: runner.start(prompt_BT))))  # noqa: B023
                done += 1
        for number in range(protocol.rounds):
            for turn, place in enumerate(order.permutation(len(runners))):
                runner = runners[place]
                yield done / turns, f"round {number + 1} of {protocol.rounds}, {runner.label}"
                runner.rewind()
                runner.step()  # not kept: brings this contender's memory back into the processor's caches
                samples += [
                    (runner.label, "step", number, turn, step, clock(runner.step)) for step in range(protocol.steps)
                ]
                done += 1
    columns = list(zip(*samples))
    yield pa.table([[cell] * len(samples), *columns], schema=LATENCY_ROWS)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection in the meantime."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _synchronizer(device: torch.device) -> Callable[[], None]:
    if device.type in ("cuda", "mps"):
        return getattr(torch, device.type).synchronize
    return lambda: None
