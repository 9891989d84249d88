"""A sweep as data: the axes of a grid, and the cells they span.

A cell is one piece of work: quality, model × policy × document, or latency, model × context × batch with all policies
side by side. Its key is a hash of all that decides its result and of nothing else, so a finished cell is recognised in
any later sweep. Knows no Ray, no files, no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstream.policies import POLICIES, Axes, BoundedPolicy, Full, Policy

if TYPE_CHECKING:
    from kvstream.inputs.documents import Document
    from kvstream.inputs.models import ModelInfo

SCHEMA = 1
BOS = ("auto", "on", "off")
MOST = 2**31 - 1  # positions are 32-bit numbers
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# The modules and folders that decide numbers: a change in one of them makes every cell a new one.
ENGINE = ("policies", "engine", "inputs/demo_model", "inputs/pythia_shapes", "inputs/weights", "sweep/worker")
QUALITY = (*ENGINE, "inputs/documents", "measure/quality", "sweep/jobs")
LATENCY = (*ENGINE, "measure/latency", "measure/machine_noise", "measure/peak_memory")


def _whole(field: str, value: object, least: int) -> None:
    if type(value) is not int or not least <= value <= MOST:
        bounds = f"up to {MOST:,}" if type(value) is int and value > MOST else f"of {least} or more"
        raise ValueError(f"{field}: {value!r} is not valid; give whole numbers {bounds}")


@dataclass(frozen=True)
class Repeats:
    """How often a latency cell measures: prefills and rounds per contender, and output tokens per round."""

    prefills: int = 5
    rounds: int = 40
    steps: int = 4

    def __post_init__(self) -> None:
        """Check that each is a number of times."""
        for name, value in vars(self).items():
            _whole(name, value, 1)


@dataclass(frozen=True)
class Grid:
    """The questions a sweep asks of each of the `models` under each of the `policies`.

    Quality, where `lengths` are given: perplexity and accuracy on `documents` texts. The longest length, in tokens, is
    run and holds the others as its prefixes. text, join_rows: see `inputs.text_sources`; bos: see `inputs.documents`.
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
    bos: str = "auto"
    join_rows: bool = False

    def __post_init__(self) -> None:
        """Drop repetitions and check the axes; what a model or text decides is checked when they are known."""
        # Records go to a folder of this name, so it may not lead elsewhere.
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.name, re.ASCII):
            raise ValueError(f"name: {self.name!r} is not valid; give up to 100 letters, digits, -, _ and .")
        self._check("models", lambda axis, value: _name(axis, value, "names of models"))
        for axis in ("policies", "latency_policies") if self.latency_policies is not None else ("policies",):
            self._check(axis, _policy)
        for axis, least in (("lengths", 2), ("contexts", 1), ("batches", 1)):
            self._check(axis, lambda axis, value, least=least: _whole(axis, value, least))  # type: ignore[misc]
        for axis in ("models", "policies", "batches"):
            if not getattr(self, axis):
                raise ValueError(f"{axis}: empty; name at least one")
        if not self.lengths and not self.contexts:
            raise ValueError("lengths, contexts: both empty; give lengths to measure quality or contexts for latency")
        _whole("documents", self.documents, 1)
        _name("text", self.text, "the name of a text")
        if self.bos not in BOS:
            raise ValueError(f"bos: {self.bos!r} is not valid; choose one of {', '.join(BOS)}")
        _is("join_rows", self.join_rows, bool, "True or False")
        _is("repeats", self.repeats, Repeats, "Repeats(…)")
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


@dataclass(frozen=True)
class Cell(ABC):
    """What quality and latency cells have in common."""

    model: ModelInfo
    device: str
    dtype: str

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens that the cell computes."""

    @property
    @abstractmethod
    def code(self) -> str:
        """Digest of the code that computes it."""

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
        kept = sum(policy.kept(layer, tokens) for layer in range(model.num_layers))
        return kept * model.num_kv_heads * model.head_dim * 2 * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class QualityCell(Cell):
    """One text under one policy."""

    policy: Policy
    text: str
    document: Document
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        """Name the cell in progress lines."""
        return visible(f"{self.model.spec} · {self.policy} · {self.document.name}")

    @property
    def tokens(self) -> int:
        """Length of the run."""
        return len(self.document.token_ids)

    @property
    def code(self) -> str:
        """Digest of the engine and of what makes rows of it."""
        return code_digest(QUALITY)

    @property
    def identity(self) -> dict[str, Any]:
        """The engine, the policy and the tokens; the document's name, too, since it seeds random draws."""
        return super().identity | {
            "kind": "quality",
            "policy": str(self.policy),
            "document": self.document.name,
            "token_ids": self.document.sha256,
        }

    @property
    def fields(self) -> dict[str, Any]:
        """The policy's axes, the document, and the KV memory at the end."""
        return super().fields | {
            "kind": "quality",
            **policy_fields(self.policy),
            "text": self.text,
            "document": self.document.name,
            "document_sha256": self.document.sha256,
            "bos": self.document.bos,
            "join_rows": self.document.join_rows,
            "tokens": self.tokens,
            "lengths": list(self.lengths),
            "kv_bytes": self.kv_bytes(self.policy, self.tokens),
            "kv_bytes_full": self.kv_bytes(Full(), self.tokens),
        }


