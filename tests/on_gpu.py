"""Runs what needs an NVIDIA GPU: exactness, memory, sweeps with Ray, kernels and steps compiled. `make test-gpu`.

Where there is no such GPU this says so in a line and claims nothing.
"""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FOLDERS = ("engine", "measure", "sweep")


def main() -> int:
    """Run the tests; the exit code is pytest's."""
    if not torch.cuda.is_available():
        print("test-gpu: no CUDA device here, nothing was run")
        return 0
    print(f"test-gpu: {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    return pytest.main(["-m", "gpu", *(str(HERE / folder) for folder in FOLDERS), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
