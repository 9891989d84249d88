"""A policy's fields, each declared once: its check, its axis in a grid, its flag and its record all come from here.

    start_size: Annotated[int, Axis("start_sizes", (4,), "attention sinks"), Range(0)]

is checked wherever the policy is built, is spanned by `expand(…, start_sizes=(0, 4))`, replaced by `--start-sizes 0,4`,
and written into every record. A kind is int, float, a Literal of words, or tuple[int, ...] for a set of numbers.
Knows no policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from kvstream.policies.base import Policy

NUMBERS = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """What a field spans in a grid: the axis' name, its values where none are given, and words for `--help`.

    of_budget: whether a value may be a share of the budget, such as 0.5, too; the field then holds whole tokens.
    """

    name: str
    values: tuple[Any, ...]
    words: str
    of_budget: bool = False


@dataclass(frozen=True)
class Range:
    """The least and the most that a number may be: 0 or more where nothing else is said."""

    least: float = 0
    most: float = math.inf


@dataclass(frozen=True)
class Field:
    """A field of a policy's class: its kind, the words it may be, its range, and the axis it spans, if any."""

    name: str
    kind: type
    choices: tuple[str, ...]
    range: Range
    axis: Axis | None

    def remedy(self, value: object) -> str | None:
        """What to give instead of `value`; None if it is valid."""
        least, most = self.range.least, self.range.most
        if self.choices:
            return None if value in self.choices else f"choose one of {', '.join(self.choices)}"
        if self.kind is int and (type(value) is not int or not least <= value <= most):
            return f"give a whole number of at least {least}" + (f" and at most {most}" if most < math.inf else "")
        if self.kind is float:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return None if is_number and least <= value <= most else f"give a number from {least} to {most}"  # type: ignore[operator]
        if self.kind is tuple:
            if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
                return "give a tuple of numbers such as (0, 1)"
            if any(type(number) is not int or number < 0 for number in value):
                return "give numbers of 0 or more such as (0, 1)"
        return None

    def plain(self, value: Any) -> Any:
        """The one way of writing a valid value: 1 as 1.0 where it is a float, a set of numbers in their order."""
        return float(value) if self.kind is float else tuple(sorted(set(value))) if self.kind is tuple else value


@cache
def fields_of(policy: type[Policy]) -> tuple[Field, ...]:
    """The fields of a policy's class in the order of its label: required ones first."""
    hints = get_type_hints(policy, include_extras=True)
    return tuple(_field(f.name, hints[f.name]) for f in sorted(fields(policy), key=lambda f: f.default is not MISSING))


def _field(name: str, hint: Any) -> Field:
    hint, *declared = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else tuple if hint == NUMBERS else hint
    if kind not in (int, float, str, tuple) or (kind is str and not choices):
        raise TypeError(f"{name}: {hint} is no kind of field; use int, float, a Literal of words or tuple[int, ...]")
    axis = next((each for each in declared if isinstance(each, Axis)), None)
    bounds = next((each for each in declared if isinstance(each, Range)), Range())
    return Field(name, kind, choices, bounds, axis)


def check_fields(policy: Policy) -> None:
    """Raise ValueError for the first field that its declaration forbids, and write the others in the one way."""
    for field in fields_of(type(policy)):
        value = getattr(policy, field.name)
        if remedy := field.remedy(value):
            raise refuse(policy, field.name, value, remedy)
        object.__setattr__(policy, field.name, field.plain(value))


def refuse(policy: Policy, field: str, value: object, remedy: str) -> ValueError:
    """Build the one error for an invalid field: policy, field, value, remedy."""
    return ValueError(f"{policy.name}: {field}={value!r} is not valid; {remedy}")


def axes_of(policy: type[Policy]) -> dict[str, Field]:
    """The fields of a policy's class that span an axis, by the axis' name."""
    return {field.axis.name: field for field in fields_of(policy) if field.axis}


def spanned(policy: type[Policy], budget: int, axes: Mapping[str, Iterable[Any]]) -> list[Policy]:
    """Every policy of a class at `budget`: the product of `axes`, of its own defaults where these name none."""
    own = axes_of(policy)
    values = [_values(field, axes.get(name, field.axis.values), budget) for name, field in own.items() if field.axis]
    names = [field.name for field in own.values()]
    return [policy.at_budget(budget, **dict(zip(names, each))) for each in product(*values)]


def share_of(budget: int, share: float) -> int:
    """So many tokens of a budget, rounded down.

    Of the fraction that was meant: in floats 100 · 0.29 is 28.99… and six thirds are less than two.
    """
    return math.floor(budget * Fraction(share).limit_denominator(10**6))


def _values(field: Field, given: Iterable[Any], budget: int) -> tuple[Any, ...]:
    """The values of an axis; of one whose values are tuples a single value may stand for itself."""
    values = tuple(given)
    if field.axis and field.axis.of_budget:
        for value in values:
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"{field.axis.name}: {value!r} is not valid; give tokens or a share from 0.0 to 1.0")
        return tuple(share_of(budget, value) if isinstance(value, float) else value for value in values)
    return (values,) if field.kind is tuple and not any(isinstance(value, tuple) for value in values) else values


def policy_fields(policy: Policy) -> dict[str, Any]:
    """What a record says of a policy, as plain JSON values.

    policy: its label. budget: tokens per layer and kv-head. start_size: the sinks, None where older tokens compete and
    none can be protected. scorer: which it is of the product of sinks, recents and scorers, None if none of it.
    policy_fields: every field of its class, so that a new one is recorded, too.
    """
    regions = policy.regions
    values = {field.name: getattr(policy, field.name) for field in fields_of(type(policy))}
    has_sinks = regions is not None and ("start_size" in values or not regions.contested)
    return {
        "policy": str(policy),
        "policy_name": policy.name,
        "strategy": values.get("strategy"),
        "position_mode": values.get("position"),
        "budget": regions.budget if regions else None,
        "start_size": regions.sinks if regions and has_sinks else None,
        "scorer": policy.scorer,
        "skip_layers": ",".join(map(str, values.get("skip_layers", ()))),
        "policy_fields": {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
    }
