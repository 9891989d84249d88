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
TEXT = ("string", "large_string", "dictionary")
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "quality": {
        "cell": TEXT,
        "document": TEXT,
        "position": ("int32",),
        "token": ("int32",),
        "nll_nats": ("float",),
        "correct": ("bool",),
    },
    "latency": {
        "cell": TEXT,
        "policy": TEXT,
        "phase": TEXT,
        "round": ("int32",),
        "turn": ("int32",),
        "step": ("int32",),
        "seconds": ("double",),
    },
}
MODEL = {"model": pa.string(), "model_note": pa.string(), "trained_context": pa.int64()}
# What records hold since some version; null in older ones.
LATER = {"vocab_size": pa.int64()}
PLACE = {"device": pa.string(), "dtype": pa.string()}
POLICY = {
    "policy": pa.string(),
    "policy_name": pa.string(),
    "strategy": pa.string(),
    "position_mode": pa.string(),
    "budget": pa.int64(),
    "start_size": pa.int64(),
    "skip_layers": pa.string(),
}
FIELDS: dict[str, dict[str, pa.DataType]] = {
    "quality": MODEL
    | POLICY
    | {"text": pa.string(), "document": pa.string(), "tokens": pa.int64(), "lengths": pa.list_(pa.int64())}
    | PLACE
    | {"kv_bytes": pa.int64(), "kv_bytes_full": pa.int64()},
    "latency": MODEL
    | PLACE
    | {name: pa.int64() for name in ("context", "batch", "prefills", "rounds", "steps", "threads")},
}
# What must be the same of all cells of a kind, of a model's name, of a text's name.
IDENTITY: dict[str, dict[str, pa.DataType]] = {
    "quality": {name: pa.string() for name in ("code", "model_identity", "document_sha256")},
    "latency": {name: pa.string() for name in ("code", "model_identity")},
}
CONTENDER: dict[str, pa.DataType] = {
    "label": pa.string(),
    "role": pa.string(),
    "of": pa.string(),
    **POLICY,
    "kv_bytes": pa.int64(),
    "kv_bytes_allocated": pa.int64(),
    "peak_bytes": pa.int64(),
}
NOISE: dict[str, pa.DataType] = {
    "load_before": pa.float64(),
    "load_after": pa.float64(),
    "steal": pa.float64(),
    "others": pa.float64(),
    "governor": pa.string(),
}
NULLABLE = {"model_note", "strategy", "position_mode", "budget", "start_size", "of", "peak_bytes"}
PREFILLED = {"policy", "again", "dynamic"}  # roles with a TTFT; a twin that does not evict has steps only


class RecordsError(ValueError):
    """A records folder that cannot be reported on; the message names what is wrong and what to do."""


def check_fields(fields: dict[str, Any], contract: dict[str, pa.DataType], where: str = "fields") -> None:
    """Check that each field of the contract is there and of its type."""
    for name, kind in contract.items():
        value = fields.get(name)
        if value is None and (name not in NULLABLE or name not in fields):
            raise RecordsError(f"{where}.{name}: missing; run the sweep again with the current version")
        try:
            pa.scalar(value, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise RecordsError(f"{where}.{name}: {value!r} is no {kind}; run the sweep again") from None
