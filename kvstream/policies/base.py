"""What a KV-cache policy is: which tokens a layer keeps once its budget is full.

Every bounded policy of kvstream has the same shape, *protected sinks + protected recents + a contest for the rest*,
so a policy only states three sizes (`Regions`) and, if anything is contested, who leaves. The mechanics (slots,
lifetimes, rotation) stand once, in `kvstream.engine.cache`. A policy knows neither transformers nor Ray nor files.

Shape legend: B batch, H kv-heads, S tokens, D head size.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    import torch

Position = Literal["cache", "absolute", "frozen"]


@dataclass(frozen=True)
class Regions:
    """How a budget is divided: the first `sinks` tokens, `contested` older ones, the newest `recent`."""

    sinks: int
    contested: int
    recent: int

    @property
    def budget(self) -> int:
        """Cached tokens per layer and kv-head."""
        return self.sinks + self.contested + self.recent


@dataclass(frozen=True)
class Axes:
    """The axes of a grid beside the budget; each policy takes those that are its own."""

    start_sizes: tuple[int, ...] = (4,)
    strategies: tuple[str, ...] = ("keep_low",)
    keep_ratios: tuple[float, ...] = (0.7,)
    positions: tuple[Position, ...] = ("cache",)
    skip_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Policy(ABC):
    """Base of all policies. `str(policy)` is its label in records, tables and charts, and `parse_policy` reads it back.

    A subclass sets `name`, and either `regions` or, as `Full` does, leaves it None: nothing is ever evicted.
    """

    name: ClassVar[str]

    @property
    def regions(self) -> Regions | None:
        """The division of the budget, or None for a policy that never evicts."""
        return None

    @classmethod
    def spanned(cls, budget: int, axes: Axes) -> list[Policy]:  # noqa: ARG003
        """Every policy of this class that `axes` span at `budget`."""
        return [cls()]

    def scores(self, keys_BHSD: torch.Tensor) -> torch.Tensor | None:  # noqa: ARG002
        """Score each key, shape (B, H, S): among contested tokens the lowest leaves, the youngest of equals.

        Keys come as they are cached: rotated, each to its position when it arrived. None (the default) means that
        scores decide nothing.
        """
        return None

    def draws(self, layer: int, heads: int, steps: range) -> np.ndarray | None:  # noqa: ARG002
        """Draw who leaves: shape (heads, len(steps)), the rank by age in 0 … contested. None: scores decide."""
        return None

    def regions_of(self, layer: int) -> Regions | None:
        """Regions of one layer: None where the layer never evicts."""
        return None if layer in getattr(self, "skip_layers", ()) else self.regions

    def kept(self, layer: int, tokens: int) -> int:
        """Count the tokens that `layer` keeps per kv-head after `tokens` steps."""
        regions = self.regions_of(layer)
        return tokens if regions is None else min(tokens, regions.budget)

    def __str__(self) -> str:
        """Write required fields in order, the others by name where they differ from their default."""
        required = [_word(getattr(self, f.name)) for f in fields(self) if f.default is MISSING]
        optional = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.default is not MISSING and getattr(self, f.name) != f.default
        ]
        arguments = ",".join(required + [text.replace(" ", "") for text in optional])
        return f"{self.name}({arguments})" if arguments else self.name


@dataclass(frozen=True)
class BoundedPolicy(Policy):
    """A policy with a budget. Adds the two axes that all of them share.

    position: what RoPE sees: "cache", a key's rank among the kept ones (StreamingLLM as published); "absolute", its
        index in the text; "frozen", the rank it had when it was written (a common bug, kept to show what it does).
    skip_layers: layers that never evict, so their memory is not bounded.
    """

    position: Position = field(default="cache", kw_only=True)
    skip_layers: tuple[int, ...] = field(default=(), kw_only=True)

    @classmethod
    @abstractmethod
    def at_budget(cls, budget: int, axes: Axes) -> list[BoundedPolicy]:
        """Every policy of this class at `budget`, over its own axes."""

    @classmethod
    def spanned(cls, budget: int, axes: Axes) -> list[Policy]:
        """Every policy of this class that `axes` span at `budget`: its own axes × position modes."""
        return [
            replace(policy, position=position, skip_layers=axes.skip_layers)
            for policy in cls.at_budget(budget, axes)
            for position in axes.positions
        ]

    def __post_init__(self) -> None:
        """Check what every bounded policy shares; subclasses call this and add their own checks."""
        one_of(self, "position", get_args(Position))
        layers = self.skip_layers
        if isinstance(layers, (str, bytes)) or not hasattr(layers, "__iter__"):
            raise refuse(self, "skip_layers", layers, "give a tuple of layer numbers such as (0, 1)")
        layers = tuple(layers)
        if any(type(layer) is not int or layer < 0 for layer in layers):
            raise refuse(self, "skip_layers", layers, "give layer numbers of 0 or more such as (0, 1)")
        object.__setattr__(self, "skip_layers", tuple(sorted(set(layers))))


def whole(policy: Policy, field: str, minimum: int) -> None:
    """Raise ValueError unless `field` is an int of at least `minimum`."""
    value = getattr(policy, field)
    if type(value) is not int or value < minimum:
        raise refuse(policy, field, value, f"give a whole number of at least {minimum}")


def one_of(policy: Policy, field: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `field` is one of `allowed`."""
    value = getattr(policy, field)
    if value not in allowed:
        raise refuse(policy, field, value, f"choose one of {', '.join(allowed)}")


def refuse(policy: Policy, field: str, value: object, remedy: str) -> ValueError:
    """Build the one error for an invalid field: policy, field, value, remedy."""
    return ValueError(f"{policy.name}: {field}={value!r} is not valid; {remedy}")


def _word(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def parse_call(label: str) -> tuple[str, list[object], dict[str, object]]:
    """Split a label such as `fix_size_l2(256,0.7,keep_low,seed=3)` into name, values and named values."""
    problem = ValueError(
        f"policy={label!r} cannot be read; write it as name(value, …, field=value), e.g. streaming_llm(4,252)"
    )
    if not isinstance(label, str):
        raise problem
    try:
        node = ast.parse(label.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise problem from None
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise problem
    try:
        values = [_literal(argument) for argument in node.args]
        named = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords if keyword.arg}
    except (ValueError, TypeError):
        raise problem from None
    if len(named) != len(node.keywords):
        raise problem
    return node.func.id, values, named


def _literal(node: ast.expr) -> object:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
