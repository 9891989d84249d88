"""Labels: how a policy is written in records, tables, charts and on the command line, and how one is read back.

    streaming_llm(4,252,skip_layers=(0,1))

Required fields stand in order, the others by name where they differ from their default. Knows no policy.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstream.policies.base import Policy


def write_label(policy: Policy) -> str:
    """Write a policy's name and what its fields hold."""
    required = [f.name for f in fields(policy) if f.default is MISSING]
    values = [value if isinstance(value := getattr(policy, name), str) else repr(value) for name in required]
    others = [f for f in fields(policy) if f.default is not MISSING and getattr(policy, f.name) != f.default]
    arguments = ",".join(values + [f"{f.name}={getattr(policy, f.name)!r}".replace(" ", "") for f in others])
    return f"{policy.name}({arguments})" if arguments else policy.name


def read_label(label: str, policies: Mapping[str, type[Policy]]) -> Policy:
    """Read a label back into one of `policies`, by name; values may stand in the order of the fields or be named.

    Raises ValueError naming what is wrong and the remedy.
    """
    try:
        node = ast.parse(label.strip(), mode="eval").body
        call: Any = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = call.func.id
        values = [_literal(argument) for argument in call.args]
        named = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    except (AttributeError, SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(
            f"policy={label!r} cannot be read; write it as name(value, …, field=value), e.g. streaming_llm(4,252)"
        ) from None
    if name not in policies:
        raise ValueError(f"policy={label!r}: unknown name {name!r}; choose one of {', '.join(policies)}")
    try:
        return policies[name](*values, **named)
    except TypeError:
        known = fields(policies[name])
        takes = ", ".join([f.name for f in known if not f.kw_only] + [f.name for f in known if f.kw_only])
        raise ValueError(f"policy={label!r}: its fields do not fit; {name} takes {takes or 'none'}") from None


def _literal(node: ast.expr) -> object:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
