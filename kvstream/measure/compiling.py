"""Contenders whose steps torch.compile fuses, where that makes full's quicker: it takes many seconds for each of them.

DynamicCache's steps stay as transformers launches them. Peak memory is that of requests before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch

from kvstream.engine.backends import synchronize
from kvstream.engine.notes import note
from kvstream.measure.contenders import Contender, DynamicContender, PolicyContender

TURNS = 9  # of full's step as it was and compiled
SHARES = "_kvstream_compiled"  # an attribute of the model: by texts at once, what a step takes of its time before


def compile_steps(runners: Sequence[Contender], prompt_BT: torch.Tensor) -> Iterator[str]:
    """Have steps compiled, if full's are quicker so: yields whose comes next. All were served before; full is first."""
    full, *_ = runners
    assert isinstance(full, PolicyContender), "full is measured whether it is named or not"
    shares: dict[int, float | None] = vars(full.model).setdefault(SHARES, {})
    if len(prompt_BT) not in shares:
        yield full.label
        shares[len(prompt_BT)] = share_left(full, prompt_BT)
    share = shares[len(prompt_BT)]
    if share is None or share >= 1:
        return
    for runner in runners:
        if not isinstance(runner, DynamicContender):
            yield runner.label
            if not serve_compiled(runner, prompt_BT):
                runner.serve(prompt_BT)


def share_left(plain: PolicyContender, prompt_BT: torch.Tensor) -> float | None:
    """What a compiled step takes of one that is not, which alternate; None where it cannot be compiled."""
    compiled = PolicyContender(plain.label, plain.model, plain.protocol, plain.policy)
    if not serve_compiled(compiled, prompt_BT):
        return None
    shares = []
    for _ in range(TURNS):
        compiled.settle()
        plain.settle()
        shares.append(_seconds(compiled.step, prompt_BT.device) / _seconds(plain.step, prompt_BT.device))
    share = median(shares)
    verdict = "so steps are compiled" if share < 1 else "so no step is compiled"
    note(f"torch.compile, batch {len(prompt_BT)}: {plain.label}'s step takes {share:.2f} times as long, {verdict}")
    return share


def serve_compiled(runner: Contender, prompt_BT: torch.Tensor) -> bool:
    """Serve a request with steps that are compiled; False, with a note, where torch cannot compile them."""
    runner.compiled = True
    try:
        runner.serve(prompt_BT)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of all kinds, from torch's compilers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        note(f"torch.compile: steps of {runner.label} are not compiled ({reason})")
        runner.compiled = False
        runner.release()
    return runner.compiled


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started
