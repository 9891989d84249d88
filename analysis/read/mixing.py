"""Which cells must not stand beside the others: those of other code, other weights or another text of the same name.

Names are all that tables show, and a name may have meant something else when a cell was computed. Knows commit records
and Parquet, no SQL.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def set_aside(folder: Path, commits: list[dict[str, Any]], planned: set[str]) -> dict[str, str]:
    """Which cells are not of the code, weights and texts of the planned ones, or the newest, and why."""
    code: dict[str, str] = {}
    weights: dict[str, str] = {}
    texts: dict[tuple[str, ...], dict[str, Any]] = {}

    def trust(commit: dict[str, Any]) -> tuple[Any, ...]:
        return commit["cell"] in planned, str(commit.get("written_at")), commit["fields"].get("tokens", 0)

    aside = {}
    for commit in sorted(commits, key=trust, reverse=True):
        fields = commit["fields"]
        model = fields["model"]
        if code.setdefault(fields["kind"], fields["code"]) != fields["code"]:
            aside[commit["cell"]] = "computed by other code than the rest"
        elif weights.setdefault(model, fields["model_identity"]) != fields["model_identity"]:
            aside[commit["cell"]] = f"computed with other weights of {model} than the rest"
        elif fields["kind"] == "quality":
            first = texts.setdefault((model, fields["text"], fields["document"]), commit)
            if not same_text(folder, commit, first):
                aside[commit["cell"]] = f"computed on another {fields['document']} than the rest"
    return aside


def same_text(folder: Path, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the tokens of one cell are the first ones of another's, or the other way round."""
    if one["fields"]["document_sha256"] == other["fields"]["document_sha256"]:
        return True
    first, second = (pq.read_table(folder / commit["file"], columns=["position", "token"]) for commit in (one, other))
    both = first.join(second, "position", right_suffix="_too", join_type="inner")  # of some cells every n-th alone
    return both["token"].equals(both["token_too"])
