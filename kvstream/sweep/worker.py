"""What a worker of a sweep does: keeps one model, and computes one piece of work after another. Knows no Ray.

It has all it needs from its arguments: which device and how many threads, a model's weights, and what to compute.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from kvstream.engine import model_check
from kvstream.engine.chunk_choice import take_less
from kvstream.engine.lack_of_memory import lacks_memory
from kvstream.engine.notes import new_notes
from kvstream.grid.cells import Cell, LatencyCell
from kvstream.grid.code_version import LATENCY, QUALITY, code_digest
from kvstream.inputs.model_loading import load_model
from kvstream.inputs.models import resolve
from kvstream.inputs.weights import TF32, from_arrays, multiply_as, to_arrays
from kvstream.measure.environment import environment
from kvstream.measure.latency import Measured, Progress, Protocol
from kvstream.measure.latency import evaluate as evaluate_latency
from kvstream.measure.peak_memory import peak_bytes
from kvstream.measure.quality import Evaluated, evaluate_attention, evaluate_windows
from kvstream.measure.quality import evaluate as evaluate_quality
from kvstream.measure.scores import Begun, FullRun, begin, run_full

NO_MEMORY = (
    "its device ran out of memory; give shorter texts or contexts, smaller budgets or batches, or for texts "
    "--metrics nll, which runs no full cache beside"
)
TELL_S = 2.0  # progress is told this often: telling is work, too, and may disturb what is measured


class Weights(NamedTuple):
    """A model as its configuration and arrays that workers can share."""

    config: Any
    arrays: dict[str, np.ndarray]
    dtype: str = "float32"  # as flags name it


class Finished(NamedTuple):
    """What came of a piece of work, when it began and ended by the machine's monotonic clock, and what was noted."""

    result: Any
    began_s: float
    ended_s: float
    notes: tuple[str, ...]


def own_code() -> str:
    """Digest of all code here that decides numbers."""
    return code_digest(dict.fromkeys(QUALITY + LATENCY))


def own_gpu(given: Sequence[int | str], visible: str) -> str:
    """Name the GPU that a process was given as torch does: by its place among those that the process sees.

    visible: CUDA_VISIBLE_DEVICES; Ray sets it to what it gives, unless it is told not to.
    """
    own, seen = str(given[0]), visible.split(",")
    return f"cuda:{seen.index(own) if own in seen else own}"


def make_room() -> None:
    """After work that lacked memory, whose tensors its error held until now."""
    gc.collect()
    torch.cuda.empty_cache()  # CUDA's libraries cannot have what torch keeps


def weights_of(cell: Cell) -> Weights:
    """Load a cell's model. ValueError if that is no longer the one of which the cell's key was made."""
    spec = cell.model.spec
    model, _ = load_model(spec, dtype="float32" if cell.dtype == TF32 else cell.dtype)
    if (identity := resolve(spec).identity) != cell.model.identity:
        raise ValueError(
            f"models: {spec!r} was changed while the sweep ran (it was {cell.model.identity}, it is {identity}); "
            "repeat the sweep"
        )
    return Weights(*to_arrays(model), cell.dtype)


