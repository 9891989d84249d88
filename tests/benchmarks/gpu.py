"""How fast are replay and decoding on this GPU?

Replay beside a plain forward pass of the same model that computes the loss; decoding beside a full cache in
preallocated memory, transformers' DynamicCache, and twins that do not evict (`kvstream.measure.contenders`).

    python tests/benchmarks/gpu.py                                            measures, writes benchmarks/gpu.json, and
                                                                ends with the figures that there are targets for
    python tests/benchmarks/gpu.py --from benchmarks/gpu.json --page docs/benchmarks.md    writes the page's tables, and
                                                                what mission.py took, from the same folder

All take turns in one run, in another random order each round; a ratio is the median over rounds. Models have Pythia's
shapes with random weights, texts are random tokens, linear products of float32 are IEEE's (TF32 off), the plain pass
is transformers' own with its fused attention ("sdpa") and its loss. Where there is no GPU this says so in a line.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import measuring
import numpy as np
import torch
from measuring import clocked, interleaved

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny import build_model

from kvstream import (
    H2O,
    TOVA,
    FixSizeL2,
    Full,
    KeyDiff,
    KVStreamCache,
    Policy,
    RecentOnly,
    SnapKV,
    StreamingLLM,
    load_model,
    replay,
)
from kvstream.engine.backends import synchronize
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.decode_engine import DecodeEngine, HeldDecodeEngine
from kvstream.engine.replay import replay_windows, windows
from kvstream.inputs.documents import load_documents
from kvstream.inputs.pythia_shapes import build
from kvstream.measure.contenders import (
    DYNAMIC,
    WITHOUT_EVICTION,
    Contender,
    HeldContender,
    PolicyContender,
    Protocol,
    contenders,
)
from kvstream.measure.environment import environment
from kvstream.measure.latency import measure as take_turns

TOKENS = 8192
PLAIN = "plain forward pass with loss"
POLICIES = [
    Full(),
    StreamingLLM(4, 1020),
    RecentOnly(1024),
    FixSizeL2(1024, 0.7, "keep_low", position="absolute"),
    FixSizeL2(1024, 0.7, "keep_low"),
]
SCANNED = [H2O(512, 256, 4), TOVA(512), KeyDiff(512, 256, 4), SnapKV(512)]
SIDE_BY_SIDE = 8
DECODED = [StreamingLLM(4, 1020), FixSizeL2(512, 0.7, "keep_low")]
CONTENDERS = ["full", DYNAMIC, *(str(each) for each in DECODED), *(WITHOUT_EVICTION.format(each) for each in DECODED)]
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


class Compiled(PolicyContender):
    """A policy's steps as torch.compile makes them."""

    def new_engine(self) -> DecodeEngine:
        """Make one with room for the prompt and all steps until it goes back."""
        capacity = self.protocol.context + 64
        return DecodeEngine(self.model, self.policy, capacity=capacity, compiled=True, repeated=True)


class CompiledTwin(HeldContender):
    """The same without eviction."""

    def new_engine(self) -> HeldDecodeEngine:
        """Make one that holds what the policy keeps of the prompt."""
        return HeldDecodeEngine(self.model, self.policy, prompt_tokens=self.protocol.context, compiled=True)


def as_compiled(runner: Contender) -> Contender:
    """The same contender, its steps compiled; DynamicCache's are as transformers launches them."""
    kind = {PolicyContender: Compiled, HeldContender: CompiledTwin}.get(type(runner))
    return kind(runner.label, runner.model, runner.protocol, runner.policy) if kind else runner


def decode(model, about: dict, rounds: int, prefills: int = 5, steps: int = 8) -> dict:
    """Let a full cache, policies and their twins take turns, prefills and steps: medians in milliseconds.

    about["compiled"]: whether steps of all but DynamicCache are. Ratios are medians of ratios within a turn: of_full
    and of_dynamic, and a policy's step of its twin's.
    """
    protocol = Protocol(about["context"], about["texts"], prefills, rounds, steps)
    runners = [each for each in contenders(model, DECODED, protocol) if each.label in CONTENDERS]
    if about["compiled"]:
        runners = [as_compiled(each) for each in runners]
    prompt_BT = torch.randint(model.config.vocab_size, (about["texts"], about["context"])).to(model.device)
    for runner in runners:
        runner.serve(prompt_BT)
    *_, rows = take_turns("bench", runners, prompt_BT, protocol)
    frame = rows.to_pandas()
    medians = 1e3 * frame.groupby(["phase", "policy"]).seconds.median()
    turns = frame.pivot_table(index=["phase", "round", "step"], columns="policy", values="seconds")
    launched = [each.label for each in runners if not getattr(each.engine, "graphed", False)]
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


