"""How fast is decoding under a bounded cache? Ratios inside one run, interleaved, with 95 % intervals over rounds.

    make bench-decode                                   all of it, about 12 minutes on two cores
    python tests/benchmarks/decode.py --only 70m,aa     some of it: 70m, 410m, peer, aa, ttft

Every ratio is the median over rounds of (mean seconds per token of one) / (the same of the other); the interval is the
bootstrap's. The machine should do nothing else. Writes what it prints to benchmarks/decode.json, too.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.latency import Contender, DynamicContender, HeldContender, PolicyContender, Protocol, measure
from kvstream.models import load_model
from kvstream.shapes import SHAPES
from kvstream.thin import all_cores

HERE = Path(__file__).parent
PEER = HERE.parent.parent / ".cache" / "peer"
PARTS = ("70m", "410m", "peer", "aa", "ttft")
STEPS = 4
RESAMPLES = 2000
results: list[dict] = []


def ratio(rounds: dict[str, np.ndarray], above: str, below: str, target: str = "") -> tuple[float, float, float]:
    """Print and keep the ratio of two contenders: median, and interval over rounds."""
    values = rounds[above] / rounds[below]
    resampled = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    middle = float(np.median(values))
    print(f"  {above} / {below}: {middle:.3f} [{low:.3f}, {high:.3f}]   {target}", flush=True)
    results.append({"above": above, "below": below, "ratio": middle, "low": low, "high": high, "target": target})
    return middle, float(low), float(high)


def per_round(rows, phase: str) -> dict[str, np.ndarray]:
    """Mean seconds per token (or per prefill) of each contender, by round."""
    frame = rows.to_pandas()
    frame = frame[frame.phase == phase].groupby(["policy", "round"]).seconds.mean().unstack(0)
    return {label: frame[label].to_numpy() for label in frame.columns}


def timed(runners: list[Contender], prompt: torch.Tensor, rounds: int, prefills: int = 0):
    """Measure these contenders, each at its own context."""
    protocol = Protocol(prompt.shape[1], 1, prefills, rounds, STEPS)
    *_, rows = measure("bench", runners, prompt, protocol)
    return rows


def show(rounds: dict[str, np.ndarray]) -> None:
    """Print medians in milliseconds."""
    for label, values in rounds.items():
        print(f"  {label}: {1e3 * np.median(values):.2f} ms", flush=True)
        results.append({"label": label, "median_s": float(np.median(values)), "rounds": len(values)})


def shape(name: str, rounds: int) -> None:
    """Flatness, eviction's cost, and the comparison with full caches, at one shape."""
    model, _ = load_model(f"shape:pythia-{name}")
    runners: list[Contender] = []

    def add(label, kind, policy, context=8192):
        runners.append(kind(f"{name} {label}", model, Protocol(context, 1, 0, rounds, STEPS), policy))

    for budget in (256, 1024):
        add(f"streaming {budget} @2048", PolicyContender, StreamingLLM(4, budget - 4), 2048)
        add(f"streaming {budget} @8192", PolicyContender, StreamingLLM(4, budget - 4))
        add(f"streaming {budget} without eviction", HeldContender, StreamingLLM(4, budget - 4))
    add("full @8192", PolicyContender, Full())
    add("DynamicCache @8192", DynamicContender, Full())
    add("recent 256", PolicyContender, RecentOnly(256))
    add("recent 256 without eviction", HeldContender, RecentOnly(256))
    if name == "70m":
        for position in ("cache", "absolute"):
            add(f"L2 256 {position}", PolicyContender, FixSizeL2(256, 0.7, "keep_low", position=position))
        add("L2 256 without eviction", HeldContender, FixSizeL2(256, 0.7, "keep_low"))
    found = per_round(timed(runners, torch.randint(1000, (1, 8192)), rounds), "step")
    show(found)
    for budget in (256, 1024):
        ratio(found, f"{name} streaming {budget} @8192", f"{name} streaming {budget} @2048", "target ≤ 1.05")
        ratio(found, f"{name} streaming {budget} @8192", f"{name} streaming {budget} without eviction", "target ≤ 1.03")
    ratio(found, f"{name} recent 256", f"{name} recent 256 without eviction", "target ≤ 1.03")
    if name == "70m":
        for position in ("cache", "absolute"):
            ratio(found, f"70m L2 256 {position}", "70m L2 256 without eviction", "target ≤ 1.08")
    dynamic, full = ("≥ 2.5", "≥ 1.5") if name == "70m" else ("≥ 4", "≥ 1.7")
    ratio(found, f"{name} DynamicCache @8192", f"{name} streaming 1024 @8192", f"target {dynamic}")
    ratio(found, f"{name} full @8192", f"{name} streaming 1024 @8192", f"target {full}")


