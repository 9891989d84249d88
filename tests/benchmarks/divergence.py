"""What does comparing each token with the full cache's prediction cost a quality cell?

    python tests/benchmarks/divergence.py                     Pythia-70M's shape and the demo model's, 2,048 tokens
    python tests/benchmarks/divergence.py --rounds 15 --models shape:pythia-70m --policies 'streaming_llm(4,508)'
    python tests/benchmarks/divergence.py --device cuda       on a GPU

Of each model and policy the same cell with `--metrics kl` over the same with `--metrics nll`, and full's own cell,
which keeps what the others are compared with: a sweep pays that once a text. Then all cells of a text together. All
take turns in one process; medians of rounds' ratios and their intervals.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from measuring import interleaved, ratio

from kvstream import H2O, FixSizeL2, Full, StreamingLLM, parse_policy
from kvstream.engine.backends import seconds_of
from kvstream.inputs.model_loading import load_model
from kvstream.measure.quality import evaluate
from kvstream.measure.scores import run_full

POLICIES = (StreamingLLM(4, 508), FixSizeL2(512, 0.5, "keep_low"), H2O(512, 256, start_size=4))


def timed(label: str, run: Callable[[], object], device: torch.device) -> Callable[[], dict[str, float]]:
    """A turn of `interleaved`."""

    def turn() -> dict[str, float]:
        return {label: seconds_of(run, device)}

    return turn


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--models", nargs="+", default=("shape:pythia-70m", "smollm2-135m"))
    parser.add_argument("--policies", nargs="+", default=())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device, most = torch.device(options.device), {"cpu": 1.25}.get(options.device, 1.4)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("divergence: no CUDA device here, nothing was measured")
        return
    policies = [parse_policy(label) for label in options.policies] or POLICIES
    for name in options.models:
        model, _ = load_model(name, device=options.device)
        ids = torch.randint(model.config.vocab_size, (1, options.length), generator=torch.Generator().manual_seed(1))
        ids_BN, asked = ids.numpy(), {"cells": ["c"], "documents": ["d"], "device": options.device}
        full = run_full(model, ids_BN, options.device)
        turns = [timed("full, kl", partial(run_full, model, ids_BN, options.device), device)]
        turns.append(timed("full, nll", partial(evaluate, model, ids_BN, Full(), **asked), device))
        for policy in policies:
            for metrics, beside in (("kl", full), ("nll", None)):
                run = partial(evaluate, model, ids_BN, policy, **asked, full=beside)
                turns.append(timed(f"{policy}, {metrics}", run, device))
        for turn in turns:
            turn()  # warms up
        where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
        print(f"{name}, {options.length:,} tokens, {where}", flush=True)
        rounds = interleaved(turns, options.rounds)
        for policy in (Full(), *policies):
            ratio(rounds, f"{policy}, kl", f"{policy}, nll")
        for metrics in ("kl", "nll"):
            rounds[f"all cells, {metrics}"] = sum(rounds[f"{policy}, {metrics}"] for policy in (Full(), *policies))
        ratio(rounds, "all cells, kl", "all cells, nll", f"{most} or less")
        print(f"  {full.kept.vector_BTE.nbytes / 1e6:.1f} MB are kept of full", flush=True)


if __name__ == "__main__":
    main()
