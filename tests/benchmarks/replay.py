"""How fast is replay? Beside the machine's own matrix products, beside token-by-token decoding, and in which memory.

    make bench-replay                                           all of it
    python tests/benchmarks/replay.py --only peak --models 70m --lengths 2048       some of it
    python tests/benchmarks/replay.py --from benchmarks/replay.json --readme docs/benchmarks.md    only its table

    peak     FLOP/s of replay as a share of the peak: of the model's own linear products, timed alone in the faster of
             their two orientations. Counted are those products and attention to the keys a query really sees.
    decode   times faster than `kvstream.decode` under the same policy
    peer     times faster than the package attention-sinks 0.4.0 with the same window
    dynamic  times faster than transformers' DynamicCache, a token at a time, at the same context
    memory   peak bytes above the weights, and how the process's peak grows with the length
    driver            see sweeping.py
    profile  where replay's time goes, by torch's profiler, at the shape of 70m
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
from sweeping import driver
from tables import BEGIN, END, rewrite
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.replay import replay_chunks
from kvstream.engine.scoring import score
from kvstream.inputs.model_loading import load_model
from kvstream.measure import machine_noise
from kvstream.measure.contenders import Contender, DynamicContender, PolicyContender, Protocol
from kvstream.measure.environment import environment
from kvstream.measure.peak_memory import peak_bytes
from kvstream.policies import Policy

ROOT = Path(__file__).parent.parent.parent
PARTS = ("memory", "driver", "profile", "peak", "decode", "peer", "dynamic", "grid")
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
    contender.renew()
    contender.start(tokens_of(model, context))
    contender.step()

    def turn() -> dict[str, float]:
        contender.rewind()
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
    turns.append(lambda: {"peak": peak_of(model)})
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
    work = GRID.documents * sum(flops(model, policy, GRID_TOKENS) for policy in GRID.policies)
    total["grid at the peak"] = work / found["peak"]
    ratio(total, "grid token by token", "grid at the peak", part="grid limit")


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


KINDS = {
    "linear products": ("aten::mm", "aten::addmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::logaddexp"),
    "softmax over the vocabulary": ("aten::exp_", "aten::amax", "aten::sum", "aten::gather"),
    "GELU": ("aten::gelu",),
    "copies": ("aten::copy_", "aten::cat", "aten::_index_put_impl_"),
}


def profile() -> None:
    """Shares of replay's processor time, by kind of operation."""
    model, _ = load_model("shape:pythia-70m")
    for policy in (StreamingLLM(4, 1020), FixSizeL2(512, 0.7, "keep_low", position="absolute")):
        ids = tokens_of(model, 4097)
        for _ in replay_chunks(model, ids, policy):
            pass
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
            for _ in replay_chunks(model, ids, policy):
                pass
        spent = {event.key: event.self_cpu_time_total for event in watched.key_averages()}
        whole = sum(spent.values())
        shares = {kind: sum(spent.get(name, 0) for name in names) / whole for kind, names in KINDS.items()}
        shares["the rest"] = 1 - sum(shares.values())
        told = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
        print(f"  {policy}, 4,096 tokens: {told}", flush=True)
        results.append({"part": "profile", "policy": str(policy), "told": told})


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


def machine(before: machine_noise.Before) -> dict[str, object]:
    """The machine, and what else it did since `before`; processes that this one started and saw end are its own."""
    known = environment()
    after = machine_noise.after(before)
    others = after["others"]
    if isinstance(others, float):
        others = max(0.0, others - sum(os.times()[2:4]) / (time.monotonic() - before.seconds))
    kept = {name: known[name] for name in ("cpu", "cores", "torch", "transformers", "platform", "commit")}
    return kept | {"threads": torch.get_num_threads(), "steal": after["steal"], "others": others}


def command(options: argparse.Namespace, defaults: argparse.Namespace) -> str:
    """The command that measures the same again, into the same file."""
    given = {name: getattr(options, name) for name in ("only", "models", "lengths", "rounds", "out")}
    flags = [
        f" --{name} {','.join(map(str, value)) if name == 'lengths' else value}"
        for name, value in given.items()
        if value != getattr(defaults, name)
    ]
    return f"python tests/benchmarks/replay.py{''.join(flags)}" if flags else "make bench-replay"


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
    flags.add_argument("--from", dest="sources", type=Path, nargs="+", metavar="FILE",
                       help="measure nothing, take what FILE holds; of several the last that has a part")  # fmt: skip
    flags.add_argument("--readme", type=Path, metavar="FILE", help=f"also rewrite FILE between {BEGIN} and {END}")
    return flags


def measured(options: argparse.Namespace, flags: argparse.ArgumentParser) -> dict:
    """Run the parts asked for."""
    parts, models = options.only.split(","), options.models.split(",")
    for name, given, known in (("only", parts, PARTS), ("models", models, tuple(LENGTHS))):
        if unknown := set(given) - set(known):
            flags.error(f"--{name}: unknown {sorted(unknown)}; choose among {', '.join(known)}")
    before = machine_noise.before()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    rounds = options.rounds or max(ROUNDS.values())
    alone = {"memory": lambda: memory(rounds), "driver": driver,
             "profile": profile, "grid": lambda: grid(rounds)}  # fmt: skip

    def run(part: str) -> None:
        if part in parts:
            print(part, flush=True)
            alone[part]()

    for part in ("memory", "driver", "profile"):
        run(part)
    if set(parts) - set(alone):
        warm_up()
        for name in models:
            print(name, flush=True)
            shape(name, parts, options.lengths or LENGTHS[name], options.rounds or ROUNDS[name])
    run("grid")
    asked = command(options, flags.parse_args([]))
    return {"command": asked, "file": options.out.as_posix(), "machine": machine(before), "results": results}


def merged(reports: list[dict]) -> dict:
    """One report of several; where two have a part, the later one's counts."""
    result = reports[0]
    for later in reports[1:]:
        fresh = {entry.get("part") for entry in later["results"]} - {None}
        kept = [entry for entry in result["results"] if entry.get("part") not in fresh]
        words = {"command": " and ".join((result["command"], later["command"])),
                 "file": " ".join((result["file"], later["file"]))}  # fmt: skip
        result = result | words | {"results": kept + later["results"]}
    return result


def warm_up() -> None:
    """Compile and load what the policies need, at the smallest shape."""
    model, _ = load_model("shape:pythia-70m")
    for policy in POLICIES:
        for _ in replay_chunks(model, tokens_of(model, 3 * CHUNK_SIZE + 1), policy):
            pass


def main() -> None:
    """Measure or read, write the numbers down, and put them into a page if asked to."""
    flags = parser()
    options = flags.parse_args()
    if options.sources:
        report = merged([json.loads(source.read_text()) for source in options.sources])
    else:
        report = measured(options, flags)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1))
        print(f"wrote {options.out}")
    if options.readme:
        rewrite(options.readme, report)


if __name__ == "__main__":
    main()
