"""The figures of the report: which query each draws, and how its panels become specs for the page and for files.

A figure is a list of panels (small multiples). The page lays panels out itself, each as wide as its column; files for
papers are the same panels side by side at a fixed width with one legend.
"""

from collections.abc import Callable

from analysis.charts import along, compare, speed
from analysis.charts.marks import Figure, Panel, Row
from analysis.charts.multiples import multiples
from analysis.charts.specs import compact
from analysis.charts.tradeoff import AXES, tradeoff

FILE_WIDTH, FILE_WIDE = 400, 760
LEGENDS = {"color", "shape", "strokeDash"}

FIGURES: dict[str, tuple[str, Callable[[list[Row]], Figure]]] = {
    **{f"tradeoff_{axis}": ("pareto", tradeoff(axis)) for axis in AXES},
    "multiples": ("multiples", multiples),
    "cross_method": ("cross_method", compare.cross_method),
    "overview": ("position", along.overview),
    "position": ("position", along.position),
    "excess": ("position", along.excess),
    "start_size": ("start_size", compare.start_size),
    "length": ("length", along.length),
    "position_modes": ("position_modes", compare.position_modes),
    "tpot": ("context", speed.tpot),
    "ttft": ("context", speed.ttft),
    "eviction": ("eviction", speed.eviction),
    "throughput": ("throughput", speed.throughput),
    "kv_memory": ("context", speed.kv_memory),
    "peak_memory": ("context", speed.peak_memory),
}
ON_PAGE_ONLY = {"overview"}  # a control, not a figure


def for_page(one: Panel) -> Row:
    """A panel's spec for the page: as wide as its container, no legend (the page draws one per figure)."""
    layers = []
    for layer in one.spec["layer"]:
        encoding = layer["encoding"]
        bare = {name: {**encoding[name], "legend": None} for name in LEGENDS & set(encoding)}
        layers.append({**layer, "encoding": encoding | bare})
    fitted = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return compact(one.spec | fitted | {"layer": layers})


def for_file(figure: Figure, title: str) -> Row:
    """All panels of a figure with one legend, on white."""
    alone = len(figure.panels) == 1
    width = FILE_WIDE if alone and not figure.named else FILE_WIDTH
    first = figure.panels[0].spec
    names = [" · ".join(filter(None, (one.setting if figure.several else "", one.title))) for one in figure.panels]
    parts = [
        {name: value for name, value in one.spec.items() if name not in ("config", "$schema", "params")}
        | {"width": width, "title": name}
        for one, name in zip(figure.panels, names)
    ]
    whole: Row = {"concat": parts, "columns": figure.columns, "title": title}
    if alone:
        whole = parts[0] | {"title": {"text": title, "subtitle": names[0]} if names[0] else title}
    look = first["config"] | {"background": "white", "padding": 14}
    return whole | {"$schema": first["$schema"], "config": look, "params": first["params"]}
