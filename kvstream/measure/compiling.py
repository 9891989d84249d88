"""Contenders whose steps torch.compile fuses, where that makes full's quicker: it takes many seconds for each of them.

All are compiled, or none, as they are compared with each other.
DynamicCache's steps stay as transformers launches them. Peak memory is that of requests before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import torch

from kvstream.engine.backends import seconds_of
from kvstream.engine.lack_of_memory import lacks_memory
from kvstream.engine.notes import first_line, note
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
    own = [runner for runner in runners if not isinstance(runner, DynamicContender)]
    for runner in own:
        yield runner.label
        if not serve_compiled(runner, prompt_BT):  # they would be compared with what is compiled
            for each in own:
                each.compiled = False
                each.serve(prompt_BT)
            return


def share_left(plain: PolicyContender, prompt_BT: torch.Tensor) -> float | None:
    """What a compiled step takes of one that is not, which alternate; None where it cannot be compiled."""
    compiled = PolicyContender(plain.label, plain.model, plain.protocol, plain.policy)
    if not serve_compiled(compiled, prompt_BT):
        return None
    shares = []
    for _ in range(TURNS):
        compiled.settle()
        plain.settle()
        device = prompt_BT.device
        shares.append(seconds_of(compiled.step, device) / seconds_of(plain.step, device))
    share = median(shares)
    verdict = "so steps are compiled" if share < 1 else "so no step is compiled"
    note(f"torch.compile, batch {len(prompt_BT)}: {plain.label}'s step takes {share:.2f} times as long, {verdict}")
    return share


def serve_compiled(runner: Contender, prompt_BT: torch.Tensor) -> bool:
    """Serve a request with steps that are compiled; False, with a note, where torch cannot compile them."""
    runner.compiled = True
    try:
        runner.serve(prompt_BT)
    except Exception as error:  # of all kinds, from torch's compilers
        if lacks_memory(error):
            raise
        note(f"torch.compile: no step is compiled, as {runner.label}'s cannot be ({first_line(error)})")
        runner.compiled = False
        runner.release()
    return runner.compiled