@dataclass(frozen=True)
class LatencyCell(Cell):
    """All policies side by side at one prompt length and batch size."""

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
        prefills = len(self.policies) + 2
        return self.batch * self.context * prefills * (self.repeats.prefills + 1)

    @property
    def code(self) -> str:
        """Digest of the engine and of the stopwatch."""
        return code_digest(LATENCY)

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
        bounded = [policy for policy in self.policies if policy.regions]
        twins = distinct_sizes(bounded, self.model.num_layers, self.context)
        held = [Full(), Full(), Full(), *bounded, *twins]
        held += [Full() for policy in twins if getattr(policy, "skip_layers", ())]  # whose twins reserve all layers
        return self.batch * sum(self.kv_bytes(policy, self.context + self.repeats.steps + 1) for policy in held)


def visible(text: str) -> str:
    """Write what a terminal would obey or hide, such as line ends, as `repr` does: names come from files."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _is(field: str, value: object, kind: type, what: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{field}: {value!r} is not valid; give {what}")


def _name(field: str, value: object, what: str) -> None:
    """A name goes into records, which are UTF-8; a path may hold bytes that are not."""
    _is(field, value, str, what)
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field}: {value!r} is not UTF-8; rename it, or give it under a link's name") from None


def _policy(field: str, value: object) -> None:
    _is(field, value, Policy, "policies such as StreamingLLM(4, 252)")
    assert isinstance(value, Policy)
    if type(value) not in POLICIES.values():  # its code would be in no key, and its name another's
        raise ValueError(
            f"{field}: {value} is a {type(value).__name__}, which is not among kvstream's policies; put it into "
            "kvstream/policies/ and name it in POLICIES: then it has a name of its own, and a change of it new cells"
        )
    if value.regions and value.regions.budget > MOST:
        raise ValueError(f"{field}: {value} keeps more tokens than any text has; give budgets up to {MOST:,}")


def distinct_sizes(policies: Iterable[Policy], layers: int, tokens: int) -> list[Policy]:
    """Of the policies that have evicted after `tokens`, the first for each way of keeping so many, layer by layer."""
    found: dict[tuple[int, ...], Policy] = {}
    for policy in policies:
        kept = tuple(policy.kept(layer, tokens) for layer in range(layers))
        if min(kept) < tokens:
            found.setdefault(kept, policy)
    return list(found.values())


def policy_fields(policy: Policy) -> dict[str, Any]:
    """The axes of a policy as the report groups by them."""
    regions = policy.regions
    bounded = policy if isinstance(policy, BoundedPolicy) else None
    return {
        "policy": str(policy),
        "policy_name": policy.name,
        "strategy": getattr(policy, "strategy", None),
        "position_mode": bounded.position if bounded else None,
        "budget": regions.budget if regions else None,
        "start_size": regions.sinks if regions and not regions.contested else None,
        "skip_layers": ",".join(map(str, bounded.skip_layers)) if bounded else "",
    }


def code_digest(modules: Iterable[str]) -> str:
    """Digest of the source of `modules`, files or folders of the package, as it was when this process first asked."""
    digests = _source_digests()
    names = [name for name in digests for module in modules if name == module or name.startswith(f"{module}/")]
    return hashlib.sha256("".join(digests[name] for name in names).encode()).hexdigest()


@cache
def _source_digests() -> dict[str, str]:
    """The sha256 of each module of the package, by its name."""
    package = Path(__file__).parent.parent
    files = {str(path.relative_to(package).with_suffix("")): path for path in sorted(package.rglob("*.py"))}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def expand(names: Sequence[str], budgets: Sequence[int], axes: Axes) -> tuple[Policy, ...]:
    """Every policy that the axes span: each name with each budget, in that order.

    Raises ValueError for an unknown name and for values that a policy refuses.
    """
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"policies: {name!r} is unknown; choose among {', '.join(POLICIES)}")
    for budget in budgets:
        if type(budget) is not int or budget < 1:
            raise ValueError(f"budgets: {budget!r} is not valid; give whole numbers of at least 1")
    spanned = [policy for name in names for budget in budgets for policy in POLICIES[name].spanned(budget, axes)]
    return tuple(dict.fromkeys(spanned))
