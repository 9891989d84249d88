"""How fast is replay? Beside the machine's own matrix products, beside token-by-token decoding, and in which memory.

    make bench-replay                                           all of it, about 15 minutes on two cores
    python tests/benchmarks/replay.py --only peak --models 70m --lengths 2048       some of it
    python tests/benchmarks/replay.py --from benchmarks/replay.json --readme README.md      only the README's table

    peak     FLOP/s of replay as a share of the peak: of the model's own linear products, timed alone in the faster of
             their two orientations. Counted are those products and attention to the keys a query really sees.
    decode   times faster than `kvstream.decode` under the same policy
    peer     times faster than the package attention-sinks 0.4.0 with the same window
    dynamic  times faster than transformers' DynamicCache, a token at a time, at the same context
    memory   peak bytes above the weights, and how the process's peak grows with the length
    workers, driver   see sweeping.py
    grid     the policies of sweeps/quick.py on its number of documents, against the same grid token by token

All contenders of a model take turns in one process, in another random order each round. A ratio is the median of its
rounds' ratios; the interval is the bootstrap's over rounds. Shapes are Pythia's, weights and tokens random, dtype
float32. The machine should do nothing else. Writes what it prints to benchmarks/replay.json, too.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
from measuring import Peer, clocked, interleaved, ratio, results, step_seconds
from sweeping import driver, workers
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM, noise
from kvstream.cache import KVStreamCache
from kvstream.chunks import CHUNK_SIZE
from kvstream.environment import environment
from kvstream.latency import Contender, DynamicContender, PolicyContender, Protocol
from kvstream.memory import peak_bytes
from kvstream.models import load_model
from kvstream.policies import Policy
from kvstream.replaying import replay_chunks, score
from kvstream.thin import all_cores

ROOT = Path(__file__).parent.parent.parent
BEGIN, END = "<!-- replay:begin -->", "<!-- replay:end -->"
PARTS = ("memory", "workers", "driver", "peak", "decode", "peer", "dynamic", "grid")
LENGTHS = {"70m": (2048, 4096), "160m": (2048,), "410m": (2048,)}
ROUNDS = {"70m": 3, "160m": 3, "410m": 2}
POLICIES: tuple[Policy, ...] = (
    *(StreamingLLM(4, budget - 4) for budget in (256, 1024)),
    *(RecentOnly(budget) for budget in (256, 1024)),
    *(FixSizeL2(512, 0.7, strategy, position="absolute") for strategy in ("keep_low", "keep_high", "random")),
    *(FixSizeL2(512, 0.7, strategy) for strategy in ("keep_low", "random")),
)
PEER_TARGETS = {"70m": "target ≥ 28", "160m": "target ≥ 30", "410m": "target ≥ 26"}  # with a window of 1,024
STEPS = 8
REPETITIONS = 5  # of each product, whenever the peak is measured
DYNAMIC_CONTEXT = 4096 - CHUNK_SIZE // 2  # the mean context of the chunk that ends at 4,096
GRID_TOKENS = 2048
GRID_CONTEXTS = (16, 256, 1024, GRID_TOKENS - STEPS - 1)
Turn = Callable[[], dict[str, float]]


def tokens_of(model: PreTrainedModel, count: int) -> torch.Tensor:
    """Random tokens, (1, count), the same at every call."""
    return torch.randint(model.config.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))


# What is counted, and what it is held against.


def flops(model: PreTrainedModel, policy: Policy, tokens: int) -> float:
    """Operations that `tokens` tokens need: every linear product, and attention to what is visible under the policy."""
    config = model.config
    linear = sum(2 * module.weight.numel() for module in model.modules() if type(module) is nn.Linear)
    before = np.arange(tokens)
    keys = sum(
        int((np.minimum(before, policy.kept(layer, tokens)) + 1).sum()) for layer in range(config.num_hidden_layers)
    )
    return float(linear * tokens + 4 * config.hidden_size * keys)


def product_seconds(weight: torch.Tensor, rows: int) -> float:
    """Seconds that x·Wᵀ takes for so many rows, or W·xᵀ if that is faster; the best that replay could do."""
    columns, size = weight.shape
    x, wide, tall = torch.randn(rows, size), torch.empty(rows, columns), torch.empty(columns, rows)
    ways = (lambda: torch.mm(x, weight.t(), out=wide), lambda: torch.mm(weight, x.t(), out=tall))
    return min(float(np.median([clocked(way) for _ in range(REPETITIONS + 1)][1:])) for way in ways)


def peak_of(model: PreTrainedModel) -> float:
    """FLOP/s of the model's linear products alone, weighted as in the forward pass of a chunk."""
    shapes: dict[torch.Size, list[torch.Tensor]] = {}
    for module in model.modules():
        if type(module) is nn.Linear:
            shapes.setdefault(module.weight.shape, []).append(module.weight)
    operations = sum(2 * CHUNK_SIZE * weights[0].numel() * len(weights) for weights in shapes.values())
    return operations / sum(len(weights) * product_seconds(weights[0], CHUNK_SIZE) for weights in shapes.values())


