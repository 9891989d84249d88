"""What a bounded cache gains in time and memory, for its page in `docs/results`: sentences and the table."""

from analysis.numbers.order import by
from analysis.words.findings import Frames, Row, code
from analysis.words.wording import (
    NONE,
    PLAIN,
    bracketed,
    change,
    counted,
    fixed,
    listed,
    megabytes,
    pace,
    paced,
    percent,
    times,
    tokens_of,
    told,
    whole,
    with_ends,
)

FEW = 2  # cells are named one by one


def latency(frames: Frames) -> list[str]:
    """Of each model the smallest budget's sinks and newest tokens, at the longest context and the shortest."""
    said = []
    noise = prompts_again(frames)
    for setting, rows in by(timed(frames), "setting").items():
        mine = [row for row in rows if row["policy_name"] == PLAIN and row["batch"] == rows[0]["batch"]]
        if not mine:
            continue
        budget = min(row["budget"] for row in mine)
        mine = sorted((row for row in mine if row["budget"] == budget), key=place)
        near, far = mine[0], mine[-1]
        full = next(row for row in rows if row["policy"] == "full" and place(row) == place(far))
        memory, peak = (percent(100 * far[name] / full[name]) for name in ("kv_mb", "peak_mb"))
        said.append(
            f"{setting}: at {whole(far['context'])} tokens of context {code(far['policy'])} takes {paced(far)} "
            f"the full cache’s time per token with {memory} of its KV memory, {peak} of its peak memory, and "
            f"{prompt(far, noise)} its time to the first token"
            + (f"; at {whole(near['context'])} tokens {paced(near)} the time per token." if mine[1:] else ".")
        )
        said += side_by_side([row for row in rows if row["policy"] == far["policy"]])
    costs = [row for row in timed(frames) if row["eviction_percent"] is not None and row["filled"]]
    if costs:
        ranked = sorted(costs, key=lambda row: float(row["eviction_percent"]))
        lightest, worst = ranked[0], ranked[-1]
        nothing = lightest["eviction_low_percent"] is not None and lightest["eviction_low_percent"] <= 0
        said.append(
            f"Eviction itself adds {'nothing measurable' if nothing else change(lightest['eviction_percent'])} to "
            f"{added(worst)} to a step, the most with {code(worst['policy'])}."
        )
    prompts = sorted((row for row in costs if row["ttft_ratio"] is not None), key=lambda row: float(row["ttft_ratio"]))
    if prompts:
        least, most = (
            f"{times(row['ttft_ratio'])} ({code(row['policy'])}, {whole(row['context'])} tokens)"
            for row in (prompts[0], prompts[-1])
        )
        said.append(f"A prompt takes {least} to {most} the full cache’s time.")
    if noise:
        said.append(
            f"TTFT is of few prompts, without an interval: full’s second turn in the same cell is at {times(noise[0])} "
            f"to {times(noise[-1])} its first."
        )
    said += peaks([row for row in timed(frames) if row["filled"] or row["policy"] == "full"])
    busy = {(row["setting"], *place(row)): row for row in timed(frames) if row["busy"]}
    alike = [f"{what} in {cells(rows)}" for what, rows in by(list(busy.values()), "busy").items()]
    return [*said, f"Machines were busy otherwise, too: {'; '.join(alike)}."] if busy else said


def prompts_again(frames: Frames) -> list[float]:
    """What full's TTFT in its second turn is of that in its first, in all cells, the least first."""
    return sorted(row["ttft_ratio"] for row in frames["latency"] if row["role"] == "again" and row["ttft_ratio"])


def prompt(row: Row, noise: list[float]) -> str:
    """A ratio of TTFT, or that it is no further from one than full from itself in any cell, where few were timed."""
    few = row["ttft_ratio_low"] is None and bool(noise)
    same = few and min(noise[0], 1.0) <= row["ttft_ratio"] <= max(noise[-1], 1.0)
    return told(times(row["ttft_ratio"]), True) if same else paced(row, "ttft")


def cells(rows: list[Row]) -> str:
    """How many cells these are, and of few which."""
    which = listed([f"{row['setting']} at {tokens_of(row)}" for row in rows]) if len(rows) <= FEW else ""
    return counted(len(rows), "cell") + (f" ({which})" if which else "")


def added(row: Row) -> str:
    """What eviction adds to a step, with its interval."""
    return with_ends(row, "eviction_percent", change)


def peaks(rows: list[Row]) -> list[str]:
    """The least and the most that a bounded cache's request takes of full's peak."""
    full = {(row["setting"], *place(row)): row["peak_mb"] for row in rows if row["policy"] == "full"}
    of = [(100 * row["peak_mb"] / full[row["setting"], *place(row)], row) for row in rows if row["budget"]]
    if not of:
        return []
    ends = sorted(of, key=lambda one: one[0])
    least, most = (f"{percent(share)} ({code(row['policy'])}, {tokens_of(row)})" for share, row in (ends[0], ends[-1]))
    return [
        f"The most memory that a request takes beyond the weights, its prompt’s activations included, is {least} to "
        f"{most} of full’s."
    ]


def side_by_side(mine: list[Row]) -> list[str]:
    """Of one policy, how many more tokens than full it puts out with several texts at once, and with the fewest."""
    said = []
    for rows in by(sorted(mine, key=lambda row: -row["batch"]), "batch").values():
        together = max(rows, key=place)
        fewest = min((row for row in mine if row["context"] == together["context"]), key=place)
        if fewest["batch"] < together["batch"]:
            beside = "one alone" if fewest["batch"] == 1 else f"{fewest['batch']} at once"
            many = f"{together['batch']} texts at once, each after {whole(together['context'])} tokens"
            gain = f"{code(together['policy'])} puts out {put_out(together)} the full cache’s tokens per second"
            said.append(f"{together['setting']}: with {many}, {gain}; {beside}, {put_out(fewest)}.")
    return said


def put_out(row: Row) -> str:
    """Tokens per second as a multiple of full's: the other way round than times."""
    ends = [row["tpot_ratio_high"], row["tpot_ratio_low"]]
    text = times(1 / row["tpot_ratio"], *(None if end is None else 1 / end for end in ends))
    return told(text, row["tpot_verdict"] == "same")


def timed(frames: Frames) -> list[Row]:
    """The rows of policies, each context and batch of each model."""
    return [row for row in frames["latency"] if row["role"] == "policy" and row["tpot_ratio"] is not None]


def place(row: Row) -> tuple[int, int]:
    """Where it was timed."""
    return row["context"], row["batch"]


def latency_table(frames: Frames) -> tuple[list[str], list[list[str]], int]:
    """A line a model, context, batch and contender; not of policies that hold the whole context, and are full."""
    rows = [
        [
            row["setting"],
            code(row["contender"]),
            whole(row["context"]),
            whole(row["batch"]),
            *(ratio(row, phase) for phase in ("ttft", "tpot")),
            fixed(1)(row["throughput"]),
            added(row),
            megabytes(row["kv_mb"]),
            megabytes(row["peak_mb"]),
        ]
        for row in frames["latency"]
        if row["role"] in ("policy", "dynamic", "again") and (row["filled"] or row["budget"] is None)
    ]
    times_of = ["First token, × full’s", "Time per token, × full’s", "Tokens/s", "Eviction adds"]
    return ["Model", "Contender", "Context", "Batch", *times_of, "KV cache, MB", "Peak, MB"], rows, 2


def ratio(row: Row, phase: str) -> str:
    """A ratio of times with its interval; a dash where none was measured."""
    return NONE if row[f"{phase}_ratio"] is None else bracketed(*pace(row, phase))
