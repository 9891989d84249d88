"""A sweep as data: `Grid`, the questions that a sweep asks, and `expand`, the policies that axes span.

What can be checked without a model or a text is checked here. Knows no Ray, no files, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvstream.policies import POLICIES, Policy
from kvstream.policies.fields import axes_of, spanned

BOS = ("auto", "on", "off")
METRICS = ("kl", "nll")
MOST = 2**31 - 1  # positions are 32-bit numbers


def _whole(field: str, value: object, least: int) -> None:
    if type(value) is not int or not least <= value <= MOST:
        bounds = f"up to {MOST:,}" if type(value) is int and value > MOST else f"of {least} or more"
        raise ValueError(f"{field}: {value!r} is not valid; give whole numbers {bounds}")


@dataclass(frozen=True)
class Repeats:
    """How a latency cell measures: prefills and rounds per contender, and output tokens per round.

    compiled: whether torch.compile fuses what a GPU records as a step, if full gains by it; see `measure.compiling`.
    """

    prefills: int = 5
    rounds: int = 40
    steps: int = 4
    compiled: bool = False

    def __post_init__(self) -> None:
        """Check that each is a number of times."""
        for name in ("prefills", "rounds", "steps"):
            _whole(name, getattr(self, name), 1)
        if not isinstance(self.compiled, bool):
            raise ValueError(f"compiled: {self.compiled!r} is not valid; give True or False")


@dataclass(frozen=True)
class Grid:
    """The questions a sweep asks of each of the `models` under each of the `policies`.

    Quality, where `lengths` are given: perplexity and accuracy on `documents` texts. The longest length, in tokens, is
    run and holds the others as its prefixes. text, join_rows: see `inputs.text_sources`; bos: see `inputs.documents`.
    metrics: `kl` compares each token's prediction with the full cache's, too (`engine.divergence`); `nll` does not.
    attention_loss: whether full's attention on evicted tokens is measured, too (`engine.attention_loss`).
    Beside the policies, in tokens: windows that are run anew for every `recompute_every`-th token (`engine.recompute`).
    Latency, where `contexts` are given: TTFT of prompts that long, in tokens, and the time per token after them, for
    each of the `batches`, the number of texts at once; `repeats` says how often.
    """

    name: str
    models: tuple[str, ...]
    policies: tuple[Policy, ...]
    text: str = "kjv"
    documents: int = 1
    lengths: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    repeats: Repeats = Repeats()
    latency_policies: tuple[Policy, ...] | None = None  # where latency cells compare fewer than all
    recompute: tuple[int, ...] = ()
    recompute_every: int = 16
    bos: str = "auto"
    join_rows: bool = False
    metrics: str = "kl"
    attention_loss: bool = False

    def __post_init__(self) -> None:
        """Drop repetitions and check the axes; what a model or text decides is checked when they are known."""
        # Records go to a folder of this name, so it may not lead elsewhere.
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.name, re.ASCII):
            raise ValueError(f"name: {self.name!r} is not valid; give up to 100 letters, digits, -, _ and .")
        self._check("models", _name)
        for axis in ("policies", "latency_policies") if self.latency_policies is not None else ("policies",):
            self._check(axis, _policy)
        for axis, least in (("lengths", 2), ("contexts", 1), ("batches", 1), ("recompute", 1)):
            self._check(axis, partial(_whole, least=least))
        for axis in ("models", "policies", "batches"):
            if not getattr(self, axis):
                raise ValueError(f"{axis}: empty; name at least one")
        if not self.lengths and not self.contexts:
            raise ValueError("lengths, contexts: both empty; give lengths to measure quality or contexts for latency")
        _whole("documents", self.documents, 1)
        _whole("recompute_every", self.recompute_every, 1)
        if self.recompute and self.recompute_every >= min(self.lengths, default=0):
            shortest = f"of {min(self.lengths)} tokens" if self.lengths else "as no lengths are given"
            raise ValueError(
                f"recompute: one in {self.recompute_every} tokens is none {shortest}; give lengths beyond that, or a "
                "smaller recompute_every"
            )
        _name("text", self.text)
        if self.bos not in BOS:
            raise ValueError(f"bos: {self.bos!r} is not valid; choose one of {', '.join(BOS)}")
        if self.metrics not in METRICS:
            raise ValueError(f"metrics: {self.metrics!r} is not valid; choose one of {', '.join(METRICS)}")
        if not isinstance(self.join_rows, bool):
            raise ValueError(f"join_rows: {self.join_rows!r} is not valid; give True or False")
        if not isinstance(self.attention_loss, bool):
            raise ValueError(f"attention_loss: {self.attention_loss!r} is not valid; give True or False")
        if not isinstance(self.repeats, Repeats):
            raise ValueError(f"repeats: {self.repeats!r} is not valid; give Repeats(…)")
        if self.repeats.compiled and not self.contexts:
            raise ValueError("compiled: no latency cells are asked for; give contexts, or leave it out")
        object.__setattr__(self, "lengths", tuple(sorted(self.lengths)))

    def _check(self, axis: str, check: Callable[[str, Any], None]) -> None:
        """Check each value of an axis, and make it a tuple without repetitions."""
        values = getattr(self, axis)
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise ValueError(f"{axis}: {values!r} is not valid; give a tuple")
        values = tuple(values)
        for value in values:
            check(axis, value)
        object.__setattr__(self, axis, tuple(dict.fromkeys(values)))


def expand(names: Sequence[str], budgets: Sequence[int], **axes: Sequence[Any]) -> tuple[Policy, ...]:
    """Every policy that the axes span: each name with each budget, in that order.

    axes: values by the axis' name, as in `expand(("streaming_llm",), (256,), start_sizes=(0, 4))`; each policy takes
    those that are its own, and its defaults for the others. Raises ValueError for an unknown name, for an axis that
    none of the policies has, and for values that a policy refuses.
    """
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"policies: {name!r} is unknown; choose among {', '.join(POLICIES)}")
    for budget in budgets:
        _whole("budgets", budget, 1)
    known = dict.fromkeys(axis for name in names for axis in axes_of(POLICIES[name]))
    for axis in axes:
        if axis not in known:
            raise ValueError(
                f"{axis}: not an axis of {', '.join(names)}; leave it out, or choose among {', '.join(known) or 'none'}"
            )
    found = [policy for name in names for budget in budgets for policy in spanned(POLICIES[name], budget, axes)]
    return tuple(dict.fromkeys(found))


def _name(field: str, value: object) -> None:
    """A name goes into records, which are UTF-8; a path may hold bytes that are not."""
    if not isinstance(value, str):
        raise ValueError(f"{field}: {value!r} is not valid; give a name")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field}: {value!r} is not UTF-8; rename it, or give it under a link's name") from None


def _policy(field: str, value: object) -> None:
    if not isinstance(value, Policy):
        raise ValueError(f"{field}: {value!r} is not valid; give policies such as StreamingLLM(4, 252)")
    if type(value) not in POLICIES.values():  # its code would be in no key, and its name another's
        raise ValueError(
            f"{field}: {value} is a {type(value).__name__}, which is not among kvstream's policies; put it into "
            "kvstream/policies/ and name it in POLICIES: then it has a name of its own, and a change of it new cells"
        )
    if value.regions and value.regions.budget > MOST:
        raise ValueError(f"{field}: {value} keeps more tokens than any text has; give budgets up to {MOST:,}")
