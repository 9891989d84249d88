"""What runs in a Ray worker: one function per kind of cell. Knows no Ray; gets all it needs as arguments."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import torch

from kvstream.engine import model_check
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.replay import replay_chunks
from kvstream.grid.cells import LatencyCell, QualityCell
from kvstream.grid.code_version import LATENCY, QUALITY, code_digest
from kvstream.inputs.models import load_model, resolve
from kvstream.inputs.weights import from_arrays, to_arrays
from kvstream.measure.environment import environment
from kvstream.measure.latency import Measured, Progress, Protocol, Reload
from kvstream.measure.latency import evaluate as evaluate_latency
from kvstream.measure.quality import Begun, Evaluated, begin
from kvstream.measure.quality import evaluate as evaluate_quality

TELL_S = 2.0  # progress is told this often: telling is work, too, and may disturb what is measured


class Weights(TypedDict):
    """A model as arrays that workers can share, and the digest of the code with which they are to use it.

    A dictionary, so that also a machine without kvstream can be sent one, and then tell what it lacks.
    """

    config: Any
    arrays: dict[str, np.ndarray]
    code: str


def own_code() -> str:
    """Digest of all code here that decides numbers."""
    return code_digest(dict.fromkeys(QUALITY + LATENCY))


def weights_of(cell: QualityCell | LatencyCell) -> Weights:
    """Load a cell's model. ValueError if that is no longer the one of which the cell's key was made."""
    spec = cell.model.spec
    model, _ = load_model(spec, dtype=cell.dtype)
    if (identity := resolve(spec).identity) != cell.model.identity:
        raise ValueError(
            f"models: {spec!r} was changed while the sweep ran (it was {cell.model.identity}, it is {identity}); "
            "repeat the sweep"
        )
    config, arrays = to_arrays(model)
    return Weights(config=config, arrays=arrays, code=own_code())


def check(
    weights: Weights, token_ids_T: np.ndarray | None, device: str, threads: int
) -> Iterator[dict[str, str | int | None]]:
    """Ask a model whether kvstream computes what it does: yields, once, where it was asked.

    token_ids_T: ordinary tokens of a text, if there are any. Raises ValueError with the reason why not.
    """
    where = environment()
    model_check.check(
        _built(weights, device, threads), None if token_ids_T is None else torch.as_tensor(token_ids_T).long()
    )
    yield where


def quality(
    weights: Weights, stretch: dict[str, Any], begun: Begun | None, shared: int, threads: int
) -> Iterator[tuple[list[Evaluated], dict[str, Any]]]:
    """Evaluate a job's next part: yields, once, a result per cell and where they were computed.

    begun: what it goes on from, of which `shared` tokens if that is given.
    """
    where = environment()
    model = _model(weights, stretch["device"], threads)
    if begun and shared:
        begun = begun.first(shared)
    yield evaluate_quality(model, begun=begun, **stretch), where


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
    """Build a model on shared weights, which the sweep has checked and which must not be written to."""
    model = _built(weights, device, threads)
    model_check.trust(model)
    return model


def _built(weights: Weights, device: str, threads: int) -> Any:
    _require_code(weights)
    # A reused worker keeps the last cell's number, and Ray's launcher sets OMP_NUM_THREADS to 1.
    torch.set_num_threads(threads)
    return from_arrays(weights["config"], weights["arrays"], device=device)


def _require_code(weights: Weights) -> None:
    """ValueError where this process computes with other code than the driver, whose digest the cells' keys hold."""
    if own_code() != weights["code"]:
        raise ValueError(of_another(platform.node()))


def of_another(machine: str) -> str:
    """What to say of a machine that has another kvstream than the driver."""
    return (
        f"code: kvstream on {machine} is not the one of the sweep's driver; install the same on all machines, and "
        "change it on none while a sweep runs"
    )


def latency(weights: Weights, cell: LatencyCell, threads: int) -> Iterator[Progress | tuple[Measured, dict[str, Any]]]:
    """Measure a latency cell: yields progress now and then, and last the result and where it was measured."""
    where = environment()
    _require_code(weights)
    torch.set_num_threads(threads)
    # In this process's memory, as a server's would be.
    own = {name: np.array(array) for name, array in weights["arrays"].items()}
    model: Any = from_arrays(weights["config"], own, device=cell.device)
    model_check.trust(model)
    protocol = Protocol(cell.context, cell.batch, cell.repeats.prefills, cell.repeats.rounds, cell.repeats.steps)
    reload = Reload(cell.model.spec, cell.dtype, threads, cell.policies)
    told = time.monotonic()
    for item in evaluate_latency(model, cell.policies, protocol, cell=cell.key, device=cell.device, reload=reload):
        if isinstance(item, Measured):
            yield item, where
        elif time.monotonic() - told > TELL_S:
            told = time.monotonic()
            yield item
