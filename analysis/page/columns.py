"""The columns of the two tables of all results: what they are called and mean, how they are printed. Data, no logic."""

from dataclasses import dataclass

from analysis.words.wording import Format, change, fixed, megabytes, nats, percent, plain, points, ppl, whole


@dataclass(frozen=True)
class Column:
    """A table column: field of the query, heading, what it means, how it is printed, whether with its interval."""

    field: str
    heading: str
    about: str
    show: Format
    spread: bool = False


DOCUMENTS = "Documents; of these, shared with full"
DIVERGENCE = "Mean KL(full ‖ policy) of the predictions, over the whole vocabulary"
INVALID = "Tokens whose loss, or KL from full, was NaN or infinite: counted, that number kept out of every mean"
BUDGET = "Tokens kept in each layer that evicts, where layers differ on average"
ADDED = "What eviction adds to a step, against as many cached keys of which none leaves"
OVER_FULL = "As a multiple of full's in the same round, median"
COLUMNS: tuple[Column, ...] = (
    Column("policy", "Policy", "", plain),
    Column("variant", "Positions", "How cached keys are numbered, and layers that never evict", plain),
    Column("budget", "Budget", BUDGET, whole),
    Column("kv_mb", "KV, MB", "KV bytes over all layers after the whole run, 10⁶ bytes", megabytes),
    Column("kv_percent", "KV, % of full", "The same as a share of the full cache's", percent),
    Column("ppl_corpus", "PPL corpus", "exp(sum of losses ÷ number of tokens), all documents together", ppl),
    Column("ppl_change_percent", "vs full, %", "Change of corpus PPL against full on the same documents", change, True),
    Column("ppl_mean", "PPL mean of docs", "Mean over documents of exp(a document's mean loss)", ppl),
    Column("ppl_mean_change_percent", "vs full, %", "Relative change of the mean-of-documents PPL", change, True),
    Column("accuracy_percent", "Accuracy", "Share of tokens that the model ranks first", percent),
    Column("accuracy_change_percent", "vs full, %", "Relative change of accuracy against full", change),
    Column("accuracy_change_points", "vs full, points", "Absolute change of accuracy, in points", points, True),
    Column("kl_nats", "KL, nats", DIVERGENCE, nats, True),
    Column("same_top_percent", "Same top", "Share of tokens where the most likely token is full’s", percent, True),
    Column("documents", "Docs", DOCUMENTS, plain),
    Column("invalid", "Invalid", INVALID, whole),
)
LATENCY_COLUMNS: tuple[Column, ...] = (
    Column("contender", "Policy", "What served the request", plain),
    Column("context", "Context", "Tokens of the prompt", whole),
    Column("batch", "Batch", "Texts at once", whole),
    Column("ttft_ms", "First token, ms", "From the prompt to the first token: median over prefills", fixed(1)),
    Column("ttft_ratio", "First token, × full’s", OVER_FULL, fixed(3), True),
    Column("tpot_ms", "Time per token, ms", "Mean of a round's steps, median of rounds", fixed(2)),
    Column("tpot_ratio", "Time per token, × full’s", OVER_FULL, fixed(3), True),
    Column("itl_ms", "Gap p50, ms", "Single gaps between output tokens, all rounds pooled: median", fixed(2)),
    Column("itl_p90_ms", "p90, ms", "Nine of ten gaps are shorter; from 64 gaps on", fixed(2)),
    Column("itl_p99_ms", "p99, ms", "99 of 100 gaps are shorter; from 662 gaps on", fixed(2)),
    Column("throughput", "Tokens/s", "Output tokens per second over the batch, after the first", fixed(1)),
    Column("eviction_percent", "Eviction", ADDED, change, True),
    Column("kv_mb", "KV, MB", "Keys and values that the policy keeps of the prompt, over all layers", megabytes),
    Column("allocated_mb", "Allocated, MB", "Bytes of the cache's tensors, 10⁶", megabytes),
    Column("peak_mb", "Peak, MB", "Most bytes of tensors while serving a request, beyond the weights, 10⁶", megabytes),
)
