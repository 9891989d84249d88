"""The CUDA backend's kernels, by the compiler that GPUs get: Triton's interpreter takes more than that does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NO_TRITON

import kvstream

HERE = Path(__file__).parent
KERNELS = Path(kvstream.__file__).parent / "engine/backends/cuda"
LINE = re.compile(
    r"(?P<kernel>_\w+) (?P<registers>\d+) (?P<stack>\d+) (?P<shared>\d+) (?P<warps>\d+)(?P<parts>[A-Z_ ]*)"
)
ATTENDING = {  # what a chunk may need of its kernel
    "",
    "SINKS TWO_TURNS",
    "CONTESTED",
    "BY_RANK CONTESTED TWO_TURNS",
    "BY_RANK CONTESTED SINKS TWO_TURNS",
}
CARDS = [
    (90, "bfloat16", 64),
    pytest.param(80, "float32", 64, marks=pytest.mark.interpreted),  # not in continuous integration
    pytest.param(86, "float16", 128, marks=pytest.mark.interpreted),
    pytest.param(120, "float32", 80, marks=pytest.mark.interpreted),
]


@pytest.mark.long
@pytest.mark.skipif(NO_TRITON or sys.platform != "linux", reason="Triton is not installed: pip install triton")
@pytest.mark.parametrize(("capability", "dtype", "head_size"), CARDS)
def test_every_kernel_compiles_for_cards_that_are_not_here(capability, dtype, head_size, tmp_path):
    command = [sys.executable, str(HERE / "kernel_compiler.py"), str(capability), dtype, str(head_size)]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}  # else what was compiled once would not be again
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [LINE.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(lines), done.stdout  # a note that the compiler refused one would be a line, too
    launched = set(re.findall(r"(_\w+)\[\(", "".join(file.read_text() for file in KERNELS.glob("*.py"))))
    assert {line["kernel"] for line in lines} == launched
    assert sum(line["kernel"] == "_scan" for line in lines) == 6
    assert sum(line["kernel"] == "_shedding" for line in lines) == 6
    assert {line["parts"].strip() for line in lines if line["kernel"] == "_attend"} == ATTENDING
