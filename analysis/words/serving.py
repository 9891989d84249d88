"""Where a card's policy can be served today, in words: by which engine, with which setting, and what is not the same.

What engines do, and who says so, stands in `analysis/serving.toml`; here it is filled in with a policy's numbers. A
policy comes as its name and its fields, as records hold them.
"""

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from analysis.words.wording import growth, listed

DATA = Path(__file__).parent.parent / "serving.toml"
Row = dict[str, Any]
Sizes = dict[str, int]
NOBODY = "No engine serves this yet"
SETTINGS = {"start": "start_size ", "recent": "recent_size ", "budget": "max_cache_size ", "context": ""}


@cache
def known() -> Row:
    """What is known of engines: the data file."""
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def looked_at() -> str:
    """At which engines, and when."""
    date = known()["looked_at"]
    return f"{listed(known()['engines'])}, on {date.day} {date:%B %Y}"


def places(name: str, fields: Row) -> list[Row]:
    """Where a policy is served, this package first: engine, setting, note and sources of each; or that nobody does."""
    if name == "full":  # what engines do when they are asked for nothing
        return []
    policy = asked(name, fields)
    rows = [row for row in known()["engine"] if policy["name"] in row["policies"]]
    found = [place(row, policy) for row in rows if "nearest" not in row and fits(row, policy)]
    if not found:
        nearest = [place(row, policy) for row in rows if "nearest" in row]
        nobody = f"{NOBODY}{where_not(rows, policy)}.{' Nearest:' if nearest else ''}"
        found = [{"engine": "elsewhere", "setting": "", "note": nobody, "sources": [], "same": True}, *nearest]
    return [{"setting": "", "sources": [], "same": True} | known()["ours"], *found]


def served_by(places: list[Row]) -> str:
    """Who serves it, in a line; apart from these whose setting is not the same, or in part."""
    same = dict.fromkeys(one["engine"] for one in places if one["same"])
    nearly = dict.fromkeys(one["engine"] for one in places if not one["same"])
    told = ", ".join("no engine yet" if name == "elsewhere" else name for name in same)
    return f"{told}; nearly: {', '.join(nearly)}" if nearly else told


def asked(name: str, fields: Row) -> Row:
    """What is asked of an engine: the policy's fields, its sizes under one name each, and what differs by layer."""
    start = fields.get("start_size") or 0
    recent = fields.get("recent_size") or fields.get("window_size") or 0
    budget = fields.get("budget") or start + recent
    position = fields.get("position")
    if recent and start + recent == budget:  # nothing is contested, whatever would decide
        name = "streaming_llm" if start else "recent_only"
    if name == "recent_only" and position == "absolute":
        position = "cache"  # the same: no distance between last tokens changes
    layers = growth(",".join(map(str, fields.get("skip_layers") or ())))
    if not layers and fields.get("layer_budgets", "uniform") != "uniform":
        layers = "layers differ in budget"
    own = {"name": name, "position": position, "start": start, "recent": recent, "budget": budget, "layers": layers}
    return fields | own


def fits(row: Row, policy: Row) -> bool:
    """Whether an engine that knows the policy by name can do what its fields ask for."""
    return not policy["layers"] and all(policy.get(field) in words for field, words in row.get("means", {}).items())


def where_not(rows: list[Row], policy: Row) -> str:
    """What of it keeps a policy from engines that know it by name; nothing if none knows it."""
    able = [row for row in rows if "nearest" not in row]
    if able and policy["layers"]:
        return f" where {policy['layers']}"
    fields = [name for row in able for name, words in row.get("means", {}).items() if policy.get(name) not in words]
    return f" with {fields[0]}={policy.get(fields[0])}" if fields else ""


def place(row: Row, policy: Row) -> Row:
    """One engine's setting and note, with the policy's numbers in them."""
    block = row.get("block", 1)
    sizes = SIZES[row["sizes"]](policy, block) if "sizes" in row else {}
    words = {field: means[policy[field]] for field, means in row.get("means", {}).items()}
    others = f"of what follows the first {policy['start']:,} tokens" if policy["start"] else "of it"
    numbers = policy | sizes
    note = [row["note"].format(**numbers, others=others)]
    note += [notes[policy[field]] for field, notes in row.get("notes", {}).items()]
    if differing := rounded(policy, sizes):
        note.append(row["rounding"].format(block=block, rounded=differing))
    setting = row["setting"].format(**numbers | words)
    told = {"setting": setting, "note": " ".join(note), "same": row.get("same", "nearest" not in row)}
    return {name: row[name] for name in ("engine", "sources")} | told


def rounded(policy: Row, sizes: Sizes) -> str:
    """Which sizes of a setting are not those of the policy."""
    pairs = [
        (words, sizes[name], policy.get(name, policy["budget"])) for name, words in SETTINGS.items() if name in sizes
    ]
    return listed(f"{words}{given:,} for {wanted:,}" for words, given, wanted in pairs if given != wanted)


def up(size: int, block: int) -> int:
    """The next multiple of a block."""
    return -(-size // block) * block


def areas(policy: Row, block: int) -> Sizes:
    """OpenVINO's three areas, of at least one block each, and the most tokens held, as only full blocks leave."""
    start, recent = (up(max(policy[name], 1), block) for name in ("start", "recent"))
    budget = max(up(policy["budget"], block), start + recent + block)
    return {"start": start, "recent": recent, "budget": budget, "most": budget + block - 1}


def context(policy: Row, block: int) -> Sizes:
    """llama.cpp's context, and how many tokens are held before and after half of what it does not keep leaves."""
    size = up(policy["budget"], block)
    most = size - 1  # it shifts before the last place is taken
    return {"context": size, "most": most, "least": most - (most - policy["start"]) // 2}


SIZES: dict[str, Callable[[Row, int], Sizes]] = {"areas": areas, "context": context}