# Turns: each measures one contender and returns seconds per token, or FLOP/s for the peak.


def replaying(model: PreTrainedModel, policy: Policy, lengths: tuple[int, ...], peak: bool) -> Turn:
    """Replay the longest length, of which shorter ones are prefixes.

    "replayed": the chunks in which the budget is full all along, as it is wherever this is compared with single tokens.
    """
    longest = max(lengths)
    ids = tokens_of(model, longest + 1)
    filling = -(-policy.kept(0, longest) // CHUNK_SIZE)

    def turn() -> dict[str, float]:
        found = {f"peak beside {policy}": peak_of(model)} if peak else {}
        started = time.perf_counter()
        passed = [time.perf_counter() - started for _ in replay_chunks(model, ids, policy)]
        found |= {f"{policy} @{length}": passed[length // CHUNK_SIZE - 1] / length for length in lengths}
        if filling < len(passed):
            found[f"{policy} replayed"] = (passed[-1] - passed[filling - 1]) / (longest - filling * CHUNK_SIZE)
        return found

    return turn


def replaying_one_chunk(model: PreTrainedModel, context: int) -> Turn:
    """Replay the chunk of a full cache whose mean context is `context`, over and over."""
    start = context - CHUNK_SIZE // 2
    ids = tokens_of(model, start + CHUNK_SIZE + 1)
    cache = KVStreamCache(model, Full(), capacity=start + CHUNK_SIZE)
    for chunk in ids[:, :start].split(CHUNK_SIZE, dim=1):
        cache.hidden_states(model, chunk)

    def work() -> None:
        hidden = cache.hidden_states(model, ids[:, start:-1])
        score(model, hidden[0], ids[0, start + 1 :])

    def turn() -> dict[str, float]:
        for layer in cache.layers:
            layer.seen = start
        return {"full replayed": clocked(work) / CHUNK_SIZE}

    return turn


def decoding(label: str, kind: type[Contender], model: PreTrainedModel, policy: Policy, context: int) -> Turn:
    """Decode a few tokens after a prompt of `context` tokens."""
    contender = kind(label, model, Protocol(context, 1, 0, 0, STEPS), policy)
    contender.start(tokens_of(model, context))
    contender.step()

    def turn() -> dict[str, float]:
        contender.rewind()
        with all_cores(model):
            return {label: float(np.mean(step_seconds(contender.step, STEPS)))}

    return turn


# The parts.


def shape(name: str, parts: list[str], lengths: tuple[int, ...], rounds: int) -> None:
    """All that is compared at one shape."""
    model, _ = load_model(f"shape:pythia-{name}")
    peers = {budget: Peer(f"shape:pythia-{name}", budget) for budget in (256, 1024) if "peer" in parts}
    KVStreamCache(model, Full())  # the model is verified now rather than in somebody's turn
    turns: list[Turn] = []
    for policy in POLICIES:
        if {"peak", "decode"} & set(parts) or ("peer" in parts and isinstance(policy, StreamingLLM)):
            turns.append(replaying(model, policy, lengths, "peak" in parts))
        if "decode" in parts:
            label = f"{policy} decoded"
            turns.append(decoding(label, PolicyContender, model, policy, policy.regions.budget + CHUNK_SIZE // 8))
    for budget, peer in peers.items():
        turns.append(lambda b=budget, p=peer: {f"attention-sinks {b}": float(np.mean(p.step_seconds(STEPS)))})
    if "dynamic" in parts:
        turns.append(decoding("DynamicCache", DynamicContender, model, Full(), DYNAMIC_CONTEXT))
        turns.append(replaying_one_chunk(model, DYNAMIC_CONTEXT))
    found = interleaved(turns, rounds)
    for peer in peers.values():
        peer.close()
    if "peak" in parts:
        peaks(name, model, lengths, found)
    if "decode" in parts:
        for policy in POLICIES:
            target = "target ≥ 8" if isinstance(policy, FixSizeL2) and policy.position == "cache" else ""
            faster(name, "decode", found, f"{policy} decoded", policy, target)
    for budget in peers:
        target = PEER_TARGETS[name] if budget == 1024 else ""
        faster(name, "peer", found, f"attention-sinks {budget}", StreamingLLM(4, budget - 4), target)
    if "dynamic" in parts:
        faster(name, "dynamic", found, "DynamicCache", Full(), "", context=DYNAMIC_CONTEXT)


def peaks(name: str, model: PreTrainedModel, lengths: tuple[int, ...], found: dict[str, np.ndarray]) -> None:
    """The peak, and each policy's share of it at each length."""
    gflops = float(np.median([found[f"peak beside {policy}"] for policy in POLICIES])) / 1e9
    print(f"  {name} peak: {gflops:.1f} GFLOP/s in the linear products alone", flush=True)
    results.append({"part": "peak of products", "model": name, "peak_gflops": gflops})
    for policy in POLICIES:
        absolute = getattr(policy, "position", "") == "absolute"
        target = ("target ≥ 0.75" if absolute else "") if isinstance(policy, FixSizeL2) else "target ≥ 0.80"
        for length in lengths:
            seconds, label = found[f"{policy} @{length}"], f"{name} {policy} @{length} FLOP/s"
            rates = {label: flops(model, policy, length) / length / seconds, "peak": found[f"peak beside {policy}"]}
            pace = {"tokens_per_s": float(np.median(1 / seconds)), "gflops": float(np.median(rates[label])) / 1e9}
            print(f"  {pace['tokens_per_s']:,.0f} tokens/s, {pace['gflops']:.1f} GFLOP/s", end="")
            ratio(rates, label, "peak", target, part="peak", model=name, policy=str(policy), tokens=length, **pace)


def faster(
    name: str, part: str, found: dict[str, np.ndarray], slow: str, policy: Policy, target: str, **about: object
) -> None:
    """How many times faster replay is than something that goes token by token."""
    fast = f"{policy} replayed"
    about |= {"part": part, "model": name, "policy": str(policy)}
    pace = {label: float(np.median(1 / found[label])) for label in (fast, slow)}
    about |= {"replay_tokens_per_s": pace[fast], "slow_tokens_per_s": pace[slow]}
    print(f"  {name}: {pace[fast]:,.0f} against {pace[slow]:,.1f} tokens/s", end="")
    ratio(found, slow, fast, target, **about)


def grid(rounds: int) -> None:
    """The whole grid of sweeps/quick.py, at the shape of 70m and on random tokens."""
    sys.path.insert(0, str(ROOT / "sweeps"))
    from quick import GRID

    model, _ = load_model("shape:pythia-70m")
    KVStreamCache(model, Full())
    turns: list[Turn] = []
    for policy in GRID.policies:
        turns += [replaying(model, policy, (GRID_TOKENS,), False) for _ in range(GRID.documents)]
        turns += [decoding(f"{policy} at {c}", PolicyContender, model, policy, c) for c in GRID_CONTEXTS]
    found = interleaved(turns, rounds)
    # A step's time grows with the keys it sees, up to the budget; between the contexts measured, in a straight line.
    contexts = np.arange(GRID_TOKENS)
    total = {"grid token by token": np.zeros(rounds), "grid replayed": np.zeros(rounds)}
    for policy in GRID.policies:
        total["grid replayed"] += GRID_TOKENS * found[f"{policy} @{GRID_TOKENS}"].reshape(rounds, -1).sum(1)
        measured = np.stack([found[f"{policy} at {context}"] for context in GRID_CONTEXTS], axis=1)
        steps = [np.interp(contexts, GRID_CONTEXTS, row).sum() for row in measured]
        total["grid token by token"] += GRID.documents * np.array(steps)
    medians = {f"{label.split(' ', 1)[1].replace(' ', '_')}_s": float(np.median(s)) for label, s in total.items()}
    about = {"policies": len(GRID.policies), "documents": GRID.documents, "tokens": GRID_TOKENS, "model": "70m"}
    print(f"  {about}, seconds {medians}; token by token is estimated from steps at {GRID_CONTEXTS} tokens")
    ratio(total, "grid token by token", "grid replayed", "target ≥ 20", part="grid", **about, **medians)


def memory(rounds: int) -> None:
    """Peak of a long text, and how the peak grows when the text is ten times as long."""
    policy = StreamingLLM(4, 1020)
    runs = {
        f"{name}, {tokens:,} tokens": (name, tokens)
        for name, tokens in (("70m", 8192), ("small", 20_000), ("small", 200_000))
    }

    def peak(label: str) -> dict[str, float]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            above, whole = fresh.submit(peak_of_replay, *runs[label], policy).result()
        return {label: above, f"{label}, process": whole}

    found = interleaved([partial(peak, label) for label in runs], rounds)
    for label, (name, tokens) in runs.items():
        target, middle = "target ≤ 350" if name == "70m" else "", float(np.median(found[label]))
        print(f"  {label}, {policy}: {middle / 1e6:.1f} MB above the weights   {target}", flush=True)
        entry = {"part": "memory", "model": name, "policy": str(policy), "tokens": tokens, "peak_bytes": middle}
        results.append(entry | {"target": target})
    # Of the whole process: it takes malloc some 60,000 tokens to have room for whatever order things come and go in.
    long, short = (f"small, {tokens} tokens, process" for tokens in ("200,000", "20,000"))
    ratio(found, long, short, "target ≤ 1.02", part="growth", policy=str(policy))


def peak_of_replay(name: str, tokens: int, policy: Policy) -> tuple[float, float]:
    """Peak bytes of replaying so many tokens, above the weights and of the whole process, which should be fresh."""
    if name == "small":
        config = GPTNeoXConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512,
                               vocab_size=1024)  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    else:
        model, _ = load_model(f"shape:pythia-{name}")

    def work(length: int) -> None:
        pieces = (tokens_of(model, 1000) for _ in range(0, length, 1000))  # an endless text is never in memory
        for _ in replay_chunks(model, pieces, policy):
            pass

    work(4000)  # the libraries' code is in memory afterwards, of which it is no part
    before = psutil.Process().memory_info().rss
    above = peak_bytes("cpu", lambda: work(tokens))
    return float(above), float(before + above)


# What is written.


def machine(before: noise.Before) -> dict[str, object]:
    """The machine, and what else it did since `before`; processes that this one started and saw end are its own."""
    known = environment()
    after = noise.after(before)
    others = after["others"]
    if isinstance(others, float):
        others = max(0.0, others - sum(os.times()[2:4]) / (time.monotonic() - before.seconds))
    kept = {name: known[name] for name in ("cpu", "cores", "torch", "transformers", "platform", "commit")}
    return kept | {"threads": torch.get_num_threads(), "steal": after["steal"], "others": others}


def command(options: argparse.Namespace, defaults: argparse.Namespace) -> str:
    """The command that measures the same again."""
    given = {name: getattr(options, name) for name in ("only", "models", "lengths", "rounds")}
    flags = [
        f" --{name} {','.join(map(str, value)) if name == 'lengths' else value}"
        for name, value in given.items()
        if value != getattr(defaults, name)
    ]
    return f"python tests/benchmarks/replay.py{''.join(flags)}" if flags else "make bench-replay"


def rewrite(readme: Path, report: dict) -> None:
    """Replace what the README says between its markers."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"--readme: {str(readme)!r} must hold one {BEGIN} and after it one {END}; add these two lines")
    block = "\n".join([BEGIN, *block_of(report), END])
    readme.write_text(text.split(BEGIN)[0] + block + text.split(END)[1], encoding="utf-8")
    print(f"wrote {readme}, between its replay markers")


def block_of(report: dict) -> list[str]:
    """The README's lines."""
    found, where = report["results"], report["machine"]
    lines = share_table(found)
    lines += speedup_table([entry for entry in found if entry.get("part") in ("decode", "peer", "dynamic")])
    lines += sentences(found)
    noisy = []
    if (where["steal"] or 0) > noise.STEAL_LIMIT:
        noisy.append(f"{100 * where['steal']:.1f} % of processor time was stolen")
    if (where["others"] or 0) > noise.OTHERS_LIMIT:
        noisy.append(f"other processes used {where['others']:.1f} cores")
    about = (
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, torch {where['torch']}, float32; "
        "Pythia’s shapes with random weights, random tokens; medians and 95 % intervals over rounds."
    )
    source = (
        f"`{report['command']}`, then `python tests/benchmarks/replay.py --from {report['file']} --readme README.md`"
    )
    quiet = f" Not a quiet machine: {' and '.join(noisy)}." if noisy else ""
    return [*lines, "", f"{about}{quiet} From {source}."]


def share_table(found: list[dict]) -> list[str]:
    """Tokens per second and the share of the peak, at each model's longest length."""
    entries = [entry for entry in found if entry.get("part") == "peak"]
    if not entries:
        return []
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    longest = {model: max(e["tokens"] for e in entries if e["model"] == model) for model in models}
    peaks = {e["model"]: e["peak_gflops"] for e in found if e.get("part") == "peak of products"}
    head = [f"{model}, {longest[model]:,} tokens | of {peaks[model]:,.0f} GFLOP/s" for model in models]
    lines = [f"| Replay under | {' | '.join(head)} |", "|---|" + "---:|---:|" * len(models)]
    for policy in dict.fromkeys(entry["policy"] for entry in entries):
        cells = []
        for model in models:
            [e] = [e for e in entries if (e["model"], e["policy"], e["tokens"]) == (model, policy, longest[model])]
            share = f"{100 * e['ratio']:.0f} % [{100 * e['low']:.0f}, {100 * e['high']:.0f}]"
            cells += [f"{e['tokens_per_s']:,.0f} tokens/s", share]
        lines.append(f"| `{policy}` | {' | '.join(cells)} |")
    return lines


def speedup_table(entries: list[dict]) -> list[str]:
    """How many times faster than token by token."""
    if not entries:
        return []
    names = {
        "decode": "`decode`, {policy}",
        "peer": "attention-sinks 0.4.0, {policy}",
        "dynamic": "DynamicCache at {context:,} tokens, {policy}",
    }
    rows: dict[str, dict[str, str]] = {}
    for e in entries:
        row = names[e["part"]].format(policy=f"`{e['policy']}`", context=e.get("context", 0))
        rows.setdefault(row, {})[e["model"]] = f"{e['ratio']:.1f} × [{e['low']:.1f}, {e['high']:.1f}]"
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    lines = ["", f"| Replay, times faster than | {' | '.join(models)} |", "|---|" + "---:|" * len(models)]
    return lines + [f"| {row} | {' | '.join(cells.get(m, '–') for m in models)} |" for row, cells in rows.items()]


def sentences(found: list[dict]) -> list[str]:
    """The grid and the memory."""
    lines = []
    for e in found:
        if e.get("part") == "grid":
            lines.append(
                f"The grid of `sweeps/quick.py` ({e['policies']} policies, {e['documents']} documents) on "
                f"{e['tokens']:,} tokens at the shape of {e['model']}: {e['replayed_s']:.0f} s, {e['ratio']:.1f} × "
                f"[{e['low']:.1f}, {e['high']:.1f}] faster than token by token, which is estimated at "
                f"{e['token_by_token_s']:.0f} s from steps at a few contexts."
            )
        if e.get("part") == "memory" and e["model"] != "small":
            lines.append(
                f"Peak memory above the weights, {e['model']}, `{e['policy']}`, {e['tokens']:,} tokens: "
                f"{e['peak_bytes'] / 1e6:.0f} MB."
            )
        if e.get("part") == "workers" and e["above"] == "the better":
            efficiency = f"{e['ratio']:.2f} × [{e['low']:.2f}, {e['high']:.2f}]"
            lines.append(f"All cores together run at {efficiency} the rate of one alone times their number.")
        if e.get("part") == "driver":
            lines.append(
                f"A sweep’s own process takes {e['ms_per_cell']:.0f} ms per cell, and finds {e['cells']:,} finished "
                f"cells in {e['resume_s']:.1f} s."
            )
        if e.get("part") == "growth":
            growth = f"{e['ratio']:.3f} × [{e['low']:.3f}, {e['high']:.3f}]"
            lines.append(f"A process with a small model peaks at 200,000 tokens at {growth} what it does at 20,000.")
    return ["", " ".join(lines)] if lines else []


def lengths_of(text: str) -> tuple[int, ...]:
    """Parse a comma list of lengths."""
    lengths = tuple(sorted({int(word) for word in text.split(",")}))
    if any(length % CHUNK_SIZE for length in lengths) or lengths[-1] < 3 * CHUNK_SIZE:
        raise argparse.ArgumentTypeError(f"give multiples of {CHUNK_SIZE}, the longest at least {3 * CHUNK_SIZE}")
    return lengths


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", default=",".join(PARTS), help=f"comma list of {', '.join(PARTS)}")
    flags.add_argument("--models", default=",".join(LENGTHS), help=f"comma list of {', '.join(LENGTHS)}")
    flags.add_argument("--lengths", type=lengths_of, help="comma list, multiples of 512; longer for small models")
    flags.add_argument("--rounds", type=int, help="of turns; three by default, fewer for 410m")
    flags.add_argument("--out", type=Path, default=Path("benchmarks/replay.json"))
    flags.add_argument("--from", dest="source", type=Path, metavar="FILE", help="measure nothing, take what FILE holds")
    flags.add_argument("--readme", type=Path, metavar="FILE", help=f"also rewrite FILE between {BEGIN} and {END}")
    return flags


def measured(options: argparse.Namespace, flags: argparse.ArgumentParser) -> dict:
    """Run the parts asked for."""
    parts, models = options.only.split(","), options.models.split(",")
    for name, given, known in (("only", parts, PARTS), ("models", models, tuple(LENGTHS))):
        if unknown := set(given) - set(known):
            flags.error(f"--{name}: unknown {sorted(unknown)}; choose among {', '.join(known)}")
    before = noise.before()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    rounds = options.rounds or max(ROUNDS.values())
    alone = {"memory": lambda: memory(rounds), "workers": lambda: workers(rounds), "driver": driver,
             "grid": lambda: grid(rounds)}  # fmt: skip

    def run(part: str) -> None:
        if part in parts:
            print(part, flush=True)
            alone[part]()

    for part in ("memory", "workers", "driver"):
        run(part)
    if set(parts) - set(alone):
        warm_up()
        for name in models:
            print(name, flush=True)
            shape(name, parts, options.lengths or LENGTHS[name], options.rounds or ROUNDS[name])
    run("grid")
    asked = command(options, flags.parse_args([]))
    return {"command": asked, "file": options.out.as_posix(), "machine": machine(before), "results": results}


def warm_up() -> None:
    """Compile and load what the policies need, at the smallest shape."""
    model, _ = load_model("shape:pythia-70m")
    for policy in POLICIES:
        for _ in replay_chunks(model, tokens_of(model, 3 * CHUNK_SIZE + 1), policy):
            pass


def main() -> None:
    """Measure or read, write the numbers down, and put them into the README if asked to."""
    flags = parser()
    options = flags.parse_args()
    if options.source:
        report = json.loads(options.source.read_text())
    else:
        report = measured(options, flags)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1))
        print(f"wrote {options.out}")
    if options.readme:
        rewrite(options.readme, report)


if __name__ == "__main__":
    main()
