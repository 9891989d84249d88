"""A sweep as data: the axes of a grid, and the cells they span.

A cell is one evaluation: model × policy × document. Its key is a hash of all that decides its result and of nothing
else, so a finished cell is recognised in any later sweep. Knows no Ray, no files, no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstream.policies import POLICIES, Axes, BoundedPolicy, Full, Policy

if TYPE_CHECKING:
    from kvstream.models import ModelInfo
    from kvstream.text import Document

SCHEMA = 1
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# The modules that decide numbers: a change in one of them makes every cell a new one.
NUMERIC = ("attention", "bounded", "cache", "contest", "layer", "quality", "replaying", "rope", "text", "weights")


@dataclass(frozen=True)
class Grid:
    """The question a sweep asks: all `policies` on `documents` texts for each of the `models`.

    lengths: prefixes to report, in tokens; the longest is run and holds the others. text: see `kvstream.sources`.
    """

    name: str
    models: tuple[str, ...]
    policies: tuple[Policy, ...]
    text: str
    documents: int
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        """Drop repetitions and check that no axis is empty; values are checked where they are used."""
        for axis in ("models", "policies", "lengths"):
            values = tuple(dict.fromkeys(getattr(self, axis)))
            if not values:
                raise ValueError(f"{axis}: empty; name at least one")
            object.__setattr__(self, axis, values)
        for length in self.lengths:
            if type(length) is not int or length < 2:
                raise ValueError(f"lengths: {length!r} is not valid; give whole numbers of 2 tokens or more")
        if type(self.documents) is not int or self.documents < 1:
            raise ValueError(f"documents: {self.documents!r} is not valid; give a whole number of 1 or more")
        object.__setattr__(self, "lengths", tuple(sorted(self.lengths)))


@dataclass(frozen=True)
class Cell:
    """One evaluation, and what names it in records."""

    model: ModelInfo
    policy: Policy
    text: str
    document: Document
    lengths: tuple[int, ...]
    device: str
    dtype: str

    def __str__(self) -> str:
        """Name the cell in progress lines."""
        return f"{self.model.spec} · {self.policy} · {self.document.name}"

    @property
    def tokens(self) -> int:
        """Length of the run."""
        return len(self.document.token_ids)

    @property
    def key(self) -> str:
        """16 hex digits over everything that decides the result."""
        identity = {
            "schema": SCHEMA,
            "code": code_digest(),
            "kind": "quality",
            "model": self.model.identity,
            "policy": str(self.policy),
            "document": self.document.name,
            "token_ids": self.document.sha256,
            "device": self.device.partition(":")[0],
            "dtype": self.dtype,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def fields(self) -> dict[str, Any]:
        """What a report groups and labels by, as plain JSON values."""
        policy, regions = self.policy, self.policy.regions
        bounded = policy if isinstance(policy, BoundedPolicy) else None
        return {
            "kind": "quality",
            "model": self.model.spec,
            "model_identity": self.model.identity,
            "model_note": self.model.note,
            "trained_context": self.model.trained_context,
            "policy": str(policy),
            "policy_name": policy.name,
            "strategy": getattr(policy, "strategy", None),
            "position_mode": bounded.position if bounded else None,
            "budget": regions.budget if regions else None,
            "start_size": regions.sinks if regions and not regions.contested else None,
            "skip_layers": ",".join(map(str, bounded.skip_layers)) if bounded else "",
            "text": self.text,
            "document": self.document.name,
            "document_sha256": self.document.sha256,
            "tokens": self.tokens,
            "lengths": list(self.lengths),
            "device": self.device,
            "dtype": self.dtype,
            "kv_bytes": self.kv_bytes(policy),
            "kv_bytes_full": self.kv_bytes(Full()),
        }

    def kv_bytes(self, policy: Policy) -> int:
        """Bytes of the keys and values that `policy` holds after the run, over all layers."""
        model = self.model
        kept = sum(policy.kept(layer, self.tokens) for layer in range(model.num_layers))
        return kept * model.num_kv_heads * model.head_dim * 2 * DTYPE_BYTES[self.dtype]


@cache
def code_digest() -> str:
    """Digest of the modules that decide numbers, the policies included."""
    package = Path(__file__).parent
    files = [package / f"{name}.py" for name in NUMERIC] + sorted((package / "policies").glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def expand(names: Sequence[str], budgets: Sequence[int], axes: Axes) -> tuple[Policy, ...]:
    """Every policy that the axes span: each name with each budget, in that order.

    Raises ValueError for an unknown name and for values that a policy refuses.
    """
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"policies: {name!r} is unknown; choose among {', '.join(POLICIES)}")
    spanned = [policy for name in names for budget in budgets for policy in POLICIES[name].spanned(budget, axes)]
    return tuple(dict.fromkeys(spanned))
