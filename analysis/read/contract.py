"""What a commit record and the rows of a cell must hold: fields, columns, and their types.

This is all that the report shares with whatever wrote the records.
"""

import re
from typing import Any

import pyarrow as pa

SCHEMA = 1
COMMIT = re.compile(r"[0-9a-f]{16}\.json")
FAILED = re.compile(r"[0-9a-f]{16}\.failed\.json")
ROWS = re.compile(r"[0-9a-f]{16}(\.[0-9a-f]{16})?\.parquet")  # <key>.parquet in older folders
SHA256 = re.compile("[0-9a-f]{64}")
TEXT: tuple[str, ...] = ("string", "large_string", "dictionary")
INTEGER: tuple[str, ...] = ("int32",)
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "quality": dict.fromkeys(("cell", "document"), TEXT)
    | dict.fromkeys(("position", "token"), INTEGER)
    | {"nll_nats": ("float",), "correct": ("bool",)},
    "latency": dict.fromkeys(("cell", "policy", "phase"), TEXT)
    | dict.fromkeys(("round", "turn", "step"), INTEGER)
    | {"seconds": ("double",)},
}

# Columns of quality rows that older records do not have.
LATER: dict[str, tuple[str, ...]] = {"kl_nats": ("float",), "same_top": ("bool",), "rank": ("uint16",)}


def texts(*names: str) -> dict[str, pa.DataType]:
    """Fields that hold text."""
    return dict.fromkeys(names, pa.string())


def counts(*names: str) -> dict[str, pa.DataType]:
    """Fields that hold whole numbers."""
    return dict.fromkeys(names, pa.int64())


MODEL = texts("model", "model_note") | counts("trained_context")
PLACE = texts("device", "dtype")
POLICY = texts("policy", "policy_name", "strategy", "position_mode") | counts("budget", "start_size")
POLICY |= texts("skip_layers", "scorer")
NUMBERS = {"position": pa.int64(), "kl_nats": pa.float64(), "nll_nats": pa.float64()}
LAYERS = pa.list_(pa.list_(pa.float64()))  # a number for each layer and query head
WORST = pa.struct(NUMBERS | texts("before", "token", "after"))  # a token at which a policy is furthest from full
PART = pa.struct(counts("tokens", "peak_bytes") | {"seconds": pa.float64()})  # of a long text, up to so many tokens
FIELDS: dict[str, dict[str, pa.DataType]] = {
    "quality": MODEL
    | POLICY
    | (texts("text", "document") | counts("tokens") | {"lengths": pa.list_(pa.int64())})
    | (PLACE | counts("kv_bytes", "kv_bytes_full", "vocab_size", "evicts_after", "every") | texts("metrics"))
    | {
        "answers": pa.list_(pa.list_(pa.int64())),  # position, tokens and distance of each
        "worst": pa.list_(WORST),
        "attention_loss": LAYERS,
        "parts": pa.list_(PART),
    },
    "latency": MODEL
    | PLACE
    | counts("context", "batch", "prefills", "rounds", "steps", "threads", "vocab_size")
    | {"compiled": pa.bool_()},  # whether --compiled was given
}
ALL_FIELDS = {"policy_fields": pa.struct([])}  # of a policy, whatever they are called
# What must be the same of all cells of a kind, of a model's name, of a text's name.
IDENTITY: dict[str, dict[str, pa.DataType]] = {
    "quality": texts("code", "model_identity", "document_sha256") | ALL_FIELDS,
    "latency": texts("code", "model_identity"),
}
CONTENDER = texts("label", "role", "of", "launched") | POLICY
CONTENDER |= counts("kv_bytes", "kv_bytes_allocated", "peak_bytes", "full_after")
NOISE = dict.fromkeys(("load_before", "load_after", "steal", "others"), pa.float64()) | texts("governor")
ADDED = {
    "attention_loss",
    "compiled",
    "scorer",
    "evicts_after",
    "every",
    "full_after",
    "launched",
    "answers",
    "worst",
    "metrics",
    "parts",
}  # which older records do not have
NULLABLE = {"model_note", "strategy", "position_mode", "budget", "start_size", "of", "peak_bytes"} | ADDED
PREFILLED = {"policy", "again", "dynamic"}  # roles with a TTFT; a twin that does not evict has steps only


class RecordsError(ValueError):
    """A records folder that cannot be reported on; the message names what is wrong and what to do."""


def check_fields(fields: dict[str, Any], contract: dict[str, pa.DataType], where: str = "fields") -> None:
    """Check that each field of the contract is there and of its type."""
    for name, kind in contract.items():
        value = fields.get(name)
        if value is None and (name not in NULLABLE or name not in {*fields, *ADDED}):
            raise RecordsError(f"{where}.{name}: missing; run the sweep again with the current version")
        try:
            pa.scalar(value, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise RecordsError(f"{where}.{name}: {value!r} is no {kind}; run the sweep again") from None
