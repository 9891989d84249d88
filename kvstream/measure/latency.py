"""A latency cell: what a request costs under each policy, measured side by side in one process. Knows no Ray, no files.

All contenders take turns in a seeded random order, step after step, so that whatever drifts on a machine drifts under
all of them: a busy neighbour slows a shared machine for tens of milliseconds, a few steps.
`kvstream.measure.contenders` says who they are.

Definitions are vLLM's (https://docs.vllm.ai/en/latest/benchmarking/cli.html): TTFT, the seconds from a prompt to its
first output token, eviction included; ITL, the gap between two output tokens; TPOT, the mean gap of one request,
(latency − TTFT) / (output tokens − 1).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from kvstream.engine.backends import seconds_of
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.wrappers import vocabulary_of
from kvstream.measure import machine_noise as noise
from kvstream.measure.compiling import compile_steps
from kvstream.measure.contenders import AgainContender, Contender, HeldContender, Protocol, contenders
from kvstream.measure.peak_memory import peak_tensor_bytes
from kvstream.measure.rows import LATENCY_ROWS
from kvstream.policies import Policy

SEED = 0  # of prompts, and of the order of turns


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


def evaluate(
    model: PreTrainedModel, policies: Sequence[Policy], protocol: Protocol, *, cell: str, device: str
) -> Iterator[Progress | Measured]:
    """Measure one cell: yields what it is at, and last the result."""
    started, noise_before = time.perf_counter(), noise.before()
    generator = torch.Generator().manual_seed(SEED)
    prompt_BT = torch.randint(vocabulary_of(model), (protocol.batch, protocol.context), generator=generator).to(device)
    runners = contenders(model, policies, protocol)
    yield from warm_up(runners, prompt_BT, device)
    if protocol.compiled:
        for label in compile_steps(runners, prompt_BT):
            yield Progress(0.0, f"compiling, {label}")
    rows = pa.table([])
    for item in measure(cell, runners, prompt_BT, protocol):
        if isinstance(item, Progress):
            yield item
        else:
            rows = item
    noise_after = noise.after(noise_before)
    described = [runner.description | runner.kv_bytes for runner in runners]
    if protocol.compiled:
        torch.compiler.reset()  # else a worker would keep the code of all cells' steps
    yield Measured(rows, described, noise_after, time.perf_counter() - started)


def warm_up(runners: Sequence[Contender], prompt_BT: torch.Tensor, device: str) -> Iterator[Progress]:
    """Serve requests that are not timed: yields what comes next before each contender's.

    First of all that run the same code the one that evicts soonest serves a short one: what loads code and libraries is
    no part of what serving takes. Then each serves a whole one, for its peak memory, but for full again, and for what
    takes Python steps for each token, all of which torch's profiler would note. A twin serves no other.
    """
    loaded: set[tuple[str, ...]] = set()
    for runner in sorted(runners, key=lambda runner: runner.evicting):
        yield Progress(0.0, f"warm-up, {runner.label}")
        if isinstance(runner, HeldContender):
            runner.serve(prompt_BT)
            continue
        if runner.code not in loaded:
            loaded.add(runner.code)
            runner.serve(prompt_BT[:, : runner.evicting + CHUNK_SIZE])
            runner.release()
        if not isinstance(runner, AgainContender) and not runner.in_python:
            runner.peak_bytes = peak_tensor_bytes(device, partial(runner.serve, prompt_BT))


def measure(
    cell: str, runners: list[Contender], prompt_BT: torch.Tensor, protocol: Protocol
) -> Iterator[Progress | pa.Table]:
    """Let all `runners` take turns: yields what comes next before each turn, and last the table of raw samples.

    Each was warmed up before. The share of the work that is done is the share of the rounds.
    """
    order = np.random.default_rng(SEED)
    samples: list[tuple[str, str, int, int, int, float]] = []
    prefilled = [runner for runner in runners if not isinstance(runner, HeldContender)]
    share = 0.0
    clock = partial(seconds_of, device=prompt_BT.device)
    gc.collect()
    gc.disable()  # no garbage collection in the meantime
    try:
        # Rounds are spread over the prefills: where memory happens to lie is part of what varies, too.
        for prefill, rounds in enumerate(np.array_split(range(protocol.rounds), max(protocol.prefills, 1))):
            turns: list[int] = order.permutation(len(prefilled)).tolist() if protocol.prefills else []
            if turns and prompt_BT.is_cuda:  # recording steps gave memory back that the first would wait for
                prefilled[turns[0]].take(prompt_BT)
            for turn, place in enumerate(turns):
                runner = prefilled[place]
                yield Progress(share, f"prefill {prefill + 1} of {protocol.prefills}, {runner.label}")
                runner.renew()
                seconds = clock(partial(runner.start, prompt_BT))
                runner.resume()
                samples.append((runner.label, "ttft", prefill, turn, 0, seconds))
            for number in map(int, rounds):
                share = number / protocol.rounds
                for place in order.permutation(len(runners)):
                    runner = runners[place]
                    yield Progress(share, f"round {number + 1} of {protocol.rounds}, {runner.label}")
                    runner.settle()
                for step in range(protocol.steps):
                    for turn, place in enumerate(order.permutation(len(runners))):
                        samples.append((runners[place].label, "step", number, turn, step, clock(runners[place].step)))
    finally:
        gc.enable()
    columns = list(zip(*samples))
    yield pa.table([[cell] * len(samples), *columns], schema=LATENCY_ROWS)
