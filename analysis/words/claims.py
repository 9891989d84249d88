"""The seed report's three claims, why they were not what they seemed, and what is measured here for the same."""

from typing import Any

from analysis.numbers.order import by
from analysis.words.wording import busy, change, times, tokens_of

Row = dict[str, Any]
NOTHING = ["Nothing of it in these records."]
CLAIMS = (
    (
        "“TTFT falls by 15 to 28 %.”",
        "Its clock stopped before compression, so TTFT could not depend on the policy: what it saw is the order of "
        "warming up. Measured here with a prompt no longer than the budget, where all do the same work.",
    ),
    (
        "“Throughput falls.”",
        "Its throughput is 1 ÷ the time per token, and fell because it made three full copies of K and V for each. "
        "Eviction need not cost that. Measured here as 1 ÷ the ratio of times per token.",
    ),
    (
        "“StreamingLLM loses least”: +2.0 % perplexity against +4.3 to +9.5 %.",
        "It compared StreamingLLM at budget 1,024 and 2,024 tokens with the others at budget 512 and 3,000 tokens; at "
        "budget 512 its own StreamingLLM is at +3.7 %. Compared here at one budget, on the same tokens.",
    ),
)


def measured(latency: list[Row], cross: list[Row]) -> list[list[str]]:
    """Lines for each of its three claims: on TTFT, on throughput, on perplexity."""
    found = (timed(latency, "TTFT ÷ full's"), timed(latency, "throughput ÷ full's"), like_for_like(cross))
    return [lines or NOTHING for lines in found]


def timed(rows: list[Row], metric: str) -> list[str]:
    """What we measure where it claimed a change of time."""
    found = []
    for row in (row for row in rows if row["metric"] == metric):
        few = "; too few rounds for an interval" if row["low"] is None else ""
        ours = f"{row['policy']}: {times(row['ours'], row['low'], row['high'])} full’s"
        where = f"on {row['setting']} at {tokens_of(row)}{busy(row)}{few}"
        found.append(f"{ours} {where}; the seed: {row['published']:.2f}\u00a0×.")
    return found


def like_for_like(rows: list[Row]) -> list[str]:
    """The methods at the smallest budget of each setting that compares several, best first, ties named."""
    found = []
    for setting, whole in by(rows, "setting").items():
        size = min(row["budget"] for row in whole)
        mine = [row for row in whole if row["budget"] == size]
        ties = {True: " (tie with the best)"}
        ranked = [
            f"{row['policy']} {change(row['ppl_change_percent'])}{ties.get(row['tied_with_best'], '')}" for row in mine
        ]
        found.append(f"{setting}, budget {size:,}: {', '.join(ranked)}.")
    return found