def way(found: dict) -> str:
    """How a case of decoding was run, in words."""
    texts = "one text" if found["texts"] == 1 else f"{found['texts']} texts"
    how = ", compiled" if found["compiled"] else ""
    return f"{found['model']}, {found['dtype']}, {texts}, {found['context']:,} tokens{how}"


def figures(report: dict) -> Iterator[tuple[str, float, str, float]]:
    """Yield what there is a target for, as far as it was measured: what it is, how much, ≤ or ≥, and the target."""
    full, streaming, recent, absolute, by_rank = map(str, POLICIES)
    least = {full: 0.9, streaming: 0.9, recent: 0.9}
    for case in report["cases"]:
        alone = case["dtype"] == "float32" and case["texts"] == 1
        bounds = least | ({absolute: 0.5, by_rank: 0.3} if case["model"] == "70m" else {}) if alone else {}
        for label, bound in bounds.items():
            what = f"replay under `{label}` ÷ {PLAIN}, {case['model']}, {case['dtype']}"
            yield what, case["of_plain"][label], "≥", bound
        if (case["model"], case["dtype"], case["texts"]) == ("70m", "bfloat16", 8):
            what = f"tokens per second, replay under `{streaming}`, 70m, bfloat16, 8 texts"
            yield what, case["tokens_per_s"][streaming], "≥", 1e6
    for what, measure, name, bound in (
        ("losses in float32 against float64, tiny models, most, nats", "most", "exactness", 2e-5),
        (f"losses against the CPU’s, smollm2-135m, {TOKENS:,} tokens, mean, nats", "mean", "demo", 1e-4),
    ):
        if found := report.get(name):
            yield what, max(each[measure] for each in found.values()), "≤", bound
    streaming, by_norm = map(str, DECODED)
    for found in report["decoding"]:
        small = (found["model"], found["dtype"]) == ("70m", "bfloat16")
        alone = found["texts"] == 1
        if small and alone and found["compiled"]:
            yield f"ms, a step under `{streaming}`, {way(found)}", found["step_ms"][streaming], "≤", 0.30
            what = f"DynamicCache ÷ a step under `{streaming}`, {way(found)}"
            yield what, 1 / found["step_of_dynamic"][streaming], "≥", 8
        if small:
            for label, bound in ((streaming, 1.08), (by_norm, 1.25)):
                what = f"a step under `{label}` ÷ without eviction, {way(found)}"
                yield what, found["step_of_twin"][label], "≤", bound
        if (found["model"], found["dtype"], found["context"]) == ("410m", "bfloat16", 8192):
            bound = 1.02 if alone else 0.6
            yield f"a step under `{streaming}` ÷ full’s, {way(found)}", found["step_of_full"][streaming], "≤", bound
        if small and alone and not found["compiled"]:
            bound = 1.5 if found["context"] < TOKENS else 1
            for label in (full, streaming):
                what = f"first token under `{label}` ÷ DynamicCache’s, {way(found)}"
                yield what, found["ttft_of_dynamic"][label], "≤", bound
    if last := report.get("far"):
        first, far_off = last["contexts"]
        what = f"a step under `{last['policy']}`, 410m, bfloat16, after {far_off:,} ÷ after {first:,} tokens"
        yield what, last["ratio"], "≤", 1.05
    if mission := report.get("mission"):
        yield f"seconds, {mission['cells']:,} quality cells, start-up included", mission["seconds"], "≤", 360


def with_targets(report: dict) -> dict:
    """The report, and in it the figures beside their targets."""
    rows = [
        {"what": what, "figure": figure, "target": f"{sign} {bound:,.10g}",
         "reached": figure >= bound if sign == "≥" else figure <= bound}
        for what, figure, sign, bound in figures(report)
    ]  # fmt: skip
    return report | {"targets": rows}


