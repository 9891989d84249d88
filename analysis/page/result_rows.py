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
        cells = {column.field: cell(row, column) for column in COLUMNS}
        if row["paired_documents"] != row["documents"]:
            cells["documents"]["small"] = f"{row['paired_documents']} shared with full"
        elif row["full_documents"] not in (None, row["documents"]):
            cells["documents"]["small"] = f"of {row['full_documents']}"
        if row["policy_name"] == "full":
            for name in ("variant", *(name for name in cells if "change" in name)):
                cells[name]["text"] = wording.NONE
        if row["every"]:
            cells["variant"]["text"] = "0 … window − 1"
            window = row["policy"].partition("(")[2].partition(",")[0]  # recompute(256,every=8)
            cost = f"each token costs a forward pass of its window, {int(window):,} tokens"
            cells["policy"]["small"] = f"{cost}; one of {row['every']} measured"
        tags = picks.get((row["setting"], row["policy"]), []) if row["longest"] else []
        idle = "" if row["evicts"] else f"{row['length']:,} tokens do not exceed its budget: nothing was evicted"
        place = {name: row[name] for name in ("setting", "length", "longest")}
        found.append(place | line(row, cells, idle) | {"tags": tags})
    return found


def latency_table(rows: list[Row]) -> list[Row]:
    """The latency table's rows, in the shape of the main table's."""
    found = []
    for row in rows:
        cells = {column.field: cell(row, column) for column in LATENCY_COLUMNS}
        if row["contender"] == "full":
            cells["ttft_ratio"]["text"] = cells["tpot_ratio"]["text"] = wording.NONE
        idle = "" if row["filled"] else "Its budget is not exceeded in every layer"
        place = {"setting": row["setting"], "length": row["context"], "longest": row["headline"]}
        found.append(place | line(row, cells, idle) | {"busy": row["busy"]})
    return found


def line(row: Row, cells: dict[str, Row], idle: str) -> Row:
    """What a row of either table has."""
    growth = wording.growth(row["skip_layers"])
    return {"tags": [], "busy": None, "growth": growth, "idle": idle, "cells": list(cells.values())}


def cell(row: Row, column: Column) -> Row:
    """One table cell: what is printed, and the interval beneath."""
    value = row[column.field]
    low, high = (row[wording.bound(column.field, end)] if column.spread else None for end in ("low", "high"))
    sorted_by = value if column.show is wording.megabytes else None  # as units differ
    small = wording.between(low, high, column.show)
    return {"name": column.field, "text": column.show(value), "value": sorted_by, "small": small}


def spread_note(rows: list[Row]) -> str:
    """What the small print and the whiskers are, in a sentence."""
    paired = [row["paired_documents"] for row in rows if row["longest"] and row["spread"]]
    if not paired:
        return "No policy shares a document with full: no changes can be given."
    interval = f"paired 95\u00a0% BCa bootstrap interval over documents, from {MIN_DOCUMENTS} documents on"
    if min(paired) >= MIN_DOCUMENTS:
        return f"Small print and whiskers: {interval}."
    few = f"{wording.counted(min(paired), 'document')}: too few for an interval"
    if max(paired) < MIN_DOCUMENTS:
        return f"{few}. Small print and whiskers: the per-document range (min … max)."
    return f"{few}; there, small print and whiskers are the per-document range (min … max). Elsewhere: {interval}."
