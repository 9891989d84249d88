"""What each policy costs on this CPU: replay against its own decoding, a step against one with as many cached keys.

    python tests/benchmarks/policies.py            Pythia-70M's shape, budget 512, 8,192 tokens; wants a quiet machine
    python tests/benchmarks/policies.py --rounds 3 --policies 'tova(512)'
    python tests/benchmarks/policies.py --memory     the process's peak over 200,000 tokens against one over 20,000
    python tests/benchmarks/policies.py --profile    where a step's time goes

All policies take turns, in steps too, with the budget full.
Against: StreamingLLM of as many tokens as the policy holds on average, whose step decides nothing.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from measuring import interleaved, ratio, results
from replay import peak_of_replay

from kvstream import Policy, StreamingLLM, load_model, parse_policy, replay
from kvstream.engine.backends.cpu import Cpu
from kvstream.engine.backends.pace import Pace
from kvstream.engine.backends.reference import Reference
from kvstream.engine.decode_engine import DecodeEngine
from kvstream.engine.eviction import Eviction
from kvstream.engine.layer import Layer
from kvstream.engine.scanned_layer import ScannedLayer

BUDGET, TOKENS = 512, 8192
SINKS = 4
POLICIES = [
    *(f"{name}({BUDGET},{BUDGET // 2})" for name in ("sink_l2", "sink_random", "keydiff", "h2o")),
    *(f"{name}({BUDGET})" for name in ("tova", "snapkv")),
    f"l2_compress(0.5,{BUDGET})",
    f"fix_size_l2({BUDGET},0.5,keep_low)",
]


def of_as_many(policy: Policy) -> Policy:
    """StreamingLLM of as many tokens as a policy holds between two evictions, on average."""
    full, left = policy.shed(policy.regions)
    return StreamingLLM(SINKS, (left + full - 1) // 2 - SINKS)


def replaying(model: torch.nn.Module, ids: torch.Tensor, policy: Policy) -> Callable[[], dict[str, float]]:
    """Seconds per token of replay."""

    def turn() -> dict[str, float]:
        started = time.perf_counter()
        replay(model, ids, policy)
        return {f"{policy}, replayed": (time.perf_counter() - started) / len(ids)}

    return turn


def stepping(model: torch.nn.Module, ids: torch.Tensor, policies: list[Policy]) -> Callable[[], dict[str, float]]:
    """Seconds of a step with a full budget: the median of 256, of which all policies take eight at a time in turn."""

    def turn() -> dict[str, float]:
        engines = {str(policy): DecodeEngine(model, policy, capacity=2 * BUDGET + 300) for policy in policies}
        taken: dict[str, list[float]] = {label: [] for label in engines}
        for engine in engines.values():
            engine.prefill(ids[None, : 2 * BUDGET])
        for block in range(33):  # the first warms up
            for label, engine in engines.items():
                for _ in range(8):
                    started = time.perf_counter()
                    engine.step(ids[None, :1])
                    taken[label] += [time.perf_counter() - started] if block else []
        return {f"{label}, a step": float(np.median(seconds)) for label, seconds in taken.items()}

    return turn


PARTS = {  # `layers` holds the others: attending to what is held, preparing what decides, letting tokens go
    "layers": (Layer, "attend"),
    "attention": (Reference, "step"),
    "loop": (Pace, "spread"),
    "scores": (ScannedLayer, "arriving"),
    "deciding": (Eviction, "step"),
    "seating": (Cpu, "seat"),
}


def profile(model: torch.nn.Module, ids: torch.Tensor, policies: list[Policy], steps: int = 200) -> None:
    """Print milliseconds of a step, and of its parts over all layers: medians, all policies in turns.

    Leaves clocks in the engine's classes: a process does nothing else after this.
    """
    taken: dict[str, float] = {}

    def clocked(part: str, function: Callable) -> Callable:
        def call(*given, **named):
            started = time.perf_counter()
            found = function(*given, **named)
            taken[part] = taken.get(part, 0.0) + 1e3 * (time.perf_counter() - started)
            return found

        return call

    engines = {str(policy): DecodeEngine(model, policy, capacity=2 * BUDGET + steps + 64) for policy in policies}
    found: dict[str, list[dict[str, float]]] = {label: [] for label in engines}
    for engine in engines.values():
        engine.prefill(ids[None, : 2 * BUDGET])
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, clocked(part, getattr(owner, name)))
    for number in range(steps):
        for label, engine in engines.items():
            taken.clear()
            clocked("step", engine.step)(ids[None, :1])
            found[label] += [dict(taken)] if number >= steps // 10 else []
    for label, each in found.items():
        parts = {part: float(np.median([one.get(part, 0.0) for one in each])) for part in ("step", *PARTS)}
        print(f"{label}: " + ", ".join(f"{part} {ms:.2f} ms" for part, ms in parts.items() if ms), flush=True)


def memory(policies: list[Policy]) -> None:
    """Print what ten times as long a text adds to the peak of a fresh process, on a small model."""
    for policy in policies:
        peaks = {}
        for tokens in (20_000, 200_000):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                _, peaks[tokens] = fresh.submit(peak_of_replay, "small", tokens, policy).result()
        grown = peaks[200_000] / peaks[20_000]
        print(f"{policy}: {peaks[20_000] / 1e6:.0f} MB, {grown:.3f} × at 200,000 tokens   target ≤ 1.02", flush=True)


def main() -> None:
    """Print and keep the ratios."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--policies", nargs="*", default=POLICIES)
    reader.add_argument("--rounds", type=int, default=5)
    reader.add_argument("--shape", default="shape:pythia-70m")
    reader.add_argument("--memory", action="store_true")
    reader.add_argument("--profile", action="store_true")
    given = reader.parse_args()
    own = [parse_policy(label) for label in given.policies]
    policies = [*dict.fromkeys(map(of_as_many, own)), *own]
    if given.memory:
        memory(policies)
        return
    model, _ = load_model(given.shape)
    ids = torch.randint(0, 50000, (TOKENS,), generator=torch.Generator().manual_seed(1))
    if given.profile:
        profile(model, ids, policies)
        return
    for policy in policies:
        replay(model, ids[:700], policy)  # compiles
    replayed = [policy for policy in policies if policy in own or policy.regions.budget == BUDGET]
    turns = [*(replaying(model, ids, policy) for policy in replayed), stepping(model, ids, policies)]
    rounds = interleaved(turns, given.rounds)
    for policy in replayed:
        target = "8 or more" if policy.scored_by == "attention" else "10 or more"
        rate = float(np.median(1 / rounds[f"{policy}, replayed"]))
        print(f"{policy}: {rate:,.0f} tokens/s replayed")
        ratio(rounds, f"{policy}, a step", f"{policy}, replayed", target, tokens_per_s=rate)
        target = "1.12 or less" if policy.scored_by == "attention" else "1.08 or less"
        if policy in own:
            ratio(rounds, f"{policy}, a step", f"{of_as_many(policy)}, a step", target)
    print(json.dumps({"threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
