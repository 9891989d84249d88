"""Panels → Vega-Lite specs: for the page, each as wide as its column; for files, side by side with one legend.

The page carries every spec, so each row keeps only what its chart draws. Layers that draw the same rows share one data
set, written column by column; what a layer repeats of an earlier one's axes and scales, which layers share anyway, is
left out. Knows Vega-Lite's JSON, nothing of single charts.
"""

import re
from typing import Any

from analysis.charts.marks import Figure, Panel, Row

FILE_WIDTH, FILE_WIDE = 400, 760
LEGENDS = {"color", "shape", "strokeDash"}
DIGITS = 5  # of a number that is drawn; the CSV beside the chart has all of them
CHANNELS = {"x", "y", "color", "shape", "strokeDash"}
SHARED = {"scale", "axis"}
TESTED = re.compile(r"datum\['([^']+)'\]")


def for_page(one: Panel) -> Row:
    """A panel's spec for the page: as wide as its container, no legend (the page draws one per figure)."""
    layers = []
    for layer in one.spec["layer"]:
        encoding = layer["encoding"]
        bare = {name: {**encoding[name], "legend": None} for name in LEGENDS & set(encoding)}
        layers.append({**layer, "encoding": encoding | bare})
    fitted = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return compact(one.spec | fitted | {"layer": layers})


def for_file(figure: Figure, title: str, about: str = "") -> Row:
    """All panels of a figure with one legend, on white; `about`: a line that says of what, as a file stands alone."""
    alone = len(figure.panels) == 1
    width = FILE_WIDE if alone and not figure.named else FILE_WIDTH
    first = figure.panels[0].spec
    names = [" · ".join(filter(None, (one.setting if figure.several else "", one.title))) for one in figure.panels]
    parts = [
        {name: value for name, value in one.spec.items() if name not in ("config", "$schema", "params")}
        | {"width": width, "title": name}
        for one, name in zip(figure.panels, names)
    ]
    whole: Row = {"concat": parts, "columns": figure.columns}
    if alone:
        whole = parts[0]
        about = "; ".join(filter(None, (names[0], about)))
    whole["title"] = {"text": title, "subtitle": about} if about else title
    look = first["config"] | {"background": "white", "padding": 14}
    return whole | {"$schema": first["$schema"], "config": look, "params": first["params"]}


def compact(spec: Row) -> Row:
    """The spec of a layered chart with its rows reduced to the encoded fields and moved into `datasets`."""
    rows: list[list[Row]] = []
    fields: list[set[str]] = []
    layers = []
    for layer in spec["layer"]:
        mine = rows_of(spec, layer)
        place = next((index for index, known in enumerate(rows) if known is mine or known == mine), len(rows))
        if place == len(rows):
            rows.append(mine)
            fields.append(set())
        fields[place] |= encoded(layer)
        layers.append({**layer, "data": {"name": f"rows{place}"}})
    columns = {
        f"rows{place}": {name: [shortened(row[name]) for row in found] for name in sorted(wanted)}
        for place, (found, wanted) in enumerate(zip(rows, fields))
    }
    rest = {name: value for name, value in spec.items() if name not in ("data", "datasets", "$schema", "config")}
    return rest | {"layer": said_once(layers), "columns": columns}


def said_once(layers: list[Row]) -> list[Row]:
    """Layers without the parts of their channels that an earlier one has given in the same words."""
    given: dict[tuple[str, str], Any] = {}
    found = []
    for layer in layers:
        encoding = dict(layer["encoding"])
        for channel in CHANNELS & set(encoding):
            mine = dict(encoding[channel])
            for part in SHARED & set(mine):
                if (channel, part) in given and given[channel, part] == mine[part]:
                    del mine[part]
                else:
                    given.setdefault((channel, part), encoding[channel][part])
            encoding[channel] = mine
        found.append({**layer, "encoding": encoding})
    return found


def rows_of(spec: Row, layer: Row) -> list[Row]:
    """The rows that a layer draws, wherever the spec keeps them."""
    data = layer.get("data") or spec["data"]
    found: list[Row] = data["values"] if "values" in data else spec["datasets"][data["name"]]
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
