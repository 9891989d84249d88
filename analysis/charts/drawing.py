"""Figures → SVG and PNG that look right on their own."""

from pathlib import Path

from analysis.charts import pictures
from analysis.charts.figures import CHARTS
from analysis.charts.marks import Figure
from analysis.charts.specs import for_file


def begin(
    figures: dict[str, Figure | None], folder: Path, about: str = "", whiskers: str = ""
) -> tuple[int, pictures.Drawing]:
    """Begin to write every figure that has panels, and remove the files of those that have none; how many are drawn.

    about: what was measured, for a line beneath each title. whiskers: what they are, unless a chart says otherwise.
    `pictures.finish` waits for the files.
    """
    specs = {}
    for name, figure in figures.items():
        for ending in ("svg", "png"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
        if figure and figure.panels and CHARTS[name].file:
            line = CHARTS[name].beneath(about, whiskers, figure)
            specs[folder / name] = for_file(figure, CHARTS[name].heading, line)
    return len(specs), pictures.begin(specs)
