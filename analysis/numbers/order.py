"""The order in which models are shown: smaller ones first, whatever their names."""

from typing import Any

Frames = dict[str, list[dict[str, Any]]]


def smaller_first(frames: Frames) -> Frames:
    """Put the rows of each table in the order of models that the overview has; of one model they stay as they were.

    Published numbers are in the order of where they were published.
    """
    rank = {setting: place for place, setting in enumerate(frames["overview"][0]["settings"])}

    def place(row: dict[str, Any]) -> int:
        return rank[row["setting"]]

    return {
        name: sorted(rows, key=place) if rows and "setting" in rows[0] and not name.startswith("published") else rows
        for name, rows in frames.items()
    }