def peer(rounds: int) -> None:
    """Against attention-sinks 0.4.0 in its own environment, a few tokens each in turn."""
    python = PEER / "bin" / "python"
    if not python.exists():
        print("  setting up attention-sinks 0.4.0 in .cache/peer", flush=True)
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        pins = [f"torch=={torch.__version__.partition('+')[0]}", "numpy<2", "attention-sinks==0.4.0", "einops==0.8.1"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    model, _ = load_model("shape:pythia-70m")
    for budget, target in ((256, "≥ 1.2"), (1024, "≥ 1.45")):
        arguments = [*SHAPES["shape:pythia-70m"], budget, budget + 100, torch.get_num_threads()]
        command = [str(python), str(HERE / "peer.py"), *map(str, arguments)]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdout.readline().strip() == "ready"
        ours = PolicyContender("ours", model, Protocol(2048, 1, 0, rounds, STEPS), StreamingLLM(4, budget - 4))
        ours.start(torch.randint(1000, (1, 2048)))
        found = {f"attention-sinks {budget}": [], f"ours {budget}": []}
        order = np.random.default_rng(0)

        def theirs() -> list[float]:
            worker.stdin.write(f"{STEPS + 1}\n")  # noqa: B023
            worker.stdin.flush()  # noqa: B023
            return json.loads(worker.stdout.readline())[1:]  # noqa: B023

        def own() -> list[float]:
            seconds = []
            for _ in range(STEPS + 1):
                started = time.perf_counter()
                ours.step()  # noqa: B023
                seconds.append(time.perf_counter() - started)
            return seconds[1:]

        with all_cores(model):
            for _ in range(rounds):
                for label in order.permutation(list(found)):
                    found[label].append(np.mean(theirs() if label.startswith("attention") else own()))
        worker.stdin.close()
        worker.wait()
        found = {label: np.array(values) for label, values in found.items()}
        show(found)
        ratio(found, f"attention-sinks {budget}", f"ours {budget}", f"target {target}")


class Slowed(PolicyContender):
    """The same contender, `extra` slower: waits for that share of each step's time."""

    extra = 0.03

    def step(self) -> None:
        """Take a step, then wait."""
        started = time.perf_counter()
        super().step()
        until = time.perf_counter() + self.extra * (time.perf_counter() - started)
        while time.perf_counter() < until:
            pass


def same(repetitions: int, rounds: int) -> None:
    """A/A: equals must look equal, and a slowdown of 3 % must be seen."""
    model, _ = load_model("shape:pythia-70m")
    prompt = torch.randint(1000, (1, 2048))
    protocol = Protocol(2048, 1, 0, rounds, STEPS)
    kinds = {"full": PolicyContender, "full (again)": PolicyContender, "full, 3 % slower": Slowed}
    runners: list[Contender] = [kind(label, model, protocol, Full()) for label, kind in kinds.items()]
    contains, widths, seen = 0, [], 0
    for repetition in range(repetitions):
        chosen = runners[:2] if repetition >= 10 else runners
        found = per_round(timed(chosen, prompt, rounds), "step")
        _, low, high = ratio(found, "full (again)", "full")
        contains += low <= 1 <= high
        widths.append((high - low) / 2)
        if repetition < 10:
            seen += ratio(found, "full, 3 % slower", "full")[1] > 1
    width = float(np.median(widths))
    print(f"  1 inside {contains} of {repetitions} A/A intervals   target ≥ 35 of 40")
    print(f"  half-width of the A/A interval {100 * width:.2f} %   target ≤ 1 %")
    print(f"  a slowdown of 3 % seen in {seen} of {min(10, repetitions)}   target ≥ 9", flush=True)
    results.append({"aa_contains": contains, "of": repetitions, "half_width": width, "slowdown_seen": seen})


def first_token(rounds: int) -> None:
    """TTFT of streaming against full, for a long prompt and for one within the budget."""
    model, _ = load_model("shape:pythia-70m")
    for length, target, many in ((8192, "target < 1", rounds), (256, "interval contains 1", 5 * rounds)):
        protocol = Protocol(length, 1, many, 0, STEPS)
        runners = [
            PolicyContender(f"{label} TTFT @{length}", model, protocol, policy)
            for label, policy in (("full", Full()), ("streaming 256", StreamingLLM(4, 252)))
        ]
        found = per_round(timed(runners, torch.randint(1000, (1, length)), 0, prefills=many), "ttft")
        show(found)
        ratio(found, f"streaming 256 TTFT @{length}", f"full TTFT @{length}", target)


def main() -> None:
    """Run the parts asked for and write the numbers down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma list of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/decode.json"))
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: unknown {sorted(unknown)}; choose among {', '.join(PARTS)}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    run = {"70m": lambda: shape("70m", 80), "410m": lambda: shape("410m", 20), "peer": lambda: peer(40),
           "aa": lambda: same(40, 40), "ttft": lambda: first_token(7)}  # fmt: skip
    for part in parts:
        print(part, flush=True)
        run[part]()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
