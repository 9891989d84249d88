"""What cells need, in words: what a dry run tells of memory, and why a cell is refused."""

import numpy as np

from kvstream.grid.axes import Repeats
from kvstream.grid.cells import LatencyCell, QualityCell, RecomputeCell
from kvstream.grid.memory_needed import largest, needed_bytes, too_large
from kvstream.inputs.documents import Document
from kvstream.inputs.models import resolve
from kvstream.policies import Full

INFO = resolve("shape:pythia-70m")
DOCUMENT = Document("a", np.zeros(300, np.int32), "0")
TEXT = QualityCell(INFO, "cpu", "float32", "t", DOCUMENT, (300,), Full())
TIMED = [LatencyCell(INFO, "cpu", "float32", (Full(),), context, 1, Repeats(), None) for context in (512, 65_536, 2048)]


def test_the_largest_cell_of_each_kind_is_told():
    assert largest([TIMED[1], TEXT, TIMED[0]]) == (
        f"about {needed_bytes(TEXT) / 1e9:.1f} GB for the largest quality cell, "
        f"about {needed_bytes(TIMED[1]) / 1e9:.1f} GB for the largest latency cell"
    )
    assert needed_bytes(TIMED[1]) > 1.5 * max(needed_bytes(TIMED[0]), needed_bytes(TIMED[2]))
    assert largest([TEXT]).startswith("about ")
    assert "latency" not in largest([TEXT])
    assert "quality" not in largest(TIMED)


def test_a_window_of_one_token_is_called_so():
    window = RecomputeCell(INFO, "cpu", "float32", "t", DOCUMENT, (300,), 1, 16)
    assert "recompute: windows of 1 token of 'shape:pythia-70m' need about" in too_large(window, 1.0)
