"""The columns of the two tables of all results: what they are called and mean, how they are printed. Data, no logic."""

from dataclasses import dataclass

from analysis.words import wording


@dataclass(frozen=True)
class Column:
    """A table column: field of the query, heading, what it means, how its values are printed, its interval's fields."""

    field: str
    heading: str
    about: str
    show: wording.Format
    spread: tuple[str, str] | None = None


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
