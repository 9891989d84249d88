"""Figures → SVG and PNG that look right on their own."""

from pathlib import Path
from typing import Any

import vl_convert

from analysis.charts.figures import CHARTS
from analysis.charts.marks import Figure
from analysis.charts.specs import for_file

SCALE = 2  # pixels of a PNG for each of the SVG


def draw(figures: dict[str, Figure | None], folder: Path, about: str = "", whiskers: str = "") -> list[str]:
    """Write every figure that has panels, and remove the files of those that have none; the names of what was drawn.

    about: what was measured, for a line beneath each title. whiskers: what they are, unless a chart says otherwise.
    """
    drawn = []
    for name, figure in figures.items():
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        svg.unlink(missing_ok=True)
        png.unlink(missing_ok=True)
        if figure and figure.panels and CHARTS[name].file:
            line = f"{about} · whiskers: {CHARTS[name].whiskers or whiskers}"
            text = svg_of(for_file(figure, CHARTS[name].heading, line))
            svg.write_text(text, encoding="utf-8")
            png.write_bytes(vl_convert.svg_to_png(text, scale=SCALE))
            drawn.append(name)
    return drawn


def svg_of(spec: dict[str, Any]) -> str:
    """A Vega-Lite spec as SVG."""
    vega = vl_convert.vegalite_to_vega(spec)
    for legend in vega.get("legends", []):
        # Vega-Lite gives the legend's filled symbols the lines' dashes as an outline, which frays them.
        legend.pop("strokeDash", None)
        legend.setdefault("encode", {})["symbols"] = {"update": {"strokeWidth": {"value": 0}, "opacity": {"value": 1}}}
    return str(vl_convert.vega_to_svg(vega))
