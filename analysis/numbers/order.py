"""Rows in order: smaller models first, whatever their names; and in groups by what they share."""

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
Frames = dict[str, list[Row]]


def smaller_first(frames: Frames) -> Frames:
    """Put the rows of each table in the order of models that the overview has; of one model they stay as they were.

    Published numbers are in the order of where they were published.
    """
    rank = {setting: place for place, setting in enumerate(frames["overview"][0]["settings"])}

    def place(row: Row) -> int:
        return rank[row["setting"]]

    return {
        name: sorted(rows, key=place) if rows and "setting" in rows[0] and not name.startswith("published") else rows
        for name, rows in frames.items()
    }


def by(rows: Iterable[Row], *names: str) -> dict[Any, list[Row]]:
    """Rows by the value of a field, or the values of several, in order of first appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[names[0]] if len(names) == 1 else tuple(row[name] for name in names), []).append(row)
    return found
