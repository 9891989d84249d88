"""Figures → SVG and PNG that look right on their own, drawn on every core while the caller goes on."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from analysis.charts import rendering
from analysis.charts.figures import CHARTS
from analysis.charts.marks import Figure
from analysis.charts.specs import for_file

MOST = 4  # processes; each takes a while to start


def draw(figures: dict[str, Figure | None], folder: Path, about: str = "") -> Callable[[], list[str]]:
    """Start to write every figure that has panels, and remove the files of those that have none.

    about: what was measured, for a line beneath each title. Returns what waits for the end and gives the names of what
    was drawn.
    """
    for name in figures:
        for suffix in ("svg", "png"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    drawn = {name: one for name, one in figures.items() if one and one.panels and CHARTS[name].file}
    largest_first = sorted(drawn, key=lambda name: -len(drawn[name].panels))
    shares = [largest_first[start :: cores()] for start in range(min(cores(), len(drawn)))]
    running = [
        start({str(folder / name): for_file(drawn[name], CHARTS[name].heading, about) for name in share})
        for share in shares
    ]

    def wait() -> list[str]:
        for process, feeder in running:
            feeder.join()
            if process.wait():
                raise OSError("charts: the renderer failed, its message is above; run the report again")
        return list(drawn)

    return wait


def cores() -> int:
    """How many processes draw."""
    return min(MOST, os.cpu_count() or 1)


def start(specs: dict[str, object]) -> tuple[subprocess.Popen[str], threading.Thread]:
    """A process that draws these specs, and the thread that hands them over."""
    process = subprocess.Popen([sys.executable, rendering.__file__], stdin=subprocess.PIPE, text=True, encoding="utf-8")
    feeder = threading.Thread(target=process.communicate, args=(json.dumps(specs, allow_nan=False),))
    feeder.start()
    return process, feeder
