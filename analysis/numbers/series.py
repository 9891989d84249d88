"""Which line of a chart each policy belongs to, by its fields: policies of one line differ in their budget alone.

Knows no policy by its name. A record holds its policy's label and the map `policy_fields` of all its fields.
"""

import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

POSITIONS = ("position", "skip_layers")  # fields that make a variant of the same policy
ALIKE = "uniform"  # every layer the same, as before policies could say so
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("policy", "policy_name", "base", "series", "variant", "policy_fields")),
        *((name, pa.int64()) for name in ("sinks", "recent_size", "budget")),
        *((name, pa.string()) for name in ("keep_ratio", "scorer")),
        ("recent_share", pa.float64()),
    ]
)
Row = dict[str, Any]


def policies_table(recorded: Iterable[Row]) -> pa.Table:
    """One row per policy of these fields of cells and contenders: its series, its variant, its fields in words.

    sinks: how many first tokens it keeps, null where it has no such field. recent_size: how many last ones, if sinks
    and these are all it keeps, else null. recent_share: which share of its budget last tokens are, if it chooses among
    others. scorer: which it is of those that choose between sinks and recents, if any. base: the label without what
    makes a variant.
    """
    found = {row["policy"]: row for row in recorded}
    fields = {label: fields_of(row) for label, row in found.items()}
    budgets = {label: row["budget"] for label, row in found.items()}
    rows = []
    for label, row in found.items():
        alike = {one: fields[one] for one, other in found.items() if other["policy_name"] == row["policy_name"]}
        mine, named = fields[label], telling(alike, budgets)
        layers = f", layers {row['skip_layers']} never evict" if row["skip_layers"] else ""
        rows.append(
            {
                "policy": label,
                "policy_name": row["policy_name"],
                "base": re.sub(r""",?(position|skip_layers)=('[a-z]+'|"[a-z]+"|\([^)]*\))""", "", label),
                "series": series(row["policy_name"], {name: mine[name] for name in named if name in mine}),
                "variant": (row["position_mode"] or "full") + layers,
                "policy_fields": ", ".join(f"{name}={value}" for name, value in mine.items()),
                "sinks": mine.get("start_size"),
                "recent_size": recent_size(row, mine),
                "budget": row["budget"],
                "recent_share": recent_share(row, mine),
                "scorer": row.get("scorer"),
                "keep_ratio": None if mine.get("keep_ratio") is None else f"{mine['keep_ratio']:g}",
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def fields_of(row: Row) -> Row:
    """A policy's fields by name, but for those that make a variant, or say that all layers are alike."""
    return {name: value for name, value in row["policy_fields"].items() if name not in POSITIONS and value != ALIKE}


def recent_size(row: Row, fields: Row) -> int | None:
    """How many last tokens a policy keeps, if it keeps these, its sinks and no other: then its sizes are its budget."""
    sizes = [value for name, value in fields.items() if name.endswith("_size") and isinstance(value, int)]
    alike = row["budget"] is not None and "layer_budgets" not in fields
    whole = alike and row["start_size"] is not None and sum(sizes) == row["budget"]
    return int(row["budget"] - row["start_size"]) if whole else None


def recent_share(row: Row, fields: Row) -> float | None:
    """Which share of its budget last tokens are, if a policy chooses among others beside these and its sinks."""
    recents, sinks = fields.get("recent_size"), fields.get("start_size") or 0
    if recents is None or row["budget"] is None or recents + sinks >= row["budget"]:
        return None
    return float(recents / row["budget"])


def telling(alike: dict[str, Row], budgets: dict[str, Any]) -> list[str]:
    """Which fields a series of these policies, all of one name, must be called by.

    Words and the number of sinks always; another one where the budget and the fields named so far do not settle it.
    """
    names = list(dict.fromkeys(name for fields in alike.values() for name in fields))
    words = {name for fields in alike.values() for name, value in fields.items() if isinstance(value, str)}
    found = [name for name in names if name == "start_size" or name in words]
    for name in names:
        settled: dict[tuple[Any, ...], Any] = {}
        for label, fields in alike.items():
            known = (budgets[label], *(str(fields.get(one)) for one in found))
            if name not in found and settled.setdefault(known, str(fields.get(name))) != str(fields.get(name)):
                found.append(name)
                break
    return found


def series(name: str, fields: Row) -> str:
    """A series by name: `streaming_llm, 4 sinks`, `made_up, 1 sink every=8`, `fix_size_l2 keep_low` (but no "none")."""
    text = name
    if (sinks := fields.get("start_size")) is not None:
        text += f", {sinks} sink{'' if sinks == 1 else 's'}"
    for field, value in fields.items():
        if field != "start_size" and value not in (None, "none"):
            text += f" {value}" if isinstance(value, str) else f" {field}={value}"
    return text
