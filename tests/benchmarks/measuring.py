"""What the benchmarks share: turns in random order, ratios with intervals over rounds, and another package to race.

Knows no policy and no question; `results` collects what is printed, for the JSON beside it.
"""

import gc
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from kvstream.inputs.pythia_shapes import SHAPES

HERE = Path(__file__).parent
PEER = HERE.parent.parent / ".cache" / "peer"
RESAMPLES = 2000
SILENCE_S = 10  # rounds longer than this say that they are over
results: list[dict] = []


def ratio(
    rounds: dict[str, np.ndarray], above: str, below: str, target: str = "", **about: object
) -> tuple[float, float, float]:
    """Print and keep the ratio of two contenders, with what else is known of it: median, and interval over rounds."""
    values = rounds[above] / rounds[below]
    resampled = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    middle = float(np.median(values))
    print(f"  {above} / {below}: {middle:.3f} [{low:.3f}, {high:.3f}]   {target}", flush=True)
    found = {"above": above, "below": below, "ratio": middle, "low": low, "high": high, "target": target}
    results.append(found | about)
    return middle, float(low), float(high)


def show(rounds: dict[str, np.ndarray]) -> None:
    """Print medians in milliseconds."""
    for label, values in rounds.items():
        print(f"  {label}: {1e3 * np.median(values):.2f} ms", flush=True)
        results.append({"label": label, "median_s": float(np.median(values)), "rounds": len(values)})


def interleaved(turns: Sequence[Callable[[], dict[str, float]]], rounds: int) -> dict[str, np.ndarray]:
    """Let all take turns, in another random order each round: what each measured under its labels, by round."""
    order = np.random.default_rng(0)
    found = defaultdict(list)
    for number in range(rounds):
        started = time.perf_counter()
        for place in order.permutation(len(turns)):
            gc.collect()  # now rather than in the middle of a measurement
            for label, value in turns[place]().items():
                found[label].append(value)
        if (seconds := time.perf_counter() - started) > SILENCE_S:
            print(f"  round {number + 1} of {rounds}: {seconds:.0f} s", flush=True)
    return {label: np.array(values) for label, values in found.items()}


def clocked(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def step_seconds(step: Callable[[], None], steps: int) -> list[float]:
    """Time steps after one that is not kept: it brings this contender's memory back into the processor's caches."""
    return [clocked(step) for _ in range(steps + 1)][1:]


class Peer:
    """attention-sinks 0.4.0 at the shape `spec`, decoding in its own environment and process, its window full."""

    def __init__(self, spec: str, budget: int) -> None:
        arguments = [*SHAPES[spec], budget, budget + 100, torch.get_num_threads()]
        command = [str(_peer_python()), str(HERE / "peer.py"), *map(str, arguments)]
        self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.worker.stdout.readline().strip() == "ready"

    def step_seconds(self, steps: int) -> list[float]:
        """Seconds of so many tokens, after one that is not kept."""
        self.worker.stdin.write(f"{steps + 1}\n")
        self.worker.stdin.flush()
        return json.loads(self.worker.stdout.readline())[1:]

    def close(self) -> None:
        """Let the process end."""
        self.worker.stdin.close()
        self.worker.wait()


def _peer_python() -> Path:
    python = PEER / "bin" / "python"
    if not python.exists():
        print("  setting up attention-sinks 0.4.0 in .cache/peer", flush=True)
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        pins = [f"torch=={torch.__version__.partition('+')[0]}", "numpy<2", "attention-sinks==0.4.0", "einops==0.8.1"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    return python
