"""What runs in a Ray worker: one function per kind of cell. Knows no Ray; gets all it needs as arguments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from kvstream.chunks import CHUNK_SIZE
from kvstream.environment import environment
from kvstream.grid import LatencyCell, QualityCell
from kvstream.latency import Measured, Progress, Protocol, Reload
from kvstream.latency import evaluate as evaluate_latency
from kvstream.models import load_model
from kvstream.quality import Begun, Evaluated, begin
from kvstream.quality import evaluate as evaluate_quality
from kvstream.replaying import replay_chunks
from kvstream.weights import from_arrays, to_arrays

Weights = tuple[Any, dict[str, np.ndarray]]
TELL_S = 2.0  # progress is told this often: telling is work, too, and may disturb what is measured


def weights_of(cell: QualityCell | LatencyCell) -> Weights:
    """Load the configuration and weights of a cell's model, as arrays that workers can share."""
    model, _ = load_model(cell.model.spec, dtype=cell.dtype)
    return to_arrays(model)


def quality(
    weights: Weights, stretch: dict[str, Any], begun: Begun | None, shared: int, threads: int
) -> tuple[list[Evaluated], dict[str, Any]]:
    """Evaluate a job's next part: a result per cell, and where it was computed.

    begun: what it goes on from, of which `shared` tokens if that is given.
    """
    where = environment()
    model = _model(weights, stretch["device"], threads)
    if begun and shared:
        begun = begun.first(shared)
    return evaluate_quality(model, begun=begun, **stretch), where


def first_tokens(weights: Weights, token_ids_BN: np.ndarray, device: str, threads: int) -> Begun:
    """Replay the first tokens of texts, for all jobs on these texts to go on from."""
    return begin(_model(weights, device, threads), token_ids_BN, device)


def pace(weights: Weights, cell: QualityCell, threads: int, seconds: float) -> list[float]:
    """Replay a cell's text so long, two chunks at least: the times at which chunks were done.

    Times are of the monotonic clock, which all processes of a machine share: those of tasks that ran at once can be
    laid side by side.
    """
    model = _model(weights, cell.device, threads)
    done: list[float] = []
    ids = torch.as_tensor(cell.document.token_ids, dtype=torch.int64, device=cell.device)
    while len(done) < 2 or done[-1] - done[0] < seconds:
        for scored in replay_chunks(model, ids, cell.policy):
            if scored.nll_nats.cpu().numel() == CHUNK_SIZE:
                done.append(time.monotonic())
            if len(done) > 1 and done[-1] - done[0] > seconds:
                break
    return done


def _model(weights: Weights, device: str, threads: int) -> Any:
    """Build a model on shared weights, which must not be written to."""
    # A reused worker keeps the last cell's number, and Ray's launcher sets OMP_NUM_THREADS to 1.
    torch.set_num_threads(threads)
    return from_arrays(*weights, device=device)


def latency(weights: Weights, cell: LatencyCell, threads: int) -> Iterator[Progress | tuple[Measured, dict[str, Any]]]:
    """Measure a latency cell: yields progress now and then, and last the result and where it was measured."""
    where = environment()
    torch.set_num_threads(threads)
    config, arrays = weights
    own = {name: np.array(array) for name, array in arrays.items()}  # in this process's memory, as a server's would be
    model: Any = from_arrays(config, own, device=cell.device)
    protocol = Protocol(cell.context, cell.batch, cell.repeats.prefills, cell.repeats.rounds, cell.repeats.steps)
    reload = Reload(cell.model.spec, cell.dtype, threads, cell.policies)
    told = time.monotonic()
    for item in evaluate_latency(model, cell.policies, protocol, cell=cell.key, device=cell.device, reload=reload):
        if isinstance(item, Measured):
            yield item, where
        elif time.monotonic() - told > TELL_S:
            told = time.monotonic()
            yield item