class Worker:
    """Keeps the last model it was given, and what it last replayed with a full cache, for all jobs on these texts.

    device: `cpu`, `mps`, or one GPU such as `cuda:1`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._model: Any = None
        self._first: tuple[Any, Begun] | None = None  # of which texts
        self._full: tuple[list[bytes], FullRun] | None = None  # of which texts
        self._lacked = False  # memory, in the work before

    def load(self, weights: Weights, *, own: bool = False) -> None:
        """Take another model in place of the one before. own: in this process's memory, not in memory that is shared.

        On a CPU, arrays that are shared must not be written to.
        """
        self._model = self._first = self._full = None
        multiply_as(weights.dtype)
        arrays = {name: np.array(array) for name, array in weights.arrays.items()} if own else weights.arrays
        self._model = from_arrays(weights.config, arrays, device=self.device)

    def do(self, call: tuple[str, dict[str, Any]], threads: int) -> Iterator[Progress | Finished]:
        """Do a piece of work, as its `call` says: yields what it is at, and last what came of it.

        Raises what the work does, and MemoryError where that is for want of a device's memory.
        """
        torch.set_num_threads(threads)  # Ray's launcher sets OMP_NUM_THREADS to 1
        if self._lacked:
            self._lacked = False
            make_room()
        began_s = time.monotonic()
        name, given = call
        result: Any = None
        try:
            if name == "latency":
                for result in self.latency(**given):
                    if isinstance(result, Progress):
                        yield result
            else:
                result = getattr(self, name)(**given)
        except Exception as error:
            self._end_if_broken()
            if not lacks_memory(error):
                raise
            self._first = self._full = None  # what was kept for other work may be what is missing
            self._lacked = True
            if self._model is not None and name != "latency":  # whose contenders are to be as they were
                take_less(self._model)
            raise MemoryError(f"{NO_MEMORY}\n{error}") from error
        yield Finished(result, began_s, time.monotonic(), new_notes())

    def check(self, token_ids_T: np.ndarray | None) -> None:
        """Ask the model whether kvstream computes what it does: ValueError with the reason why not.

        token_ids_T: ordinary tokens of a text, if there are any.
        """
        model_check.check(self._model, None if token_ids_T is None else torch.as_tensor(token_ids_T).long())

    def quality(
        self,
        stretch: dict[str, Any],
        begun: Begun | None = None,
        common: int = 0,
        shared: int = 0,
        compared: bool = False,
        attended: bool = False,
    ) -> tuple[list[Evaluated], dict[str, Any]]:
        """Evaluate a stretch of texts, as `measure.quality.evaluate` takes it: a result per text, and the machine.

        begun: what the part before left. shared: how many of the texts' first tokens are taken from a replay that
        serves several policies; common: how many that replay has. compared: with whole texts under a full cache.
        attended: whether full's attention on evicted tokens is asked for.
        """
        model, ids_BN = self._trusted(), stretch["token_ids_BN"]
        full = self._full_run(ids_BN, common) if compared else None
        if shared:
            first = full.begun if full else None
            if first is None or first.tokens < shared:
                first = self._first_tokens(ids_BN[:, : common + 1])
            begun = first.first(shared)
        found: list[Evaluated] = []

        def evaluate() -> None:
            found.extend(evaluate_quality(model, begun=begun, device=self.device, full=full, **stretch))

        if stretch["start"] or stretch["goes_on"]:  # whether memory stays flat, a text of several parts tells
            peak = peak_bytes(self.device, evaluate)
            found = [replace(one, peak_bytes=peak) for one in found]
        else:
            evaluate()
        if attended:
            lost = [evaluate_attention(model, ids, stretch["policy"], self.device) for ids in ids_BN]
            found = [replace(one, attention_loss=own) for one, own in zip(found, lost)]
        return found, environment()

    def recompute(self, **given: Any) -> tuple[list[Evaluated], dict[str, Any]]:
        """Tell a sample of a text's tokens by windows run anew, as `measure.quality.evaluate_windows` takes them."""
        return [evaluate_windows(self._trusted(), device=self.device, **given)], environment()

    def latency(self, cell: LatencyCell) -> Iterator[Progress | tuple[Measured, dict[str, Any]]]:
        """Measure a latency cell: yields what it is at now and then, and last the result and the machine."""
        protocol = Protocol(cell.context, cell.batch, **vars(cell.repeats))
        where, model, told = environment(), self._trusted(), time.monotonic()
        measuring = evaluate_latency(model, cell.policies, protocol, cell=cell.key, device=self.device)
        for item in measuring:
            if isinstance(item, Measured):
                yield item, where
            elif time.monotonic() - told > TELL_S:
                told = time.monotonic()
                yield item

    def _end_if_broken(self) -> None:
        """End this process if an error has left its GPU unusable, as some do for all that comes after."""
        if self.device.startswith("cuda"):
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError:
                os._exit(1)  # the next worker is another process

    def _trusted(self) -> Any:
        """The model, which another worker may have checked."""
        model_check.trust(self._model)
        return self._model

    def _full_run(self, token_ids_BN: np.ndarray, common: int) -> FullRun:
        """Replay whole texts with a full cache, or take what was replayed last if that holds them."""
        texts = [ids.tobytes() for ids in token_ids_BN]
        if self._full is not None:
            there, run = self._full
            if texts == there:
                return run
            if len(texts) == 1 and texts[0] in there:  # a policy that draws at random has texts one by one
                return run.of(there.index(texts[0]))
        self._full = None  # the old one goes before the new one takes memory
        self._full = texts, run_full(self._model, token_ids_BN, self.device, common)
        return self._full[1]

    def _first_tokens(self, token_ids_BN: np.ndarray) -> Begun:
        """Replay first tokens with a full cache, or take what was replayed last if that is the same."""
        texts = token_ids_BN.shape, token_ids_BN.tobytes()
        if self._first is None or self._first[0] != texts:
            self._first = None  # the old ones go before the new ones take memory
            self._first = texts, begin(self._model, token_ids_BN, self.device)
        return self._first[1]
