"""Labels: how a policy is written in records, tables, charts and on the command line, and how one is read back.

    streaming_llm(4,252,skip_layers=(0,1))

Required fields stand in order, the others by name where they differ from their default. Knows no policy.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

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
    name, values, named = _parts(label)
    if name not in policies:
        raise ValueError(f"policy={label!r}: unknown name {name!r}; choose one of {', '.join(policies)}")
    try:
        return policies[name](*values, **named)
    except TypeError:
        known = fields(policies[name])
        takes = ", ".join([f.name for f in known if not f.kw_only] + [f.name for f in known if f.kw_only])
        raise ValueError(f"policy={label!r}: its fields do not fit; {name} takes {takes or 'none'}") from None


def _parts(label: str) -> tuple[str, list[object], dict[str, object]]:
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
