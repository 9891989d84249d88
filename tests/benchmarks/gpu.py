"""How fast are replay and decoding on this GPU?

Replay beside a plain forward pass of the same model that computes the loss; decoding beside a full cache in
preallocated memory, transformers' DynamicCache, and twins that do not evict (`kvstream.measure.contenders`).

    python tests/benchmarks/gpu.py                                            measures, writes benchmarks/gpu.json, and
                                                                ends with the figures that there are targets for
    python tests/benchmarks/gpu.py --from benchmarks/gpu.json --page docs/benchmarks.md    says and writes the page's
                                                                tables, with what mission.py took, from the same folder

All take turns in one run, in another random order each round; a ratio is the median over rounds. Models have Pythia's
shapes with random weights, texts are random tokens, linear products of float32 are IEEE's (TF32 off), the plain pass
is transformers' own with its fused attention ("sdpa") and its loss. Where there is no GPU this says so in a line.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import measuring
import numpy as np
import torch
from gpu_tables import (
    CONTENDERS,
    DECODED,
    PLAIN,
    POLICIES,
    SCANNED,
    TOKENS,
    rewrite,
    targets_table,
    where,
    with_targets,
)
from measuring import clocked, interleaved

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny import build_model

from kvstream import Full, KVStreamCache, Policy, RecentOnly, StreamingLLM, load_model, replay
from kvstream.engine.backends import synchronize
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.decode_engine import GRAPH, DecodeEngine
from kvstream.engine.replay import replay_windows, windows
from kvstream.inputs.documents import load_documents
from kvstream.inputs.pythia_shapes import build
from kvstream.measure.compiling import serve_compiled
from kvstream.measure.contenders import DYNAMIC, WITHOUT_EVICTION, Protocol, contenders
from kvstream.measure.environment import environment
from kvstream.measure.latency import measure as take_turns

SIDE_BY_SIDE = 8
DECODING = [
    ("70m", "bfloat16", 1, 2048, False),
    ("70m", "bfloat16", 1, 8192, False),
    ("70m", "bfloat16", 1, 8192, True),
    ("70m", "bfloat16", 32, 2048, False),
    ("70m", "bfloat16", 32, 2048, True),
    ("410m", "bfloat16", 1, 8192, False),
    ("410m", "bfloat16", 8, 8192, False),
    ("70m", "float32", 1, 8192, False),
]
FAR, STEADY = (TOKENS, 1 << 20), DECODED[0]  # contexts after which a step should take as long
AT_ONCE = 32  # of these steps, so that the first, after a pause, counts little
CASES = [("70m", "float32", 1), ("410m", "float32", 1), ("70m", "bfloat16", 1), ("70m", "bfloat16", 8)]
EXACT = [Full(), StreamingLLM(4, 60), RecentOnly(64)]  # under which no rounding decides who stays


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


def measure(size: str, dtype: str, texts: int, rounds: int, policies: Sequence[Policy] = POLICIES) -> dict:
    """Let a plain forward pass and replay under each policy take turns on one model."""
    model = build(f"shape:pythia-{size}", getattr(torch, dtype)).cuda().eval()
    ids_BT = torch.randint(0, 50304, (texts, TOKENS), generator=torch.Generator().manual_seed(1)).cuda()
    turns = [plain(model, ids_BT), *(replaying(model, policy, ids_BT) for policy in policies)]
    for turn in turns * 2:  # compiles
        turn()
    found = interleaved(turns, rounds)
    ratios = {label: float(np.median(found[PLAIN] / seconds)) for label, seconds in found.items()}
    speeds = {label: texts * TOKENS / float(np.median(seconds)) for label, seconds in found.items()}
    for label, ratio in ratios.items():
        print(f"  {size} {dtype} × {texts}  {label}: {speeds[label]:,.0f} tokens/s, {ratio:.2f}", flush=True)
    return {"model": size, "dtype": dtype, "texts": texts, "tokens_per_s": speeds, "of_plain": ratios}


def farthest(model, ids_T: torch.Tensor, policies: Sequence[Policy], exact) -> dict[str, dict[str, float]]:
    """How far losses of a model are from those of another, in nats, by policy: at most, and on average."""
    found = {}
    for policy in policies:
        theirs = replay(exact, ids_T.to(exact.device), policy).cpu()
        apart = (replay(model, ids_T.to(model.device), policy).cpu() - theirs).abs()
        found[str(policy)] = {"most": float(apart.max()), "mean": float(apart.mean())}
        print(f"  {policy}: losses differ by {apart.max():.1e} nats at most, {apart.mean():.1e} on average", flush=True)
    return found


def exactness(device: str, tokens: int = 700) -> dict[str, dict[str, float]]:
    """Tiny models in float32 on a device against float64 on the CPU, which the tests hold to the oracle."""
    ids_T, found = torch.randperm(1009, generator=torch.Generator().manual_seed(5))[:tokens], {}
    for family in ("neox", "llama"):
        exact = build_model(family, torch.float64, 1009)
        found |= {f"{family}, {policy}": apart for policy, apart in
                  farthest(copy.deepcopy(exact).to(device, torch.float32), ids_T, EXACT, exact).items()}  # fmt: skip
    return found


def demo(device: str) -> dict[str, dict[str, float]]:
    """The demo model on a device against itself on the CPU, both in float32, on a text of many tokens."""
    model, tokenizer = load_model("smollm2-135m")
    [document] = load_documents("kjv", name="Genesis", tokens=TOKENS, tokenizer=tokenizer)
    ids_T = torch.from_numpy(document.token_ids).long()
    return farthest(copy.deepcopy(model).to(device), ids_T, [Full(), DECODED[0]], model)


def decode(model, about: dict, rounds: int, prefills: int = 5, steps: int = 8) -> dict:
    """Let a full cache, policies and their twins take turns, prefills and steps: medians in milliseconds.

    about["compiled"]: whether steps of all but DynamicCache are. Ratios are medians of ratios within a turn: of_full
    and of_dynamic, and a policy's step of its twin's.
    """
    protocol = Protocol(about["context"], about["texts"], prefills, rounds, steps)
    runners = [each for each in contenders(model, DECODED, protocol) if each.label in CONTENDERS]
    prompt_BT = torch.randint(model.config.vocab_size, (about["texts"], about["context"])).to(model.device)
    own = [each for each in runners if each.label != DYNAMIC]  # whose steps are as transformers launches them
    if about["compiled"] and not all(serve_compiled(each, prompt_BT) for each in own):
        about = about | {"compiled": False}  # all are, or none
        for each in own:
            each.compiled = False
    for runner in runners:
        if not runner.compiled:
            runner.serve(prompt_BT)
    *_, rows = take_turns("bench", runners, prompt_BT, protocol)
    frame = rows.to_pandas()
    medians = 1e3 * frame.groupby(["phase", "policy"]).seconds.median()
    turns = frame.pivot_table(index=["phase", "round", "step"], columns="policy", values="seconds")
    launched = [each.label for each in runners if GRAPH not in each.engine.launched]
    found = about | {"launched": launched}
    for name, label in (("full", "full"), ("dynamic", DYNAMIC)):
        ratios = turns.div(turns[label], axis=0).groupby("phase").median()  # of what was measured within one turn
        found |= {f"{phase}_of_{name}": ratios.loc[phase].dropna().to_dict() for phase in ("step", "ttft")}
    found["step_of_twin"] = {}
    for label in map(str, DECODED):
        over = turns[label] / turns[WITHOUT_EVICTION.format(label)]
        found["step_of_twin"][label] = float(over.loc["step"].median())
    for phase in ("step", "ttft"):
        found[f"{phase}_ms"] = medians[phase].to_dict()
        for label, taken in found[f"{phase}_ms"].items():
            of_full = found[f"{phase}_of_full"][label]
            print(f"  {about}  {phase} {label}: {taken:.3f} ms, {of_full:.3f} × full's", flush=True)
    return found


def far(model, contexts: Sequence[int], rounds: int) -> dict:
    """Let steps after a short and a long context take turns: medians in milliseconds, and the last over the first."""
    turns = []
    for context in contexts:
        engine = DecodeEngine(model, STEADY, repeated=True)
        logits_1V = engine.prefill(torch.randint(model.config.vocab_size, (1, context)).to(model.device))
        token_B1 = logits_1V.argmax(-1, keepdim=True)
        engine.step(token_B1)
        while not engine.settled:
            engine.step(token_B1)

        def steps(engine=engine, token_B1=token_B1) -> None:
            for _ in range(AT_ONCE):
                engine.step(token_B1)
            synchronize(model.device)

        turns.append(lambda steps=steps, context=context: {context: clocked(steps) / AT_ONCE})
    found = interleaved(turns, rounds)
    medians = [1e3 * float(np.median(found[context])) for context in contexts]
    ratio = float(np.median(found[contexts[-1]] / found[contexts[0]]))
    print(f"  {STEADY} after {contexts[-1]:,} tokens: {ratio:.3f} × a step's time after {contexts[0]:,}", flush=True)
    return {"policy": str(STEADY), "contexts": list(contexts), "step_ms": medians, "ratio": ratio, "rounds": rounds}


def main() -> None:
    """Measure, or write what was measured."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=9)
    flags.add_argument("--out", type=Path, default=Path("benchmarks/gpu.json"))
    flags.add_argument("--from", dest="source", type=Path, metavar="FILE", help="write --page from what was measured")
    flags.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    options = flags.parse_args()
    if options.source:
        if options.source.exists():  # not so where there is no GPU
            report = json.loads(options.source.read_text())
            mission = options.source.with_name("mission.json")
            report |= {"mission": json.loads(mission.read_text())} if mission.exists() else {}
            rewrite(options.page, report)
            print("\n".join([where(report), *targets_table(report), f"wrote {options.page}"]))
        return
    if not torch.cuda.is_available():
        print("bench-gpu: no CUDA device here, nothing was measured")
        return
    measuring.SILENCE_S = 60
    report = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": environment()["commit"]}
    report |= {"rounds": options.rounds, "exactness": exactness("cuda"), "demo": demo("cuda")}
    report["cases"] = [measure(*case, options.rounds) for case in CASES]
    report["scanned"] = [measure("70m", "float32", SIDE_BY_SIDE, min(options.rounds, 3), SCANNED)]
    report["decoding"] = []
    options.out.parent.mkdir(exist_ok=True)
    for size, dtype, texts, context, compiled in DECODING:
        model = build(f"shape:pythia-{size}", getattr(torch, dtype)).cuda().eval()
        about = {"model": size, "dtype": dtype, "texts": texts, "context": context, "compiled": compiled}
        report["decoding"].append(decode(model, about, options.rounds, 1 if compiled else 5))
        options.out.write_text(json.dumps(report, indent=1))  # what follows may fail
    report["far"] = far(build("shape:pythia-410m", torch.bfloat16).cuda().eval(), FAR, 20 * options.rounds)
    options.out.write_text(json.dumps(with_targets(report), indent=1))
    print("\n".join([where(report), *targets_table(report), f"wrote {options.out}"]))


if __name__ == "__main__":
    sys.exit(main())
