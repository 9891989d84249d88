"""How fast is decoding under a bounded cache? Ratios inside one run, interleaved, with 95 % intervals over rounds.

    make bench-decode                                   all of it
    python tests/benchmarks/decode.py --only 70m,aa     some of it: parity, 70m, 410m, peer, aa, ttft

Every ratio is the median over rounds of (mean seconds per token of one) / (the same of the other); the interval is the
bootstrap's. The machine should do nothing else. Writes what it prints to benchmarks/decode.json, too.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measuring import Peer, interleaved, ratio, results, show, step_seconds

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.inputs.model_loading import load_model
from kvstream.measure.contenders import Contender, DynamicContender, HeldContender, PolicyContender, Protocol
from kvstream.measure.latency import measure

PARTS = ("parity", "70m", "410m", "peer", "aa", "ttft")
STEPS = 4


def per_round(rows, phase: str) -> dict[str, np.ndarray]:
    """Mean seconds per token (or per prefill) of each contender, by round."""
    frame = rows.to_pandas()
    frame = frame[frame.phase == phase].groupby(["policy", "round"]).seconds.mean().unstack(0)
    return {label: frame[label].to_numpy() for label in frame.columns}


def timed(runners: list[Contender], prompt: torch.Tensor, rounds: int, prefills: int = 0):
    """Measure these contenders, each at its own context, anew after each prefill."""
    protocol = Protocol(prompt.shape[1], 1, prefills, rounds, STEPS)
    *_, rows = measure("bench", runners, prompt, protocol)
    return rows


def parity(rounds: int) -> None:
    """A full cache of ours against transformers' own, after 1,100 tokens: the same products, so nothing may be lost."""
    model, _ = load_model("shape:pythia-70m")
    protocol = Protocol(1100, 1, 4, rounds, STEPS)
    runners: list[Contender] = [
        PolicyContender("70m full @1100", model, protocol, Full()),
        PolicyContender("70m full @1100 (again)", model, protocol, Full()),
        DynamicContender("70m DynamicCache @1100", model, protocol, Full()),
    ]
    found = per_round(timed(runners, torch.randint(1000, (1, 1100)), rounds, protocol.prefills), "step")
    show(found)
    ratio(found, "70m full @1100 (again)", "70m full @1100", "A/A")
    ratio(found, "70m full @1100", "70m DynamicCache @1100", "target ≤ 1.02")


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
    model, _ = load_model("shape:pythia-70m")
    for budget, target in ((256, "≥ 1.2"), (1024, "≥ 1.45")):
        theirs = Peer("shape:pythia-70m", budget)
        ours = PolicyContender("ours", model, Protocol(2048, 1, 0, rounds, STEPS), StreamingLLM(4, budget - 4))
        ours.renew()
        ours.start(torch.randint(1000, (1, 2048)))
        turns = (
            lambda: {f"attention-sinks {budget}": np.mean(theirs.step_seconds(STEPS))},  # noqa: B023
            lambda: {f"ours {budget}": np.mean(step_seconds(ours.step, STEPS))},  # noqa: B023
        )
        found = interleaved(turns, rounds)
        theirs.close()
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
    prompt = torch.randint(1000, (1, 512))
    protocol = Protocol(512, 1, 4, rounds, STEPS)
    kinds = {"full": PolicyContender, "full (again)": PolicyContender, "full, 3 % slower": Slowed}
    runners: list[Contender] = [kind(label, model, protocol, Full()) for label, kind in kinds.items()]
    contains, widths, seen = 0, [], 0
    for repetition in range(repetitions):
        chosen = runners[:2] if repetition >= 10 else runners
        found = per_round(timed(chosen, prompt, rounds, protocol.prefills), "step")
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
    for length, target, many in ((8192, "target < 1", rounds), (256, "interval contains 1", 20 * rounds)):
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
    run = {
        "parity": lambda: parity(100),
        "70m": lambda: shape("70m", 80),
        "410m": lambda: shape("410m", 20),
        "peer": lambda: peer(40),
        "aa": lambda: same(40, 140),
        "ttft": lambda: first_token(7),
    }
    for part in parts:
        print(part, flush=True)
        run[part]()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
