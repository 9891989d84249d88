"""Cells: the pieces of work that a sweep consists of, and the key of each.

A cell is quality, model × policy × document, or latency, model × context × batch with all policies side by side. Its
key is a hash of all that decides its result and of nothing else, so a finished cell is recognised in any later sweep.
Knows no Ray, no files, no torch.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvstream.grid.axes import Repeats
from kvstream.grid.code_version import LATENCY, QUALITY, code_digest
from kvstream.grid.terminal import visible
from kvstream.policies import BoundedPolicy, Full, Policy
from kvstream.policies.fields import policy_fields
from kvstream.policies.sizes import distinct_sizes, evicts_after, kept_by_layer

if TYPE_CHECKING:
    from kvstream.inputs.documents import Document
    from kvstream.inputs.models import ModelInfo

SCHEMA = 1
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "tf32": 4}


@dataclass(frozen=True)
class Cell(ABC):
    """What quality and latency cells have in common. modules: the code that computes them."""

    modules: ClassVar[tuple[str, ...]]
    model: ModelInfo
    device: str
    dtype: str

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens that the cell computes."""

    @property
    def code(self) -> str:
        """Digest of the code that computes it."""
        return code_digest(self.modules)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "code": self.code,
            "model": self.model.identity,
            "device": self.device.partition(":")[0],
            "dtype": self.dtype,
        }

    @property
    def key(self) -> str:
        """16 hex digits over the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def fields(self) -> dict[str, Any]:
        """What a report groups and labels by, as plain JSON values."""
        return {
            "model": self.model.spec,
            "model_identity": self.model.identity,
            "code": self.code,
            "model_note": self.model.note,
            "trained_context": self.model.trained_context,
            "vocab_size": self.model.vocab_size,
            "device": self.device,
            "dtype": self.dtype,
        }

    def kv_bytes(self, policy: Policy, tokens: int) -> int:
        """Bytes of the keys and values that `policy` keeps of one text after `tokens`, over all layers."""
        model = self.model
        kept = sum(kept_by_layer(policy, model.num_layers, tokens))
        return kept * model.num_kv_heads * model.head_dim * 2 * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class TextCell(Cell):
    """What quality cells have in common: one text, and how its tokens are told."""

    modules = QUALITY
    text: str
    document: Document
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        """Name the cell in progress lines."""
        return visible(f"{self.model.spec} · {self.label} · {self.document.name}")

    @property
    @abstractmethod
    def label(self) -> str:
        """How tokens are told, as tables and keys name it."""

    @property
    def rows(self) -> int:
        """Tokens that are scored."""
        return len(self.document.token_ids) - 1

    @property
    def identity(self) -> dict[str, Any]:
        """The engine, the policy and the tokens; the document's name, too, since it seeds random draws."""
        return super().identity | {
            "kind": "quality",
            "policy": self.label,
            "document": self.document.name,
            "token_ids": self.document.sha256,
        }

    @property
    def fields(self) -> dict[str, Any]:
        """The document, and what the full cache would hold at its end."""
        tokens = len(self.document.token_ids)
        return super().fields | {
            "kind": "quality",
            "text": self.text,
            "document": self.document.name,
            "document_sha256": self.document.sha256,
            "bos": self.document.bos,
            "join_rows": self.document.join_rows,
            **({"answers": [list(astuple(one)) for one in self.document.answers]} if self.document.answers else {}),
            "tokens": tokens,
            "lengths": list(self.lengths),
            "kv_bytes_full": self.kv_bytes(Full(), tokens),
        }


