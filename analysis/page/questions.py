"""The questions of `docs/results`: who answers each, with which chart and table, its limits, and what is open.

To add one: a sweep in `sweeps/`, an entry in `QUESTIONS`, its sentences and table in `words/findings.py`; then
`python analysis/results.py --keep …`. No measured number is typed here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from analysis.charts.figures import CHARTS
from analysis.words import (
    budget_findings,
    divergence,
    finding_tables,
    findings,
    latency_findings,
    protection,
    recall,
    seed_findings,
)
from analysis.words.finding_tables import Table
from analysis.words.findings import Frames


@dataclass(frozen=True)
class Question:
    """A question: its title, whose records answer it, the sentences and the table that do, and its chart.

    limits: what the answer does not cover. unknown: what was asked and is not answered. notes: what else to know.
    also: tables its sentences need beside those of its chart. brackets: what stands in them, if no interval does.
    several: whether the page may be of several models.
    """

    title: str
    sweep: str
    answer: Callable[[Frames], list[str]]
    table: Callable[[Frames], Table]
    chart: str
    limits: str
    unknown: str
    notes: str = ""
    also: tuple[str, ...] = ()
    brackets: str = ""
    several: bool = False

    @property
    def tables(self) -> set[str]:
        """The report's tables that its page is made from."""
        return {CHARTS[self.chart].query, *self.also}


