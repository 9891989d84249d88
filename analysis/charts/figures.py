"""Every chart of the report: from which query, in which section, how to read it. docs/adding-a-chart.md adds one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from analysis.charts import along_the_text, divergence, speed
from analysis.charts.attention import MOST, attention
from analysis.charts.by_budget import by_budget
from analysis.charts.equal_budget import equal_budget
from analysis.charts.marks import Figure, Row
from analysis.charts.position_modes import position_modes
from analysis.charts.protection import protection
from analysis.charts.recall import recall, repeats
from analysis.charts.sinks import sinks
from analysis.charts.theme import looks
from analysis.charts.tradeoff import tradeoff
from analysis.words.standing import Kind, Standing

QUALITY = "python sweeps/full.py --models {models} --text {text}"
EQUAL_MEMORY = "; policies that take as much memory, within 2\u00a0%, stand side by side"
LATENCY = "python sweeps/latency.py --models {models}"
TRADEOFFS: tuple[tuple[str, str, str, str, str, Kind], ...] = (
    ("kv", "KV memory", EQUAL_MEMORY, "the full cache and another policy on the same document", QUALITY, "quality"),
    ("tpot", "time per token", "", "quality and latency of the same model, device and dtype", LATENCY, "both"),
)


@dataclass(frozen=True)
class Chart:
    """A chart: its section, drawing and heading, how to read it, what it needs, what command fills it, its query.

    file: a control on the page is no file. whiskers: what they are, where they are none over documents or rounds; None
    where there never are any. kind: whose text, machine and whiskers the line beneath a file tells.
    """

    section: str
    draw: Callable[[list[Row]], Figure]
    heading: str
    caption: str = ""
    needs: str = "the full cache and another policy on the same document"
    command: str = QUALITY
    query: str = ""  # that of its own name, if not given
    file: bool = True
    whiskers: str | None = ""
    kind: Kind = "quality"

    def beneath(self, standing: Standing, figure: Figure) -> str:
        """The line beneath a file's title: what was measured, and what whiskers are, if it, or this figure, has any."""
        about, whiskers = standing[self.kind]
        none = self.whiskers is None or not figure.whiskers
        return about if none else f"{about} · whiskers: {self.whiskers or whiskers}"


