"""Vega-Lite specs → SVG and PNG, in processes of their own: the converter keeps Python waiting while it draws.

echo '{"charts/sinks": {…}}' | python -m analysis.charts.pictures      charts/sinks.svg and charts/sinks.png
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import vl_convert

ROOT = Path(__file__).parent.parent.parent
SCALE = 2  # pixels of a PNG for each of the SVG
CHARTS_EACH = 3  # at least, of a process
Spec = dict[str, Any]
Drawing = list[subprocess.Popen[str]]


def begin(specs: dict[Path, Spec]) -> Drawing:
    """Begin to draw specs, by the path of their files without its ending, in some processes side by side."""
    by_size = sorted(((str(path.resolve()), spec) for path, spec in specs.items()), key=lambda one: len(str(one)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Starting one takes as long as two or three charts, and a converter's memory: each has to have some to draw.
    count = min(cores, -(-len(by_size) // CHARTS_EACH))
    processes = []
    for first in range(count):
        command = [sys.executable, "-m", "analysis.charts.pictures"]
        child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True, encoding="utf-8")
        assert child.stdin
        with child.stdin as given:
            json.dump(dict(by_size[first::count]), given)
        processes.append(child)
    return processes


def finish(drawing: Drawing) -> None:
    """Wait until all is drawn; OSError where something was not."""
    ended = [child.wait() for child in drawing]
    if any(ended):
        raise OSError("charts: not all were drawn, for the reason above; no SVG or PNG file of this report is complete")


def draw(specs: dict[str, Spec]) -> None:
    """Write each spec as SVG and PNG."""
    for path, spec in specs.items():
        svg = svg_of(spec)
        Path(f"{path}.svg").write_text(svg, encoding="utf-8")
        Path(f"{path}.png").write_bytes(vl_convert.svg_to_png(svg, scale=SCALE))


def svg_of(spec: Spec) -> str:
    """A Vega-Lite spec as SVG."""
    vega = vl_convert.vegalite_to_vega(spec)
    for legend in vega.get("legends", []):
        # Vega-Lite gives the legend's filled symbols the lines' dashes as an outline, which frays them.
        legend.pop("strokeDash", None)
        legend.setdefault("encode", {})["symbols"] = {"update": {"strokeWidth": {"value": 0}, "opacity": {"value": 1}}}
    return str(vl_convert.vega_to_svg(vega))


if __name__ == "__main__":
    draw(json.load(sys.stdin))
