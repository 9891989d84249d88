"""What a policy costs in quality, by each metric that the report can be asked to go by, in words. Decides nothing."""

from dataclasses import dataclass
from typing import Any

from analysis.words.wording import Format, between, change, fixed, nats, percent

Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A metric: its name, on cards and in sentences, how a cost by it is printed, and what a bound on it is called.

    unit: where `show` leaves it out. said: a cost in a sentence; within, tolerance, rule: a bound, for sentences and
    cards; axis: of the trade-off; least: what is best by it. scale: of what is printed against what a cost is in,
    which is `counted`. threshold: what is said behind a flag whose number is not in `unit`.
    """

    title: str
    named: str
    show: Format
    said: str
    within: str
    tolerance: str
    rule: str
    axis: str
    least: str
    unit: str = ""
    scale: float = 1.0
    counted: str = " %"
    threshold: str = ""

    @property
    def heading(self) -> str:
        """Its column in the cards' table."""
        return self.title if self.title.endswith("full") else f"{self.title} against full"

    def brief(self, cost: Any) -> str:
        """A cost with its unit."""
        return self.show(cost) + self.unit

    def spoken(self, cost: Any) -> str:
        """A cost in a sentence: `+1.2 % perplexity`."""
        return self.said.format(self.brief(cost))

    def bound(self, words: str, threshold: float) -> str:
        """One of its words for a bound, with the threshold in it."""
        return words.format(threshold * self.scale)


def hundredths(value: Any) -> str:
    """Hundredths of a nat, in nats."""
    return nats(None if value is None else value / 100)


METRICS = {
    "ppl": Metric(
        title="Perplexity",
        named="perplexity",
        show=change,
        said="{} perplexity",
        within="within {:g}\u00a0% of the full cache’s perplexity",
        tolerance="within {:g}\u00a0%",
        rule="perplexity within {:g}\u00a0% of full’s",
        axis="perplexity against full",
        least="least perplexity",
    ),
    "kl": Metric(
        title="KL from full",
        named="mean KL",
        show=hundredths,
        said="a mean KL of {}",
        within="within a mean KL of {:g}\u00a0nats from the full cache",
        tolerance="within {:g}\u00a0nats",
        rule="mean KL from full within {:g}\u00a0nats",
        axis="mean KL from full, nats",
        least="least KL",
        unit="\u00a0nats",
        scale=0.01,
        counted=" hundredths of a nat",
        threshold=" in hundredths of a nat",
    ),
    "top1": Metric(
        title="Another top token",
        named="the most likely token",
        show=percent,
        said="{} of tokens with another top token",
        within="at the full cache’s most likely token for all but {:g}\u00a0% of the tokens",
        tolerance="within {:g}\u00a0%",
        rule="another top token than full’s at {:g}\u00a0% of tokens at most",
        axis="tokens with another top token than full’s, %",
        least="fewest other top tokens",
    ),
}


def metric_of(row: Row) -> Metric:
    """The metric by which a row's cost is."""
    return METRICS[row["metric"]]


def cost(row: Row) -> tuple[str, str]:
    """A policy's cost, and its interval over several documents; of perplexity a narrow one earns a second digit."""
    low, high = (row["cost_low"], row["cost_high"]) if row["paired_documents"] > 1 else (None, None)
    metric = metric_of(row)
    narrow = metric.show is change and low is not None and high is not None and high - low < 0.2
    show = fixed(2, sign=True, unit="\u00a0%") if narrow else metric.show
    return show(row["cost"]) + metric.unit, between(low, high, show)


def none_measurable(row: Row) -> bool:
    """Whether the interval of a cost holds zero, so that it is neither loss nor gain; the range of a few is none."""
    low, high = row["cost_low"], row["cost_high"]
    return (
        row["spread"] == "interval"
        and low is not None
        and high is not None
        and low <= 0 <= high
        and (low, high) != (0, 0)
    )
