"""Whether one document decides: in how many the closest policy is closest, and who would be without one of them."""

from typing import Any

Row = dict[str, Any]
Sums = dict[str, Row]  # by document


def in_documents(documents: list[Row], ranked: list[str], own: str) -> str:
    """In how many documents the first of these policies is closer to full than `own`, or than the next if it is that.

    documents: rows of the table `documents`; counted is the greatest length that all these policies have. Nothing is
    said where one of them was run on other documents than the first.
    """
    lengths = [{row["length"] for row in documents if row["policy"] == policy} for policy in ranked]
    longest = max(set.intersection(*lengths))
    runs: dict[str, Sums] = {policy: {} for policy in ranked}
    for row in documents:
        if row["length"] == longest and row["paired"] and row["policy"] in runs:
            runs[row["policy"]][row["document"]] = row
    best, other = ranked[0], own if own != ranked[0] else ranked[1]
    names = sorted(runs[best])
    if len(names) < 2 or any(sorted(runs[policy]) != names for policy in ranked):
        return ""
    closer = sum(loss(runs[best], [name]) < loss(runs[other], [name]) for name in names)
    told = f"`{best}` is closer than `{other}` in {closer} of {len(names)} documents"
    for name in names:
        leading = closest(runs, ranked, [one for one in names if one != name])
        if leading != best:
            told += f"; without “{name}” `{leading}` would be closest"
    return f"{told}."


def closest(runs: dict[str, Sums], policies: list[str], names: list[str]) -> str:
    """Which of the policies lost least over these documents, the first of several."""
    return min(policies, key=lambda policy: loss(runs[policy], names))


def loss(sums: Sums, names: list[str]) -> float:
    """The loss per token over these documents, in nats."""
    return float(sum(sums[name]["nll_sum"] for name in names) / sum(sums[name]["n"] for name in names))