CHARTS: dict[str, Chart] = {
    **{
        f"tradeoff_{axis}": Chart(
            "tradeoff",
            tradeoff(axis),
            f"Quality against {what}",
            f"Numbers are budgets in tokens{beside}. A point is on the step line unless another lies lower, whiskers "
            "aside, and is not measurably dearer. Whiskers are 95 % intervals, or the range over few documents.",
            needs,
            command,
            "tradeoff",
            kind=kind,
        )
        for axis, what, beside, needs, command, kind in TRADEOFFS
    },
    "equal_budget": Chart(
        "equal",
        equal_budget,
        "Methods at equal budget",
        "Further right is worse. “tie”: cannot be told from the best at that budget (known from ten documents on).",
        "two methods at one budget",
    ),
    "by_budget": Chart(
        "equal",
        by_budget,
        "What a larger budget buys",
        "Dashed: the full cache. Points at one budget stand side by side so that whiskers can be told apart.",
        "a policy with a budget",
    ),
    "tail": Chart(
        "divergence",
        divergence.tail,
        "The tail: how many tokens are how far from the full cache",
        "Further down and left is better. Perplexity hides the right end: the tokens whose prediction changed most. "
        "Lines end where fewer than ten tokens are left.",
        "the full cache and another policy in one sweep, compared (--metrics kl)",
        whiskers=None,
    ),
    "far": Chart(
        "divergence",
        along_the_text.far,
        "Where in the text predictions differ from the full cache’s",
        "The share of tokens whose prediction is more than a tenth of a nat from the full cache’s.",
        "the full cache and another policy in one sweep, compared (--metrics kl)",
        whiskers=None,
    ),
    "attention": Chart(
        "divergence",
        attention,
        "Where eviction hurts: attention to tokens that are gone",
        "Which share of the full cache’s attention goes to tokens that the policy no longer holds, by layer and head. "
        f"Darker is more, on one scale for all panels of a model; behind the name the mean. Of more than {MOST} "
        "policies those of the smallest budgets are drawn; all stand in tables/attention.csv.",
        "records with attention loss",
        QUALITY + " --attention-loss",
        whiskers=None,
    ),
    "sinks": Chart(
        "sinks",
        sinks,
        "How many attention sinks",
        "Sinks, the first tokens of the text, share one budget with the recent ones. Lower is better.",
        "three start sizes at one budget",
        QUALITY + " --start-sizes 0,1,2,4,8",
    ),
    "position_modes": Chart(
        "sinks",
        position_modes,
        "Position modes",
        "RoPE tells a model how far apart two tokens are; once tokens leave the cache, their numbers must be chosen. "
        "“cache” numbers kept keys by their place in the cache, as StreamingLLM is published. "
        "“absolute” keeps their place in the text, which is what the seed report measured. “frozen” leaves each the "
        "number it had in the cache when it came: once the cache is full all new ones have the same, a bug of naive "
        "implementations.",
        "one policy in several position modes",
        QUALITY + " --positions cache,absolute,frozen",
    ),
    "protection": Chart(
        "protection",
        protection,
        "Protection against scoring",
        "The budget holds the sinks, the newest tokens (further right: more of them), and of the rest those that the "
        "scorer prefers. “random” prefers none: what a scorer is worth is what it does better. Dashed: no scorer, all "
        "but the sinks newest.",
        "two scorers at two shares of newest tokens",
        "python sweeps/protection.py --models {models} --text {text}",
    ),
    "recall": Chart(
        "recall",
        recall,
        "Recall by distance",
        "A fact stands in the text, and that many tokens later it is asked for. An answer is right if each of its "
        "tokens is the most likely one. Beyond the budget the newest tokens alone cannot hold the fact. Whiskers are "
        "95 % intervals (Wilson), for answers that do not depend on one another.",
        "texts with facts to recall",
        "python sweeps/recall.py --models {models}",
        whiskers="95 % interval over answers",
    ),
    "repeats": Chart(
        "recall",
        repeats,
        "Where the text repeats itself",
        "Loss over the full cache’s on those tokens alone that end five which stood in the text before, by how far "
        "back: so many tokens, up to twice as many. Zero is the full cache.",
        "a text that repeats itself under a policy that has to evict",
        whiskers=None,
    ),
    "overview": Chart("zoom", along_the_text.overview, "Zoom", query="along_the_text", file=False),
    "excess": Chart(
        "text",
        along_the_text.excess,
        "What eviction costs, token by token",
        "Loss over the full cache’s on the same tokens: zero is the full cache. Hard and easy passages cancel out; "
        "what remains is the policy’s doing.",
        query="along_the_text",
        whiskers=None,
    ),
    "length": Chart(
        "text",
        along_the_text.length,
        "What a longer text costs",
        "Perplexity against full on the tokens between one length and the next alone. A line that rises loses more the "
        "longer the text, one that is level does not.",
        "several lengths",
        QUALITY + " --lengths 512,1024,2048,4096",
    ),
    "stream": Chart(
        "text",
        along_the_text.stream,
        "Loss along a stream",
        "The loss itself, as no full cache was run on this text. Hard and easy passages are so for all policies.",
        "a text without the full cache",
        "python sweeps/stream.py --models {models}",
        whiskers=None,
    ),
    "peak_memory": Chart(
        "speed",
        speed.peak_memory,
        "Peak memory, measured",
        "The most that serving a request took beyond the weights: cache, activations, temporaries. Where the context "
        "is short a bounded policy can peak above full.",
        "a latency cell",
        LATENCY,
        "context",
        whiskers=None,
        kind="speed",
    ),
    "tpot": Chart(
        "speed",
        speed.tpot,
        "Time per token",
        "Lower is better. Whiskers, at a single context alone, are 95 % intervals over rounds.",
        "a latency cell",
        LATENCY,
        "context",
        kind="speed",
    ),
    "eviction": Chart(
        "speed",
        speed.eviction,
        "What eviction adds to a step",
        "Against as many cached keys of which none leaves, paired by round. Zero is free.",
        "a bounded policy in a latency cell",
        LATENCY,
        kind="speed",
    ),
    "throughput": Chart(
        "speed",
        speed.throughput,
        "Throughput against batch size",
        "Higher is better. Output tokens per second over the whole batch, after the first token.",
        "several batch sizes",
        LATENCY + " --batches 1,8",
        whiskers=None,
        kind="speed",
    ),
}
CHARTS = {name: one if one.query else replace(one, query=name) for name, one in CHARTS.items()}
QUERIES = tuple(dict.fromkeys(chart.query for chart in CHARTS.values()))


def drawn(frames: dict[str, list[Row]]) -> dict[str, Figure | None]:
    """Every chart from the rows of its query; None where there are none."""
    series = {row["series"] for query in QUERIES for row in frames[query] if "series" in row}
    among = len(frames["overview"][0]["settings"]) > 1
    with looks(series):
        return {
            name: replace(one.draw(frames[one.query]), among=among) if frames[one.query] else None
            for name, one in CHARTS.items()
        }
