"""Panels → Vega-Lite specs: for the page, each as wide as its column; for files, side by side with one legend.

The page carries every spec, so each row keeps only what its chart draws. Knows Vega-Lite's JSON, nothing of single
charts.
"""

import re
import textwrap
from typing import Any

from analysis.charts.marks import Figure, Panel, Row

FILE_WIDTH, FILE_WIDE = 400, 760
LETTER = 6.2  # pixels of a letter of the line beneath a title, on average
LEGENDS = {"color", "shape"}
DIGITS = 5  # of a number that is drawn; the CSV beside the chart has all of them
TESTED = re.compile(r"datum\['([^']+)'\]")


def for_page(one: Panel) -> Row:
    """A panel's spec for the page: as wide as its container, no legend of series (the page draws one per figure)."""
    spec = {name: value for name, value in one.spec.items() if name not in ("data", "$schema", "config")}
    fitted = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return spec | fitted | {"layer": [bare(layer, rows_of(one.spec, layer)) for layer in one.spec["layer"]]}


def bare(layer: Row, rows: list[Row]) -> Row:
    """A layer without legends of series, its rows with the fields it draws and the digits that can be seen."""
    fields = sorted(encoded(layer))
    data = [{name: shortened(row[name]) for name in fields} for row in rows]
    encoding = layer["encoding"]
    series = [name for name, one in encoding.items() if name in LEGENDS and one["type"] == "nominal"]
    silent = {name: encoding[name] | {"legend": None} for name in series}
    return layer | {"data": {"values": data}, "encoding": encoding | silent}


def for_file(figure: Figure, title: str, about: str = "") -> Row:
    """All panels of a figure with one legend, on white; `about`: a line that says of what, as a file stands alone.

    Vega-Lite has one legend where all panels have the same scales, as those of a figure do.
    """
    alone = len(figure.panels) == 1
    width = FILE_WIDE if alone and not figure.named else FILE_WIDTH
    first = figure.panels[0].spec
    names = [" · ".join(filter(None, (one.setting if figure.several else "", one.title))) for one in figure.panels]
    parts = [
        {name: value for name, value in one.spec.items() if name not in ("config", "$schema", "params")}
        | {"width": width, "title": name, "layer": [settled(layer, one.spec["params"]) for layer in one.spec["layer"]]}
        for one, name in zip(figure.panels, names)
    ]
    apart = {"scale": {"yOffset": "independent"}}  # else all panels' points are as far apart as the first one's
    whole: Row = {"concat": parts, "columns": figure.columns, "resolve": apart}
    if alone:
        whole = parts[0]
        about = "; ".join(filter(None, (names[0], about)))
    room = width * (1 if alone else min(figure.columns, len(parts)))  # or the file would be as wide as this line
    lines = textwrap.wrap(about, int(room / LETTER))
    whole["title"] = {"text": title, "subtitle": lines} if lines else title
    look = first["config"] | {"background": "white", "padding": 14}
    emphasis = [one for one in first["params"] if one["name"] == "emphasis"]
    return whole | {"$schema": first["$schema"], "config": look, "params": emphasis}


def settled(layer: Row, params: list[Row]) -> Row:
    """A layer whose scales end where its panel's parameters say: those of a file are all panels' alike."""
    known = {one["name"]: one["value"] for one in params}

    def set_in(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        is_set = value.keys() == {"expr"} and value["expr"] in known
        return known[value["expr"]] if is_set else {name: set_in(one) for name, one in value.items()}

    return layer | {"encoding": set_in(layer["encoding"])}


def rows_of(spec: Row, layer: Row) -> list[Row]:
    """The rows that a layer draws: its own, or those it shares with all others."""
    found: list[Row] = (layer.get("data") or spec["data"])["values"]
    return found


def encoded(layer: Row) -> set[str]:
    """The fields a layer draws, groups by, shows in its tooltip or tests in a condition."""
    found: set[str] = set()
    for each in layer["encoding"].values():
        for channel in each if isinstance(each, list) else [each]:
            found |= {channel["field"]} if "field" in channel else set()
            found |= set(TESTED.findall(str(channel.get("condition", {}).get("test", ""))))
    return found


def shortened(value: Any) -> Any:
    """A number with as many digits as can be drawn."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
