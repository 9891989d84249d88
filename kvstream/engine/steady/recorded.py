"""Steady steps on a GPU: the first run as they are, then a CUDA graph of one is recorded and repeated.

One launch in place of several hundred: at batch 1 a step of a small model is little else than launches.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from kvstream.engine.notes import note
from kvstream.engine.steady.step import SteadyStep

WARM_UP = 3  # steps in which libraries choose their kernels and make room; torch asks for a few before recording


def compiled_step(step: SteadyStep) -> Callable[[torch.Tensor], torch.Tensor]:
    """Have a step compiled by itself: torch counts compilations of the same function, and gives up after a few."""
    known = signature(torch.compile).parameters
    apart: dict[str, Any] = {"isolate_recompiles": True} if "isolate_recompiles" in known else {}
    return torch.compile(step.compute, fullgraph=True, dynamic=False, **apart)


def generator_of(device: torch.device) -> Any:
    """What draws a GPU's random numbers, unless it is told otherwise."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


class Recorded:
    """Calls a steady step. Where a device records nothing, or cannot record this one, each call computes it anew.

    compiled: have torch.compile fuse its operations first, which takes the first call many seconds.
    """

    def __init__(self, step: SteadyStep, device: torch.device, *, compiled: bool = False) -> None:
        self.step, self.device, self.calls = step, device, 0
        self.compute = compiled_step(step) if compiled else step.compute
        self.records = device.type == "cuda"
        self.graph: Any = None
        # One stream for its first steps and its graph, on this device, whichever is current. Each stream has buffers of
        # its own that libraries work in, and another graph on it would share them.
        self.stream: Any = torch.cuda.Stream(device) if self.records else None

    @property
    def settled(self) -> bool:
        """Whether the next step costs what those after it do."""
        return not self.records or self.graph is not None

    def __call__(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Take a token of each text: logits after it, (B, V), which stay as they are."""
        self.calls += 1
        if self.records and self.graph is None and self.calls > WARM_UP:
            self._record(ids_B1)
        if self.graph is None:
            logits_BV = self._beside(ids_B1) if self.records else self.compute(ids_B1)
        else:
            self.ids_B1.copy_(ids_B1)
            self.graph.replay()
            logits_BV = self.logits_BV.clone()  # the next replay writes there
        self.step.count()
        return logits_BV

    def _beside(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Compute a step on the stream that a graph is recorded from."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            logits_BV = self.compute(ids_B1)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return logits_BV

    def _record(self, ids_B1: torch.Tensor) -> None:
        """Record a step without computing it; a model that asks the device something cannot be recorded."""
        graph: Any = torch.cuda.CUDAGraph()
        self.ids_B1 = ids_B1.clone()
        before, generator = torch.cuda.current_stream(self.device), generator_of(self.device)
        drawn = generator.clone_state()
        try:
            # Other threads, such as Ray's, may go on allocating meanwhile.
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                self.logits_BV = self.compute(self.ids_B1)
        except RuntimeError as error:
            with torch.cuda.device(self.device):
                # Torch leaves the recording's stream current, and the generator as one that draws in recordings alone.
                torch.cuda.set_stream(before)
                generator.graphsafe_set_state(drawn)
            self.records = False
            note(f"decoding: no CUDA graph of a step, each is launched anew ({str(error).splitlines()[0]})")
        else:
            self.graph = graph
