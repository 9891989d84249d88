"""How long workers wait between two cells, and what a sweep of 33 small cells takes, as JSON.

    python tests/benchmarks/gaps.py [--device cuda] [FLAGS OF A SWEEP]

Sweeps run in this process on one Ray: the first starts its workers, the others find them. A gap is the time between the
end of a cell and the beginning of the next on one worker, by that machine's clock, once the worker has the model.
Without --models a tiny random model and three texts are made.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import ray

from kvstream.grid.axes import Grid
from kvstream.grid.flags import parse_flags
from kvstream.policies import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.sweep import ray_pool
from kvstream.sweep.main import run
from kvstream.sweep.pool import Done
from kvstream.sweep.work import Check

WORDS = [f"w{number}" for number in range(96)]


def tiny_model(folder: Path) -> None:
    """Save a random GPT-NeoX of three layers, with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, vocab_size=97)).save_pretrained(folder)
    words = {word: number for number, word in enumerate([*WORDS, "?"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def grid_of(folder: Path) -> Grid:
    """Eleven policies on three texts of a tiny model."""
    tiny_model(folder / "model")
    (folder / "texts").mkdir()
    for seed in range(3):
        (folder / "texts" / f"{seed}.txt").write_text(" ".join(random.Random(seed).choices(WORDS, k=500)))
    policies = [StreamingLLM(sinks, budget - sinks) for sinks in (1, 4) for budget in (8, 32)]
    policies += [RecentOnly(budget) for budget in (8, 32)]
    policies += [FixSizeL2(budget, 0.7, strategy) for budget in (8, 32) for strategy in ("keep_low", "random")]
    return Grid("gaps", (str(folder / "model"),), (Full(), *policies), str(folder / "texts"), 3, (400,))


def heard(pool_class: type) -> list[Done]:
    """Note down whatever workers finish from now on."""
    done: list[Done] = []
    wait = pool_class.wait

    def noting(self, seconds):
        events = wait(self, seconds)
        done.extend(event for event in events if isinstance(event, Done) and not isinstance(event.work, Check))
        return events

    pool_class.wait = noting
    return done


def gaps_s(done: list[Done]) -> list[float]:
    """Seconds between cells that followed each other on one worker."""
    by_worker: dict[str, list[Done]] = {}
    for event in sorted(done, key=lambda event: event.began_s):
        by_worker.setdefault(event.worker.id, []).append(event)
    return [after.began_s - before.ended_s for events in by_worker.values() for before, after in pairwise(events)]


def main() -> None:
    """Run three sweeps and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=3)
    own, flags = parser.parse_known_args()
    done, found = heard(ray_pool.RayPool), []
    with tempfile.TemporaryDirectory() as folder:
        grid, options = parse_flags(grid_of(Path(folder)), __doc__, [*flags, "--out", f"{folder}/records"])
        started = time.perf_counter()
        ray.init(log_to_driver=False, include_dashboard=False)
        ray_s = time.perf_counter() - started
        for number in range(own.sweeps):
            done.clear()
            started = time.perf_counter()
            with contextlib.redirect_stdout(sys.stderr):
                one = {"out": f"{folder}/records{number}"}
                unfinished = run(grid, "How long do workers wait?", type(options)(**vars(options) | one))
            seconds, gaps = time.perf_counter() - started, sorted(gaps_s(done))
            assert not unfinished, "not all cells could be computed"
            computing = sum(event.ended_s - event.began_s for event in done)
            workers = len({event.worker.id for event in done})
            found.append(
                {
                    "sweep_s": seconds,
                    "cells": len({cell.key for event in done for cell in event.work.cells}),
                    "workers": workers,
                    "computing_s": computing,
                    "beside_computing_s_per_cell": (seconds - computing / workers) / len(done),
                    "gap_median_s": statistics.median(gaps),
                    "gap_worst_s": gaps[-1],
                }
            )
    print(json.dumps({"device": options.device, "ray_start_s": ray_s, "sweeps": found}, indent=1))


if __name__ == "__main__":
    main()
