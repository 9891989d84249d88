"""A sweep with Ray on an NVIDIA GPU: one worker keeps the model and goes from cell to cell. `make test-gpu`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GAPS = Path(__file__).parent.parent / "benchmarks" / "gaps.py"


def test_workers_on_a_gpu_wait_little_between_cells():
    command = [sys.executable, str(GAPS), "--device", "cuda", "--sweeps", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=GAPS.parent.parent.parent)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    assert found["device"] == "cuda"
    for sweep in found["sweeps"]:
        assert sweep["cells"] == 33
        assert sweep["gap_median_s"] < 0.2
