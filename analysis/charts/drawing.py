"""Figures → SVG and PNG that look right on their own."""

from pathlib import Path

from analysis.charts import pictures
from analysis.charts.figures import CHARTS
from analysis.charts.marks import Figure
from analysis.charts.specs import for_file
from analysis.words.standing import Standing


def begin(figures: dict[str, Figure | None], folder: Path, standing: Standing) -> tuple[int, pictures.Drawing]:
    """Begin to write every figure that has panels, and remove the files of those that have none; how many are drawn.

    standing: what the line beneath each title tells. `pictures.finish` waits for the files.
    """
    specs = {}
    for name, figure in figures.items():
        for ending in ("svg", "png"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
        if figure and figure.panels and CHARTS[name].file:
            line = CHARTS[name].beneath(standing, figure)
            specs[folder / name] = for_file(figure, CHARTS[name].heading, line)
    return len(specs), pictures.begin(specs)
