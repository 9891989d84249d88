"""What the sections of the page and the columns of its tables are called, and how to read them. Data, no logic."""

from dataclasses import dataclass

from analysis.words import wording

QUALITY = "python sweeps/full.py --models {models} --text {text}"
LATENCY = "python sweeps/latency.py --models {models}"


@dataclass(frozen=True)
class Section:
    """A figure's heading, how to read it, what it needs, and the command that would fill it."""

    heading: str
    caption: str
    needs: str
    command: str = QUALITY


@dataclass(frozen=True)
class Column:
    """A table column: field of the query, heading, what it means, how its values are printed, its interval's fields."""

    field: str
    heading: str
    about: str
    show: wording.Format
    spread: tuple[str, str] | None = None


SECTIONS: dict[str, Section] = {
    **{
        f"tradeoff_{axis}": Section(
            f"Perplexity against {what}",
            "Full is at 1 and 0 %. The step line joins what nothing measured beats on both axes, as far as can be "
            "told. Numbers are budgets in tokens; whiskers are 95 % intervals, or the range over few documents.",
            needs,
            LATENCY if axis != "kv" else QUALITY,
        )
        for axis, what, needs in (
            ("tpot", "time per token", "quality and latency of the same model, device and dtype"),
            ("kv", "KV memory", "the full cache and another policy on the same document"),
            ("ttft", "time to the first token", "quality and latency of the same model, device and dtype"),
        )
    },
    "multiples": Section(
        "What a larger budget buys",
        "Dashed: the full cache. Points at one budget stand side by side so that whiskers can be told apart.",
        "a policy with a budget",
    ),
    "overview": Section("Zoom", "", "the full cache and another policy on the same document"),
    "cross_method": Section(
        "Methods at equal budget",
        "Further right is worse. “tie”: cannot be told from the best at that budget (known from ten documents on).",
        "two methods at one budget",
    ),
    "position": Section(
        "Loss along the text",
        "Where a policy starts to lose, and whether it keeps losing. Lower is better.",
        "the full cache and another policy on the same document",
    ),
    "excess": Section(
        "Loss over the full cache’s, on the same tokens",
        "Zero is the full cache. Hard and easy passages cancel out; what remains is the policy’s doing.",
        "the full cache and another policy on the same document",
    ),
    "start_size": Section(
        "How many attention sinks",
        "Sinks, the first tokens of the text, share one budget with the recent ones; zero sinks is recent_only. "
        "Lower is better.",
        "several start sizes at one budget",
        QUALITY + " --start-sizes 0,1,2,4,8",
    ),
    "length": Section(
        "Perplexity by length of text",
        "The first L tokens of the same runs. Lower is better.",
        "several lengths",
        QUALITY + " --lengths 512,1024,2048,4096",
    ),
    "position_modes": Section(
        "Position modes",
        "RoPE tells a model how far apart two tokens are; once tokens leave the cache, their numbers must be chosen. "
        "“cache” numbers kept keys by their place in the cache, as StreamingLLM is published. "
        "“absolute” keeps their place in the text, which is what the seed report (see Published) measured. "
        "“frozen” never renumbers, the bug of naive implementations.",
        "one policy in several position modes",
        QUALITY + " --positions cache,absolute,frozen",
    ),
    "tpot": Section(
        "Time per output token (TPOT)",
        "Lower is better; a flat line is a pace that does not depend on the context.",
        "a latency cell",
        LATENCY,
    ),
    "ttft": Section(
        "Time to the first token (TTFT)",
        "Lower is better. The whole prompt, eviction included. Up to the budget, all do the same work.",
        "a latency cell",
        LATENCY,
    ),
    "eviction": Section(
        "What eviction adds to a step",
        "Against as many cached keys of which none leaves, paired by round. Zero is free.",
        "a bounded policy in a latency cell",
        LATENCY,
    ),
    "throughput": Section(
        "Throughput against batch size",
        "Higher is better. Output tokens per second over the whole batch, after the first token.",
        "several batch sizes",
        LATENCY + " --batches 1,8",
    ),
    "kv_memory": Section(
        "KV memory, computed",
        "Keys and values over all layers that a policy keeps of a prompt. DynamicCache keeps what full keeps.",
        "a latency cell",
        LATENCY,
    ),
    "peak_memory": Section(
        "Peak memory, measured",
        "The most that serving a request took beyond the weights: cache, activations, temporaries.",
        "a latency cell",
        LATENCY,
    ),
}
COLUMNS: tuple[Column, ...] = (
    Column("policy", "Policy", "", wording.plain),
    Column("variant", "Positions", "How cached keys are numbered, and layers that never evict", wording.plain),
    Column("budget", "Budget", "Tokens kept", wording.whole),
    Column("kv_mb", "KV, MB", "KV bytes over all layers after the whole run, 10⁶ bytes", wording.megabytes),
    Column("kv_percent", "KV, % of full", "The same as a share of the full cache's", wording.percent),
    Column("ppl_corpus", "PPL corpus", "exp(sum of losses ÷ number of tokens), all documents together", wording.ppl),
    Column(
        "ppl_change_percent",
        "vs full, %",
        "Relative change of corpus PPL against full on the same documents",
        wording.change,
        ("ppl_change_low_percent", "ppl_change_high_percent"),
    ),
    Column("ppl_mean", "PPL mean of docs", "Mean over documents of exp(a document's mean loss)", wording.ppl),
    Column(
        "ppl_mean_change_percent",
        "vs full, %",
        "Relative change of the mean-of-documents PPL",
        wording.change,
        ("ppl_mean_change_low_percent", "ppl_mean_change_high_percent"),
    ),
    Column("accuracy_percent", "Accuracy", "Share of tokens that the model ranks first", wording.percent),
    Column("accuracy_change_percent", "vs full, %", "Relative change of accuracy against full", wording.change),
    Column(
        "accuracy_change_points",
        "vs full, points",
        "Absolute change of accuracy, percentage points",
        wording.points,
        ("accuracy_change_low_points", "accuracy_change_high_points"),
    ),
    Column("documents", "Docs", "Documents; of these, shared with full", wording.plain),
    Column(
        "invalid", "Invalid", "Tokens whose loss was NaN or infinite: counted, kept out of every mean", wording.whole
    ),
)
LATENCY_COLUMNS: tuple[Column, ...] = (
    Column("contender", "Policy", "What served the request", wording.plain),
    Column("context", "Context", "Tokens of the prompt", wording.whole),
    Column("batch", "Batch", "Texts at once", wording.whole),
    Column(
        "ttft_ms",
        "First token, ms",
        "TTFT, time to the first token: the whole prompt, median over prefills",
        wording.fixed(1),
    ),
    Column(
        "ttft_ratio",
        "÷ full",
        "Time to the first token as a multiple of full's in the same round, median over rounds",
        wording.fixed(3),
        ("ttft_ratio_low", "ttft_ratio_high"),
    ),
    Column(
        "tpot_ms",
        "Time per token, ms",
        "TPOT, time per output token: mean of a round's steps, median of rounds",
        wording.fixed(2),
    ),
    Column(
        "tpot_ratio",
        "÷ full",
        "Time per token as a multiple of full's in the same round, median over rounds",
        wording.fixed(3),
        ("tpot_ratio_low", "tpot_ratio_high"),
    ),
    Column("itl_ms", "ITL p50, ms", "Single gaps between output tokens, all rounds pooled: median", wording.fixed(2)),
    Column("itl_p90_ms", "p90", "Nine of ten gaps are shorter; from 64 gaps on", wording.fixed(2)),
    Column("itl_p99_ms", "p99", "99 of 100 gaps are shorter; from 662 gaps on", wording.fixed(2)),
    Column("throughput", "Tokens/s", "Output tokens per second over the batch, after the first", wording.fixed(1)),
    Column(
        "eviction_percent",
        "Eviction",
        "What eviction adds to a step, against as many cached keys of which none leaves",
        wording.change,
        ("eviction_low_percent", "eviction_high_percent"),
    ),
    Column(
        "kv_mb", "KV, MB", "Keys and values that the policy keeps of the prompt, over all layers", wording.megabytes
    ),
    Column("allocated_mb", "Allocated", "Bytes of the cache's tensors, 10⁶", wording.megabytes),
    Column("peak_mb", "Peak, MB", "Peak bytes of serving a request, beyond the weights, 10⁶", wording.megabytes),
)
