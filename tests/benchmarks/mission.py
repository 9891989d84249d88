"""How long do the mission's 840 quality cells take on this machine, start-up included?

    python tests/benchmarks/mission.py                        three sizes of Pythia, ten texts of 8,192 tokens
    python tests/benchmarks/mission.py --documents 1 --lengths 512     or less of it: flags of a sweep

They are those of `sweeps/full.py` under full, streaming_llm, recent_only and fix_size_l2, run as a command against a
hub on this machine that serves Pythia's shapes with random weights, and other books; records go to a folder of their
own, and benchmarks/mission.json holds what a GPU took. Where there is none this says so: a CPU needs days, and only
rehearses, by `--device cpu`.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from standins.hub import pg19, pythia, serving, tokenizer_files

from kvstream.grid import Grid
from kvstream.grid.flags import parse_flags
from kvstream.inputs.models import PINNED
from kvstream.inputs.pythia_shapes import SHAPES
from kvstream.inputs.text_sources import PG19, read
from kvstream.measure.environment import environment

ROOT = Path(__file__).resolve().parents[2]
FOUND = Path("benchmarks/mission.json")
TARGET_S = 360
COMPARED = ("full", "streaming_llm", "recent_only", "fix_size_l2")


def command(out: Path, flags: list[str]) -> list[str]:
    """The sweep's command, without its latency cells."""
    policies = ",".join(str(policy) for policy in grid_of_full().policies if policy.name in COMPARED)
    given = ["--policies", policies, "--contexts", "none", *flags, "--out", str(out)]
    return [sys.executable, str(ROOT / "sweeps" / "full.py"), *given]


def grid_of_full() -> Grid:
    """What `sweeps/full.py` asks."""
    grid: Grid = runpy.run_path(str(ROOT / "sweeps" / "full.py"))["GRID"]
    return grid


def main(flags: list[str]) -> int:
    """Run it and keep what it took; the exit code is the sweep's."""
    _, options = parse_flags(grid_of_full(), __doc__ or "", flags)
    on_cpu = options.device == "cpu"
    if not (on_cpu or torch.cuda.is_available()):
        print("mission: no CUDA device here, nothing was measured")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        texts = [text for _, text in read("kjv")]
        tokenizer = tokenizer_files(texts[:2])
        shapes = zip(PINNED, SHAPES.values(), strict=True)
        repositories = {repo: pythia(place / repo, *shape, tokenizer) for repo, shape in shapes}
        with serving(repositories | {PG19[0]: pg19(texts)}) as hub:
            # Nobody's own cache, which would take these weights for Pythia's, and nobody's own Ray.
            cache = dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"), str(place / "cache"))
            alone = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "RAY_ADDRESS": "local"}
            known = os.environ | {"HF_ENDPOINT": hub.url} | cache | alone
            started = time.perf_counter()
            code = subprocess.run(command(place / "records", flags), env=known, check=False).returncode
            seconds = time.perf_counter() - started
        written = place / "records" / "sweep.json"
        cells = json.loads(written.read_text())["cells"] if written.is_file() else []
    if code == 0 and cells:
        print(f"{len(cells)} cells in {seconds:.0f} s")
        if not on_cpu:
            FOUND.parent.mkdir(exist_ok=True)
            FOUND.write_text(json.dumps(about(seconds, len(cells), flags)))
            print(f"target of the whole grid: ≤ {TARGET_S} s; wrote {FOUND}")
    return code


def about(seconds: float, cells: int, flags: list[str]) -> dict:
    """What the run took, of what, and on which machine: each of its GPUs has a worker."""
    taken = {"seconds": seconds, "target_s": TARGET_S, "cells": cells, "flags": flags}
    here = {"card": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return here | {"torch": torch.__version__, "commit": environment()["commit"]} | taken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
