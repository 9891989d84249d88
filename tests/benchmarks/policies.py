"""What each policy costs on this CPU: replay against its own decoding, a step against one with as many cached keys.

    python tests/benchmarks/policies.py            Pythia-70M's shape, budget 512, 8,192 tokens; wants a quiet machine
    python tests/benchmarks/policies.py --rounds 3 --policies 'tova(512)'
    python tests/benchmarks/policies.py --memory     the process's peak over 200,000 tokens against one over 20,000

All policies take turns, in steps too, with the budget full.
Against: StreamingLLM of the same budget, whose step attends to as many keys and decides nothing.
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

from kvstream import Policy, load_model, parse_policy, replay
from kvstream.engine.decode_engine import DecodeEngine

BUDGET, TOKENS = 512, 8192
AGAINST = f"streaming_llm(4,{BUDGET - 4})"
POLICIES = [
    *(f"{name}({BUDGET},{BUDGET // 2})" for name in ("sink_l2", "sink_random", "keydiff", "h2o")),
    *(f"{name}({BUDGET})" for name in ("tova", "snapkv")),
    f"l2_compress(0.5,{BUDGET})",
    f"fix_size_l2({BUDGET},0.5,keep_low)",
]


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
    given = reader.parse_args()
    if given.memory:
        memory([parse_policy(label) for label in (AGAINST, *given.policies)])
        return
    model, _ = load_model(given.shape)
    ids = torch.randint(0, 50000, (TOKENS,), generator=torch.Generator().manual_seed(1))
    policies = [parse_policy(label) for label in (AGAINST, *given.policies)]
    for policy in policies:
        replay(model, ids[:700], policy)  # compiles
    turns = [*(replaying(model, ids, policy) for policy in policies), stepping(model, ids, policies)]
    rounds = interleaved(turns, given.rounds)
    for policy in policies:
        target = "8 or more" if policy.scored_by == "attention" else "10 or more"
        rate = float(np.median(1 / rounds[f"{policy}, replayed"]))
        print(f"{policy}: {rate:,.0f} tokens/s replayed")
        ratio(rounds, f"{policy}, a step", f"{policy}, replayed", target, tokens_per_s=rate)
        target = "1.12 or less" if policy.scored_by == "attention" else "1.08 or less"
        ratio(rounds, f"{policy}, a step", f"{AGAINST}, a step", target)
    print(json.dumps({"threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