def short(figure: float) -> str:
    """A figure with about three digits."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3f}" if figure >= 0.01 else f"{figure:.1e}"


def targets_table(report: dict) -> list[str]:
    """Figures beside their targets, as lines of a table."""
    lines = ["| Figure | Measured | Target | |", "|---|---:|---:|---|"]
    for row in with_targets(report)["targets"]:
        reached = "" if row["reached"] else "missed"
        lines.append(f"| {row['what']} | {short(row['figure'])} | {row['target']} | {reached} |")
    return lines


def where(report: dict) -> str:
    """What was measured on."""
    commit = f", commit {report['commit']}" if report.get("commit") else ""
    return f"{report['card']}, torch {report['torch']}{commit}"


def decoding_block(report: dict) -> list[str]:
    """The page's lines on decoding: a row for each way to run, a column for each contender."""
    lines = [
        f"| a step; first token | {' | '.join(f'`{label}`' for label in CONTENDERS)} |",
        "|---|" + "---:|" * len(CONTENDERS),
    ]
    for found in report["decoding"]:
        cells = []
        for label in CONTENDERS:
            step, ttft = found["step_ms"].get(label), found["ttft_ms"].get(label)
            cells.append("–" if step is None else f"{step:.3f} ms · {found['step_of_full'][label]:.2f}")
            cells[-1] += "" if ttft is None else f"; {ttft:.1f} ms · {found['ttft_of_full'][label]:.2f}"
        lines.append(f"| {way(found)} | {' | '.join(cells)} |")
    launched = sorted({label for found in report["decoding"] for label in found["launched"]})
    graphs = f"Steps are CUDA graphs, but for {', '.join(launched)}." if launched else "Steps are CUDA graphs."
    about = f"{where(report)}: medians, and times `full`'s within a turn"
    if not (last := report.get("far")):
        return [*lines, "", f"{about}, over {report['rounds']} rounds. {graphs} From `make bench-gpu`."]
    after = [f"{tokens:,} tokens ({taken:.3f} ms)" for tokens, taken in zip(last["contexts"], last["step_ms"])]
    far_said = (
        f"A step under `{last['policy']}`, 410m, bfloat16, after {after[1]} takes {last['ratio']:.3f} × its time after "
        f"{after[0]}; {last['rounds']} rounds."
    )
    return [*lines, "", f"{about}, over {report['rounds']} rounds. {graphs} {far_said} From `make bench-gpu`."]


def block_of(report: dict) -> list[str]:
    """The page's lines on replay: a row for each way to run, a column for each policy."""
    lines = [*table_of(report["cases"], POLICIES), "", *table_of(report["scanned"], SCANNED)]
    about = f"{where(report)}, TF32 off: tokens per second, and times the plain"
    rounds = f"medians over {report['rounds']} rounds, of ratios within a round"
    return [*lines, "", f"{about} forward pass's; {rounds}. From `make bench-gpu`.", "", *targets_table(report)]


def table_of(cases: list[dict], policies: Sequence[Policy]) -> list[str]:
    """A row for each way to run, a column for each policy."""
    labels = [PLAIN, *map(str, policies)]
    lines = [f"| {TOKENS:,} tokens | {' | '.join([PLAIN, *(f'`{label}`' for label in labels[1:])])} |"]
    lines.append("|---|" + "---:|" * len(labels))
    for found in cases:
        texts = "one text" if found["texts"] == 1 else f"{found['texts']} texts side by side"
        cells = [f"{found['tokens_per_s'][label]:,.0f}" for label in labels]
        cells[1:] = [f"{cell} · {found['of_plain'][label]:.2f}" for cell, label in zip(cells[1:], labels[1:])]
        lines.append(f"| {found['model']}, {found['dtype']}, {texts} | {' | '.join(cells)} |")
    return lines


def mission_block(report: dict) -> list[str]:
    """The page's line on the mission's grid, where that was run."""
    found = report.get("mission")
    if not found:
        return ["The mission's grid was not run on a GPU yet: `make bench-gpu` does it."]
    of = " ".join(["python tests/benchmarks/mission.py", *found["flags"]])
    gpus = f"{found['gpus']} × " if found.get("gpus", 1) > 1 else ""
    return [f"{gpus}{where(found)}: {found['cells']:,} quality cells in {found['seconds']:.0f} s. From `{of}`."]


BLOCKS = {"gpu": block_of, "gpu-decoding": decoding_block, "gpu-mission": mission_block}


def rewrite(page: Path, report: dict) -> None:
    """Replace what the page says between the markers of each block."""
    text = page.read_text(encoding="utf-8")
    for name, lines in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"--page: {str(page)!r} must hold one {begin} and after it one {end}; add these two lines")
        text = text.split(begin)[0] + "\n".join([begin, *lines(report), end]) + text.split(end)[1]
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure, or write what was measured."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rounds", type=int, default=9)
    flags.add_argument("--out", type=Path, default=Path("benchmarks/gpu.json"))
    flags.add_argument("--from", dest="source", type=Path, metavar="FILE", help="write --page from what was measured")
    flags.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    options = flags.parse_args()
    if options.source:
        report = json.loads(options.source.read_text())
        mission = options.source.with_name("mission.json")
        rewrite(options.page, report | ({"mission": json.loads(mission.read_text())} if mission.exists() else {}))
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
    for size, dtype, texts, context, compiled in DECODING:
        model = build(f"shape:pythia-{size}", getattr(torch, dtype)).cuda().eval()
        about = {"model": size, "dtype": dtype, "texts": texts, "context": context, "compiled": compiled}
        report["decoding"].append(decode(model, about, options.rounds, 1 if compiled else 5))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))  # what follows takes the most memory
    report["far"] = far(build("shape:pythia-410m", torch.bfloat16).cuda().eval(), FAR, 20 * options.rounds)
    options.out.write_text(json.dumps(with_targets(report), indent=1))
    print("\n".join([where(report), *targets_table(report), f"wrote {options.out}"]))


if __name__ == "__main__":
    sys.exit(main())
