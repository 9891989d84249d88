"""A latency cell: what a request costs under each policy, measured side by side in one process. Knows no Ray, no files.

All contenders take turns in a seeded random order, step after step, so that whatever drifts on a machine drifts under
all of them: a busy neighbour slows a shared machine for tens of milliseconds, a few steps. Beside the policies run:

    full                        a full cache in preallocated buffers: the strongest honest baseline
    full (again)                the same under another name: what a difference between equals looks like here
    DynamicCache                transformers' default, which concatenates at every step
    <policy> without eviction   the same number of cached keys, none leaving: the difference is what eviction costs;
                                one for all policies that keep as many, and none where nothing is evicted

Definitions are vLLM's (https://docs.vllm.ai/en/latest/benchmarking/cli.html): TTFT, the seconds from a prompt to its
first output token, eviction included; ITL, the gap between two output tokens; TPOT, the mean gap of one request,
(latency − TTFT) / (output tokens − 1).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import DynamicCache, PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.decode import synchronizer
from kvstream.engine.layer import UnboundedLayer
from kvstream.inputs.models import load_model
from kvstream.measure import machine_noise as noise
from kvstream.measure.peak_memory import can_reset, peak_bytes
from kvstream.policies import Full, Policy
from kvstream.policies.fields import policy_fields
from kvstream.policies.sizes import distinct_sizes

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
        pa.field("turn", pa.int32(), nullable=False),  # place in the random order of this prefill or step
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


@dataclass(frozen=True)
class Progress:
    """Share of a cell's work that is done, and what comes next."""

    share: float
    what: str


@dataclass(frozen=True)
class Measured:
    """A finished cell: raw samples, one description per contender, signs of noise, and the seconds it all took."""

    rows: pa.Table
    contenders: list[dict[str, Any]]
    noise: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Reload:
    """How a fresh process gets the same model and policies."""

    spec: str
    dtype: str
    threads: int
    policies: tuple[Policy, ...]


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


def evaluate(
    model: PreTrainedModel, policies: Sequence[Policy], protocol: Protocol, *, cell: str, device: str, reload: Reload
) -> Iterator[Progress | Measured]:
    """Measure one cell: yields what it is at, and last the result."""
    started, noise_before = time.perf_counter(), noise.before()
    generator = torch.Generator().manual_seed(protocol.seed)
    vocabulary = model.config.vocab_size
    prompt_BT = torch.randint(vocabulary, (protocol.batch, protocol.context), generator=generator).to(device)
    runners = contenders(model, policies, protocol)
    peaks: dict[str, int] = {}
    for runner in runners:
        yield Progress(0.0, f"warm-up and memory, {runner.label}")
        peaks |= warm_up(runner, prompt_BT, device, reload)
    rows = pa.table([])
    for item in measure(cell, runners, prompt_BT, protocol):
        if isinstance(item, Progress):
            yield item
        else:
            rows = item
    noise_after = noise.after(noise_before)
    described = [runner.description | runner.kv_bytes | {"peak_bytes": peaks.get(runner.label)} for runner in runners]
    yield Measured(rows, described, noise_after, time.perf_counter() - started)


def warm_up(runner: Contender, prompt_BT: torch.Tensor, device: str, reload: Reload) -> dict[str, int]:
    """Serve a request that is not timed, and return its peak memory in bytes under the runner's label.

    A short request before loads code and libraries, which are no part of what serving takes. Full again and twins are
    not asked for their peaks: nothing is returned for them.
    """
    if runner.label == FULL_AGAIN or isinstance(runner, HeldContender):
        runner.serve(prompt_BT)
        return {}
    runner.serve(prompt_BT[:, :CHUNK_SIZE])
    runner.release()
    return {runner.label: _peak(runner, prompt_BT, device, reload)}


def measure(
    cell: str, runners: list[Contender], prompt_BT: torch.Tensor, protocol: Protocol
) -> Iterator[Progress | pa.Table]:
    """Let all `runners` take turns: yields what comes next before each turn, and last the table of raw samples.

    Each has served a request before. The share of the work that is done is the share of the rounds.
    """
    synchronize = synchronizer(prompt_BT.device)
    order = np.random.default_rng(protocol.seed)
    samples: list[tuple[str, str, int, int, int, float]] = []
    prefilled = [runner for runner in runners if not isinstance(runner, HeldContender)]
    share = 0.0

    def clock(action: Callable[[], None]) -> float:
        synchronize()
        started = time.perf_counter()
        action()
        synchronize()
        return time.perf_counter() - started

    with _undisturbed():
        # Rounds are spread over the prefills: where memory happens to lie is part of what varies, too.
        for prefill, rounds in enumerate(np.array_split(range(protocol.rounds), max(protocol.prefills, 1))):
            for turn, place in enumerate(order.permutation(len(prefilled)) if protocol.prefills else ()):
                runner = prefilled[place]
                yield Progress(share, f"prefill {prefill + 1} of {protocol.prefills}, {runner.label}")
                seconds = clock(partial(runner.start, prompt_BT))
                samples.append((runner.label, "ttft", prefill, turn, 0, seconds))
            for number in map(int, rounds):
                share = number / protocol.rounds
                for place in order.permutation(len(runners)):
                    runner = runners[place]
                    yield Progress(share, f"round {number + 1} of {protocol.rounds}, {runner.label}")
                    runner.rewind()
                    runner.step()  # not kept: the first step after going back may have more to do than the others
                for step in range(protocol.steps):
                    for turn, place in enumerate(order.permutation(len(runners))):
                        samples.append((runners[place].label, "step", number, turn, step, clock(runners[place].step)))
    columns = list(zip(*samples))
    yield pa.table([[cell] * len(samples), *columns], schema=LATENCY_ROWS)


def _peak(runner: Contender, prompt_BT: torch.Tensor, device: str, reload: Reload) -> int:
    """Peak bytes of a prefill and a few tokens, in this process if its peak can be reset, else in a fresh one."""
    if can_reset(device):
        return runner.peak(prompt_BT, device)
    runner.serve(prompt_BT)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_peak_in_fresh_process, reload, runner.label, prompt_BT, runner.protocol).result()


def _peak_in_fresh_process(reload: Reload, label: str, prompt_BT: torch.Tensor, protocol: Protocol) -> int:
    torch.set_num_threads(reload.threads)
    model, _ = load_model(reload.spec, dtype=reload.dtype)
    [runner] = [r for r in contenders(model, reload.policies, protocol) if r.label == label]
    return runner.peak(prompt_BT, "cpu")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection in the meantime."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