ONE = "One small model (135 million weights) and one kind of text. "
QUESTIONS = {
    "budgets": Question(
        "Which policy at which budget?",
        "budgets",
        budget_findings.budgets,
        finding_tables.budgets_table,
        "equal_budget",
        ONE + "Ties are judged at 95 %, without a correction for comparing many. Each policy has one setting: `h2o`, "
        "`keydiff`, `sink_l2` and `sink_random` always keep the newest half of their budget, `fix_size_l2` 70 %, "
        "`snapkv` an eighth, `tova` and `l2_compress` none. Averages hold the tokens before the cache is full, where "
        "nothing is lost: they make large budgets look better, for all policies alike. `snapkv` and `l2_compress` let "
        "many tokens go at once, and hold about three quarters of their budget on average. `sink_random` "
        "was drawn once.",
        "Whether a larger model, or one trained on longer texts, ranks the policies alike; whether scorers gain with "
        "more of the budget for the newest, as they lose less so at 128 tokens ([protection](protection.md)); whether "
        "it is the budget that matters, or the text’s length beside it.",
        "Tokens are scored one by one as decoding would see them; policies that choose by attention get no look ahead. "
        "Whether one is measurably closer is told by the differences document by document, so intervals may overlap. "
        "The table is sorted by each policy’s best column. Lots fall on a token again at every step, so that old ones "
        "have mostly gone: `sink_random` is a window with a soft end. What is said of a text’s earlier and later "
        "tokens is of the same run’s stretches from one length to the next; [length](length.md) has a table for one "
        "budget. What policies cost in time: [latency](latency.md).",
        also=("length", "divergence"),
    ),
    "sinks": Question(
        "How many attention sinks does a budget need?",
        "sinks",
        findings.sinks,
        finding_tables.sinks_table,
        "sinks",
        ONE + "Sinks are the first tokens of a text, whatever they are: these texts begin without a BOS token.",
        "Why one sink suffices here and not in the paper. Models whose training gave them a sink of their own.",
        "Every sink takes the place of a recent token, so the comparison is at equal memory. StreamingLLM keeps four, "
        "as its authors found one or two not enough for the models they tried "
        "([paper](https://arxiv.org/abs/2309.17453)).",
        also=("equal_budget",),
    ),
    "positions": Question(
        "How should kept keys be numbered once tokens are evicted?",
        "positions",
        findings.positions,
        finding_tables.positions_table,
        "position_modes",
        ONE + "The texts are shorter than the trained context.",
        "Longer texts within the trained context, and frozen positions beyond it, where “cache” and “absolute” are far "
        "apart: [stream](stream.md). Why layers that never evict, and take more memory, gain nothing.",
        "A plain window of the newest tokens is the same under “cache” and “absolute”, as RoPE sees distances alone.",
    ),
    "protection": Question(
        "Does it matter how tokens are scored, once the ends are protected?",
        "protection",
        protection.page,
        finding_tables.protection_table,
        "protection",
        ONE + "One budget, one length. “l2” is `sink_l2`, “random” `sink_random`.",
        "Other shares at larger budgets, of which [budgets](budgets.md) has one. Why scorers fail on single books, and "
        "l2 without protected newest tokens. An interval against all but the sinks newest.",
        "At each step “random” throws out one unprotected token, drawn by lot: old ones have mostly gone, new ones "
        "mostly stay, a window with a soft end. Sinks save it, as it would throw the first tokens out; scorers keep "
        "those by themselves, and are saved by protected newest tokens. Without these h2o, which adds attention up, "
        "throws out what has just come. “better”, “worse”: measurably, than random at the same protection. "
        "[arXiv:2605.18053](https://arxiv.org/abs/2605.18053) asks the same, and finds the choice of scorer secondary "
        "once the ends are protected.",
    ),
    "length": Question(
        "Does a policy lose more as the text grows longer?",
        "length",
        findings.length,
        finding_tables.length_table,
        "length",
        ONE + "One budget; a stretch that begins at the budget has lost little yet. The ten books are those of 8,192 "
        "tokens or more, those of [budgets](budgets.md), not of the pages on shorter texts. Texts may be "
        "harder to tell at their ends than at their beginnings, for full as for all. `tova` differs from that page in "
        "its last digit; the two were measured with different versions of the code.",
        "Texts beyond the trained context, for which the full cache is no yardstick any more: [stream](stream.md).",
    ),
    "stream": Question(
        "Does a stream of a quarter of a million tokens stay as good as its beginning, in as much memory?",
        "stream",
        findings.stream,
        finding_tables.stream_table,
        "stream",
        ONE
        + "One text, whose passages are not equally hard: only differences on the same tokens are the policies’ doing. "
        "The full cache was not run, as beyond its trained context it is no yardstick.",
        "Whether the end is as good as the beginning: that needs the same passages at both. What a model would lose "
        "that had been trained on texts as long.",
        "With positions in the text the sinks are soon further away than any distance that the model was trained on; "
        "on much shorter texts the two cannot be told apart ([positions](positions.md)). Memory is the most that a "
        "part took beyond what the process held before it: cache, activations and scores of its tokens.",
        also=("parts",),
        brackets="the least and the most over stretches of 4,096 tokens",
    ),
    "recall": Question(
        "Which policy still recalls a fact once it has left the window?",
        "recall",
        lambda frames: findings.with_code(recall.sentences(frames["recall"], several=False)),
        finding_tables.recall_table,
        "recall",
        "One small model, which does not recall all near facts itself, and one kind of fact, between verses of the "
        "King James Bible; another is on [strings](strings.md). Answers are taken not to depend on one another; their "
        "intervals are in the chart. Facts exactly one budget back are in no sentence, as some windows just hold them.",
        "Models that recall everything with the full cache; questions asked before the text, which tell a policy "
        "what to keep. Distances between half of the budget and all of it; beyond 2,048, where this model’s full cache "
        "recalls less and less. Why some policies have more near answers right than full, if that is no chance: "
        "perhaps as other facts, which they have forgotten, confuse it.",
        "A fact reads “The green lion is number 48213.”, and so many tokens later the text asks for it again. When a "
        "policy has to choose, the question has not come. Needle tasks ask the same of models with long contexts "
        "([RULER](https://arxiv.org/abs/2404.06654)). What recalls seems to be the newest tokens "
        "that a policy has, whatever its score: `h2o`, `keydiff` and `sink_l2` always keep half of their budget so; "
        "`snapkv` an eighth, and all that came since it last let go; `tova` none, and recalls little within its budget "
        "either.",
    ),
    "strings": Question(
        "Which policy still repeats a random string once it has left the window?",
        "strings",
        lambda frames: findings.with_code(recall.sentences(frames["recall"], several=False)),
        finding_tables.recall_table,
        "recall",
        "One small model, which repeats about half of the near strings itself, and one budget. Answers are taken not "
        "to depend on one another; their intervals are in the chart. Strings exactly one budget back are in no "
        "sentence, as some windows just hold them.",
        "Models that repeat every string with the full cache; distances at which this one repeats next to none. Why "
        "some policies have more near strings right than full, if that is no chance: perhaps as half of the text is "
        "other strings, which they have forgotten, and full confuses with the one that is asked for.",
        "Twelve tokens drawn from the text stand in it, none twice; so many tokens later the first eight come again, "
        "and the answer is the other four. No sentence need be understood, as on [recall](recall.md), so that it is "
        "asked of small models, too; the texts are twice as long.",
    ),
    "tail": Question(
        "What does perplexity hide: how far are the worst tokens from the full cache?",
        "budgets",
        lambda frames: findings.with_code(divergence.page(frames)),
        finding_tables.tail_table,
        "tail",
        ONE + "KL is over the whole vocabulary, of each token, teacher-forced; quantiles are of all documents’ tokens.",
        "How often a generated text takes another turn: one other token changes all that follow.",
        "Means and quantiles hold the tokens before the cache is full, at which nothing differs: a quarter of all with "
        "2,048. One token in a thousand is some 80 tokens, and has no interval.",
        also=("divergence", "equal_budget"),
    ),
    "seed": Question(
        "What did the seed report measure, and what comes out as the papers mean it?",
        "seed",
        seed_findings.seed,
        finding_tables.seed_table,
        "position_modes",
        "On the demo model and the King James Bible, so that none of the seed’s numbers, which are of Pythia-70M on "
        "PG-19, can be compared. On a connected machine `python sweeps/seed.py` measures those.",
        "The seed’s numbers themselves; its latency is in [claims](claims.md).",
        "The seed is the unpublished report that kvstream grew out of. Sentences and chart are of all 3,000 tokens "
        "together, the table, as the seed’s own, of means over documents and mostly of 2,024 tokens. Its model has "
        "six layers, of which it let two never evict; this one has thirty. The papers mean positions counted within "
        "the cache, and all layers to evict. Why sinks are worth far more here is open: model and text are others.",
        also=("published",),
    ),
    "latency": Question(
        "What does a bounded cache gain in time and memory?",
        "latency",
        latency_findings.latency,
        latency_findings.latency_table,
        "tpot",
        "Random weights of the published shapes, as a step takes as long whatever the numbers are. A ratio holds for "
        "its machine. Policies that hold a whole context are left out there: they are full.",
        "GPUs; the contexts, up to 32,768, and batches, up to 32, that the table lacks.",
        "All contenders take turns, step by step, in one process: [how](../latency.md). `full` has its memory from the "
        "start; `DynamicCache`, of transformers, copies all it holds at each step. Peak is the most that a request "
        "took beyond the weights, here of the whole process: what its allocator keeps of freed memory is in it, some "
        "tens of megabytes more or less; kvstream counts tensors alone by now. “No measurable difference”: no more "
        "than full differs from itself, `full (again)`, whatever the interval says. A ratio is the median over rounds "
        "of ratios within a round, tokens per second are of all rounds together.",
        also=("latency",),
        several=True,
    ),
    "claims": Question(
        "What is left of the seed report’s three claims?",
        "seed",
        seed_findings.claims,
        finding_tables.claims_table,
        "equal_budget",
        ONE + "Latency is of this model on this CPU; the seed’s was of Pythia-70M, on hardware that it does not name.",
        "The same on Pythia-70M: `python sweeps/seed.py` on a connected machine.",
        "The seed is the unpublished report that kvstream grew out of. How long prompts beyond a budget take, and what "
        "other models gain or do not, at short contexts and with `h2o`: [latency](latency.md).",
        also=("published_latency",),
        brackets="95 % interval over rounds, of TTFT over prefills",
    ),
}
