"""What runs in a Ray worker: one function per kind of cell. Knows no Ray; gets all it needs as arguments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from kvstream.environment import environment
from kvstream.grid import LatencyCell, QualityCell
from kvstream.latency import Measured, Progress, Protocol, Reload
from kvstream.latency import evaluate as evaluate_latency
from kvstream.models import load_model
from kvstream.quality import Evaluated
from kvstream.quality import evaluate as evaluate_quality
from kvstream.weights import from_arrays, to_arrays

Weights = tuple[Any, dict[str, np.ndarray]]
TELL_S = 2.0  # progress is told this often: telling is work, too, and may disturb what is measured


def weights_of(cell: QualityCell | LatencyCell) -> Weights:
    """Load the configuration and weights of a cell's model, as arrays that workers can share."""
    model, _ = load_model(cell.model.spec, dtype=cell.dtype)
    return to_arrays(model)


def quality(
    weights: Weights, token_ids: np.ndarray, cell: QualityCell, threads: int
) -> tuple[Evaluated, dict[str, Any]]:
    """Evaluate a quality cell: its rows, and where they were computed. Shared weights must not be written to."""
    # A reused worker keeps the last cell's number, and Ray's launcher sets OMP_NUM_THREADS to 1.
    torch.set_num_threads(threads)
    where = environment()
    model: Any = from_arrays(*weights, device=cell.device)
    names = {"cell": cell.key, "document": cell.document.name, "device": cell.device}
    return evaluate_quality(model, token_ids, cell.policy, **names), where


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
