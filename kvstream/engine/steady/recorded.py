"""Steady steps on a GPU: the first run as they are, then a CUDA graph of one is recorded and repeated.

One launch in place of several hundred: at batch 1 a step of a small model is little else than launches.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from itertools import count
from threading import Lock, get_ident
from types import FunctionType
from typing import Any

import torch

from kvstream.engine.lack_of_memory import lacks_memory
from kvstream.engine.notes import first_line, note
from kvstream.engine.steady.step import SteadyStep

WARM_UP = 3  # steps in which libraries choose their kernels and make room; torch asks for a few before recording
COMPILED = count()
IN_VAIN = "_kvstream_unrecorded"  # an attribute of the model: device and policy of steps that could not be recorded


def compiled_step(step: SteadyStep) -> Callable[[torch.Tensor], torch.Tensor]:
    """Have a step compiled, as a function with code of its own: torch gives up on code that it compiled a few times."""

    def compute(ids_B1: torch.Tensor) -> torch.Tensor:
        return step.compute(ids_B1)

    code = compute.__code__.replace(co_name=f"step_{next(COMPILED)}")
    # What a compiler makes lies among a function's globals: these go with the step.
    own = FunctionType(code, {"__builtins__": builtins}, closure=compute.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def index_of(device: torch.device) -> int:
    """The number of a GPU; the current one's where none is said."""
    return torch.cuda.current_device() if device.index is None else device.index


def generator_of(device: torch.device) -> Any:
    """What draws a GPU's random numbers, unless it is told otherwise."""
    return torch.cuda.default_generators[index_of(device)]


class Side:
    """The stream of a GPU that a thread's steps run on until they are recorded, and are recorded from.

    One for all, as torch gives cuBLAS a workspace for each thread and stream (32 MiB on a Hopper), which stays: it is
    no request's memory. Recorded steps go on using it, wherever they are replayed, so each step waits for the last.
    """

    def __init__(self, index: int, thread: int) -> None:  # noqa: ARG002 - which tells threads apart, in the cache
        self.stream: Any = torch.cuda.Stream(index)
        self.last: Any = self.stream  # what ran the last step
        self.lock = Lock()  # an engine may go on in another thread, beside others of this one
        self.spare: Any = None  # the pool of a recording that failed: torch keeps what lies in it
        with torch.cuda.stream(self.stream):
            some = torch.ones(2, 2, device=f"cuda:{index}")
            some @ some  # makes the workspace

    def current(self) -> Any:
        """The stream that a step is asked for on, once it has waited for the last step."""
        now = torch.cuda.current_stream(self.stream.device)
        if now.cuda_stream != self.last.cuda_stream:
            now.wait_stream(self.last)
            self.last = now
        return now


side_of = cache(Side)


class Recorded:
    """Calls a steady step. Where a device records nothing, or cannot record this one, each call computes it anew.

    compiled: have torch.compile fuse its operations first, which takes the first call many seconds.
    """

    def __init__(self, step: SteadyStep, device: torch.device, *, compiled: bool = False) -> None:
        self.step, self.device, self.calls = step, device, 0
        self.compute = compiled_step(step) if compiled else step.compute
        self.compiled = compiled
        self.in_vain: set[tuple[int, str, bool, bool]] = vars(step.model).setdefault(IN_VAIN, set())
        self.records = device.type == "cuda" and self._name not in self.in_vain
        self.graph: Any = None
        self.side: Any = side_of(index_of(device), get_ident()) if self.records else None

    @property
    def _name(self) -> tuple[int, str, bool, bool]:
        """What else cannot be recorded if this cannot."""
        return index_of(self.device), str(self.step.cache.policy), self.step.held, self.compiled

    @property
    def settled(self) -> bool:
        """Whether the next step costs what those after it do."""
        return not self.records or self.graph is not None

    def __call__(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Take a token of each text: logits after it, (B, V), which stay as they are."""
        with self.side.lock if self.side else nullcontext():
            return self._call(ids_B1)

    def _call(self, ids_B1: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        before = self.side.current() if self.records else None
        if self.records and self.graph is None and self.calls > WARM_UP:
            self._record(ids_B1, before)
        if self.graph is None:
            logits_BV = self._beside(ids_B1, before) if self.records else self.compute(ids_B1)
        else:
            self.ids_B1.copy_(ids_B1)
            self.graph.replay()
            logits_BV = self.logits_BV.clone()  # the next replay writes there
        self.step.count()
        return logits_BV

    def _beside(self, ids_B1: torch.Tensor, before: Any) -> torch.Tensor:
        """Compute a step on the stream that a graph is recorded from."""
        self.side.stream.wait_stream(before)
        with torch.cuda.stream(self.side.stream):
            logits_BV = self.compute(ids_B1)
        before.wait_stream(self.side.stream)
        return logits_BV

    def _record(self, ids_B1: torch.Tensor, before: Any) -> None:
        """Record a step without computing it; a model that asks the device something cannot be recorded."""
        graph: Any = torch.cuda.CUDAGraph()
        self.ids_B1, pool = ids_B1.clone(), self.side.spare or torch.cuda.graph_pool_handle()
        self.side.spare = None
        generator = generator_of(self.device)
        drawn = generator.clone_state()
        try:
            # Other threads, such as Ray's, may go on allocating meanwhile.
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, pool, stream=self.side.stream, capture_error_mode="thread_local"),
            ):
                self.logits_BV = self.compute(self.ids_B1)
        except RuntimeError as error:
            self._recover(before, generator, drawn, pool)
            if lacks_memory(error):
                raise
            self.records = False
            self.in_vain.add(self._name)
            note(f"decoding: no CUDA graph of a step, each is launched anew ({first_line(error)})")
        else:
            self.graph = graph

    def _recover(self, before: Any, generator: Any, drawn: Any, pool: Any) -> None:
        """Put right what torch leaves behind a recording that failed."""
        with torch.cuda.device(self.device):
            # The recording's stream is still current, and the generator one that draws in recordings alone.
            torch.cuda.set_stream(before)
            generator.graphsafe_set_state(drawn)
        # Before torch 2.12 the allocator takes the recording for under way, and then neither frees what it keeps when
        # memory is short, nor lets another be recorded. Later ones say that there is none.
        # https://github.com/pytorch/pytorch/pull/180395
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index_of(self.device), pool)
        self.side.spare = pool
