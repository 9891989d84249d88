"""How fast is replay on this GPU, beside a plain forward pass of the same model that computes the loss?

    python tests/benchmarks/gpu.py                                            measures, and writes benchmarks/gpu.json
    python tests/benchmarks/gpu.py --from benchmarks/gpu.json --page docs/benchmarks.md    writes the table of the page

All take turns in one run, in another random order each round; a ratio is the median over rounds. Models have Pythia's
shapes with random weights, texts are random tokens, linear products of float32 are IEEE's (TF32 off), the plain pass
is transformers' own with its fused attention ("sdpa") and its loss. Where there is no GPU this says so in a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import measuring
import numpy as np
import torch
from measuring import clocked, interleaved

from kvstream import FixSizeL2, Full, KVStreamCache, StreamingLLM
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.replay import replay_windows, windows
from kvstream.inputs.pythia_shapes import build

BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
TOKENS = 8192
PLAIN = "plain forward pass with loss"
POLICIES = [
    Full(),
    StreamingLLM(4, 1020),
    FixSizeL2(1024, 0.7, "keep_low", position="absolute"),
    FixSizeL2(1024, 0.7, "keep_low"),
]
CASES = [("70m", "float32", 1), ("410m", "float32", 1), ("70m", "bfloat16", 1), ("70m", "bfloat16", 8)]


def plain(model, ids_BT: torch.Tensor) -> Callable[[], dict[str, float]]:
    """Time transformers' own forward pass."""

    def run() -> dict[str, float]:
        model.set_attn_implementation("sdpa")
        with torch.inference_mode():
            return {PLAIN: clocked(lambda: model(ids_BT, labels=ids_BT, use_cache=False).loss.item())}

    return run


def replaying(model, policy, ids_BT: torch.Tensor) -> Callable[[], dict[str, float]]:
    """Time replay, until its scores are on the host."""

    def replay() -> None:
        cache = KVStreamCache(model, policy, capacity=TOKENS)
        size = chunk_size_for(model, len(ids_BT))
        torch.cat([part.nll_nats for part in replay_windows(model, windows([ids_BT], size), cache)], 1).cpu()

    return lambda: {str(policy): clocked(replay)}


def measure(size: str, dtype: str, texts: int, rounds: int) -> dict:
    """Let a plain forward pass and replay under each policy take turns on one model."""
    model = build(f"shape:pythia-{size}", getattr(torch, dtype)).cuda().eval()
    ids_BT = torch.randint(0, 50304, (texts, TOKENS), generator=torch.Generator().manual_seed(1)).cuda()
    turns = [plain(model, ids_BT), *(replaying(model, policy, ids_BT) for policy in POLICIES)]
    for turn in turns * 2:  # compiles
        turn()
    found = interleaved(turns, rounds)
    ratios = {label: float(np.median(found[PLAIN] / seconds)) for label, seconds in found.items()}
    speeds = {label: texts * TOKENS / float(np.median(seconds)) for label, seconds in found.items()}
    for label, ratio in ratios.items():
        print(f"  {size} {dtype} × {texts}  {label}: {speeds[label]:,.0f} tokens/s, {ratio:.2f}", flush=True)
    return {"model": size, "dtype": dtype, "texts": texts, "tokens_per_s": speeds, "of_plain": ratios}


def block_of(report: dict) -> list[str]:
    """The page's lines: a row for each way to run, a column for each policy."""
    labels = [PLAIN, *map(str, POLICIES)]
    lines = [f"| {TOKENS:,} tokens | {' | '.join([PLAIN, *(f'`{label}`' for label in labels[1:])])} |"]
    lines.append("|---|" + "---:|" * len(labels))
    for found in report["cases"]:
        texts = "one text" if found["texts"] == 1 else f"{found['texts']} texts side by side"
        cells = [f"{found['tokens_per_s'][label]:,.0f}" for label in labels]
        cells[1:] = [f"{cell} · {found['of_plain'][label]:.2f}" for cell, label in zip(cells[1:], labels[1:])]
        lines.append(f"| {found['model']}, {found['dtype']}, {texts} | {' | '.join(cells)} |")
    about = f"{report['card']}, torch {report['torch']}, TF32 off: tokens per second, and times the plain"
    rounds = f"medians over {report['rounds']} rounds, of ratios within a round"
    return [*lines, "", f"{about} forward pass's; {rounds}. From `make bench-gpu`."]


def rewrite(page: Path, report: dict) -> None:
    """Replace what the page says between its markers."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"--page: {str(page)!r} must hold one {BEGIN} and after it one {END}; add these two lines")
    block = "\n".join([BEGIN, *block_of(report), END])
    page.write_text(text.split(BEGIN)[0] + block + text.split(END)[1], encoding="utf-8")


def main() -> None:
    """Measure, or write what was measured."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=9)
    flags.add_argument("--out", type=Path, default=Path("benchmarks/gpu.json"))
    flags.add_argument("--from", dest="source", type=Path, metavar="FILE", help="write --page from what was measured")
    flags.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    options = flags.parse_args()
    if options.source:
        rewrite(options.page, json.loads(options.source.read_text()))
        return
    if not torch.cuda.is_available():
        print("bench-gpu: no CUDA device here, nothing was measured")
        return
    measuring.SILENCE_S = 60
    report = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": options.rounds}
    report["cases"] = [measure(*case, options.rounds) for case in CASES]
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
