"""The line beneath a chart that stands alone: model, text, machine, and what its whiskers are, by kind of chart.

Charts of quality are of documents, those of speed of prompts whose tokens are drawn at random; where both meet in one
chart its whiskers are named by axis. Decides nothing.
"""

import re
from typing import Any, Literal

from analysis.words.wording import counted, listed

Kind = Literal["quality", "speed", "both"]
Standing = dict[Kind, tuple[str, str]]  # what was measured, and what whiskers are
Row = dict[str, Any]
Frames = dict[str, list[Row]]
PROMPTS = "prompts of random tokens"
ROUNDS = "95\u00a0% interval over rounds"


def standing(frames: Frames, hardware: dict[Kind, list[str]]) -> Standing:
    """What was measured and what whiskers are. hardware: that of the cells of quality, and of speed."""
    overview = frames["overview"][0]
    texts = [texts_of(frames)] if overview["quality_cells"] else []
    timed = place_of(overview)
    if overview["threads"]:
        timed += f", {listed(map(str, overview['threads']))} thread{'s' if overview['threads'] != [1] else ''}"
    both = [*hardware["quality"], *(one for one in hardware["speed"] if one not in hardware["quality"])]

    def line(*parts: str) -> str:
        return " · ".join(filter(None, (listed(overview["models"]), *parts)))

    documents = whiskers(frames)
    beside = [*texts, f"times after {PROMPTS}"]
    return {
        "quality": (line(*texts, place_of(overview), machine(hardware["quality"])), documents),
        "speed": (line(PROMPTS, timed, machine(hardware["speed"])), ROUNDS),
        "both": (line("; ".join(beside), timed, machine(both)), f"vertical {documents}; horizontal {ROUNDS}"),
    }


def machines(rows: list[Row]) -> dict[Kind, list[str]]:
    """The hardware of each kind of cell, from the rows of `machines.sql`."""
    kinds: tuple[Kind, ...] = ("quality", "speed")
    return {kind: [row["hardware"] for row in rows if row["kind"] == kind] for kind in kinds}


def machine(names: list[str]) -> str:
    """Hardware in a line."""
    return listed(dict.fromkeys(map(short, names)))


def short(hardware: str) -> str:
    """A processor's name without what every one is called."""
    return " ".join(re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b", "", hardware).split()) or hardware


def whiskers(frames: Frames) -> str:
    """What whiskers of quality are, and over what."""
    spreads = {row["spread"] for row in frames["perplexity"] if row["longest"] and row["spread"]}
    if spreads == {"range"}:
        return "range over documents, too few for an interval"
    return "95\u00a0% interval over documents" + (", of few their range" if "range" in spreads else "")


def texts_of(frames: Frames) -> str:
    """On what quality was measured."""
    overview = frames["overview"][0]
    each = " each" if overview["documents"] > 1 else ""
    documents = counted(overview["documents"], "document")
    return f"{documents} of {listed(overview['texts'])}, {compared_at(frames):,} tokens{each}"


def compared_at(frames: Frames) -> int:
    """The tokens of the texts that the answer and the charts are of."""
    return max(row["length"] for row in frames["perplexity"] if row["longest"])


def place_of(overview: Row) -> str:
    """Where it was measured."""
    return f"{listed(overview['devices'])}, {listed(overview['dtypes'])}"