@dataclass(frozen=True)
class QualityCell(TextCell):
    """One text under one policy. metrics: `kl` where each token is compared with the full cache's, else `nll`.

    attention_loss: whether full's attention on evicted tokens is measured, too.
    """

    policy: Policy
    metrics: str = "nll"
    attention_loss: bool = False

    @property
    def label(self) -> str:
        """The policy's."""
        return str(self.policy)

    @property
    def tokens(self) -> int:
        """Length of the run."""
        return len(self.document.token_ids)

    @property
    def identity(self) -> dict[str, Any]:
        """What is measured, too."""
        return super().identity | {"metrics": self.metrics, "attention_loss": self.attention_loss}

    @property
    def fields(self) -> dict[str, Any]:
        """The policy's axes, too, and the KV memory at the end."""
        return super().fields | {
            "metrics": self.metrics,
            **policy_fields(self.policy),
            "evicts_after": evicts_after(self.policy, self.model.num_layers),
            "kv_bytes": self.kv_bytes(self.policy, self.tokens),
        }


@dataclass(frozen=True)
class RecomputeCell(TextCell):
    """One text whose every `every`-th token is told by the `window` tokens before it alone, run anew."""

    window: int
    every: int

    @property
    def label(self) -> str:
        """As a policy's is written, which it is not."""
        return f"recompute({self.window},every={self.every})"

    @property
    def rows(self) -> int:
        """The sampled tokens."""
        return super().rows // self.every

    @property
    def tokens(self) -> int:
        """A window for each sampled token, but for those that the first window holds."""
        return min(self.window, super().rows) + max(0, self.rows - self.window // self.every) * self.window

    @property
    def fields(self) -> dict[str, Any]:
        """Window and sample, too, and the KV memory of a window."""
        return super().fields | {
            "policy": self.label,
            "policy_name": "recompute",
            "policy_fields": {"window": self.window, "every": self.every},
            "every": self.every,
            "position_mode": "cache",  # 0 … window − 1
            **dict.fromkeys(("strategy", "budget", "start_size", "scorer", "evicts_after")),
            "skip_layers": "",
            "kv_bytes": self.kv_bytes(Full(), min(self.window, super().rows)),
        }


@dataclass(frozen=True)
class LatencyCell(Cell):
    """All policies side by side at one prompt length and batch size."""

    modules = LATENCY
    policies: tuple[Policy, ...]
    context: int
    batch: int
    repeats: Repeats
    threads: int | None  # None: every core of the node

    def __str__(self) -> str:
        """Name the cell in progress lines."""
        return visible(f"{self.model.spec} · latency · context {self.context:,} · batch {self.batch}")

    @property
    def tokens(self) -> int:
        """Roughly the tokens that the cell computes: prefills of every policy, of full again and of DynamicCache."""
        prefills = self.repeats.prefills + (self.device != "cpu")  # one more to warm up
        return self.batch * self.context * prefills * (len(self.policies) + 2)

    @property
    def identity(self) -> dict[str, Any]:
        """The engine, the policies that run side by side, and how they are measured."""
        return super().identity | {
            "kind": "latency",
            "policies": [str(policy) for policy in self.policies],
            "context": self.context,
            "batch": self.batch,
            "repeats": asdict(self.repeats),
            "threads": self.threads,
        }

    @property
    def fields(self) -> dict[str, Any]:
        """The cell's axes."""
        axes = {"kind": "latency", "context": self.context, "batch": self.batch}
        return super().fields | axes | asdict(self.repeats)

    @property
    def kv_bytes_held(self) -> int:
        """Bytes of all caches held at once: the policies', full again, DynamicCache, the twins without eviction."""
        fulls = [Full()] * (3 + self.repeats.compiled)  # one takes a prompt while compiled steps wait
        tokens, layers = self.context + self.repeats.steps + 1, self.model.num_layers
        bounded = [policy for policy in self.policies if isinstance(policy, BoundedPolicy)]
        held = sum(self.kv_bytes(policy, tokens) for policy in (*fulls, *bounded))
        for twin in distinct_sizes(bounded, layers, self.context):  # which reserves its largest layer's room in all
            held += self.kv_bytes(Full(), max(kept_by_layer(twin, layers, tokens)))
        return self.batch * held
