"""The rows of the two tables of all results as text: what is printed, and the small print beneath."""

from typing import Any

from analysis.numbers.stats import MIN_DOCUMENTS
from analysis.page.columns import COLUMNS, LATENCY_COLUMNS, Column
from analysis.words import wording

Row = dict[str, Any]


def main_table(rows: list[Row], picks: dict[tuple[str, str], list[str]]) -> list[Row]:
    """The main table's rows; `picks` names, by setting and policy, the cards that took it."""
    found = []
    for row in rows:
        cells = [cell(row, column) for column in COLUMNS]
        for one in cells:
            if one["name"] == "documents" and row["paired_documents"] != row["documents"]:
                one["small"] = f"{row['paired_documents']} shared with full"
            elif one["name"] == "documents" and row["full_documents"] not in (None, row["documents"]):
                one["small"] = f"of {row['full_documents']}"
            if row["policy_name"] == "full" and (one["name"] == "variant" or "change" in one["name"]):
                one["text"] = wording.NONE
        tags = picks.get((row["setting"], row["policy"]), []) if row["longest"] else []
        place = {name: row[name] for name in ("setting", "length", "longest")}
        growth = wording.growth(row["skip_layers"])
        idle = "" if row["evicts"] else f"{row['length']:,} tokens do not exceed its budget: nothing was evicted"
        found.append(place | {"tags": tags, "growth": growth, "idle": idle, "busy": None, "cells": cells})
    return found


def latency_table(rows: list[Row]) -> list[Row]:
    """The latency table's rows, in the shape of the main table's."""
    found = []
    for row in rows:
        cells = [cell(row, column) for column in LATENCY_COLUMNS]
        for one in cells:
            if row["contender"] == "full" and one["name"] in ("ttft_ratio", "tpot_ratio"):
                one["text"] = wording.NONE
        place = {"setting": row["setting"], "length": row["context"], "longest": row["headline"]}
        growth = wording.growth(row["skip_layers"])
        idle = (
            ""
            if row["budget"] is None or row["context"] > row["budget"]
            else "Its budget is not exceeded: nothing was evicted"
        )
        found.append(place | {"tags": [], "growth": growth, "idle": idle, "busy": row["busy"], "cells": cells})
    return found


def cell(row: Row, column: Column) -> Row:
    """One table cell: what is printed, and the interval beneath."""
    small = wording.between(row[column.spread[0]], row[column.spread[1]], column.show) if column.spread else ""
    return {
        "name": column.field,
        "text": column.show(row[column.field]),
        "value": row[column.field] if column.show is wording.megabytes else None,  # to sort by, as units differ
        "small": small,
    }


def spread_note(rows: list[Row]) -> str:
    """What the small print and the whiskers are, in a sentence."""
    paired = [row["paired_documents"] for row in rows if row["longest"] and row["spread"]]
    if not paired:
        return "No policy shares a document with full: no changes can be given."
    interval = f"paired 95\u00a0% BCa bootstrap interval over documents, from {MIN_DOCUMENTS} documents on"
    if min(paired) >= MIN_DOCUMENTS:
        return f"Small print and whiskers: {interval}."
    few = f"{min(paired)} document{'s' if min(paired) > 1 else ''}: too few for an interval"
    if max(paired) < MIN_DOCUMENTS:
        return f"{few}. Small print and whiskers: the per-document range (min … max)."
    return f"{few}; there, small print and whiskers are the per-document range (min … max). Elsewhere: {interval}."
