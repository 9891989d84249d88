"""Up to which place in a text the policy that wins at the largest budget is ahead of sinks and the newest tokens."""

from typing import Any

from analysis.words.wording import PLAIN, evicting, listed, whole

Row = dict[str, Any]


def how_long(equal: list[Row], stretches: list[Row]) -> str:
    """Where it is ahead at first and behind later, at every budget: up to which token, in a sentence; else nothing."""
    name, ends = leads(equal, stretches)
    if not ends:
        return ""
    until = listed([f"{whole(end)} with {whole(budget)}" for budget, end in ends.items()])
    return (
        f"`{name}` is closer to full than `{PLAIN}` on a text’s earlier tokens, up to token {until}, and further on "
        "later ones, if the texts have any; not every such difference is measurable."
    )


def leads(equal: list[Row], stretches: list[Row]) -> tuple[str, dict[int, int]]:
    """The policy, and by budget the last token up to which it is ahead; none if it is not ahead first, then behind.

    equal: rows of `equal_budget`, the best of a budget first. stretches: rows of `length`.
    """
    largest = max(row["budget"] for row in equal)
    name = next(row["policy"] for row in equal if row["budget"] == largest).partition("(")[0]
    ends: dict[int, int] = {}
    behind = False
    for budget in dict.fromkeys(row["budget"] for row in equal):
        mine = [row for row in stretches if row["budget"] == budget and row["length"] > evicting(row)]
        theirs, ours = (
            {row["length"]: row["stretch_change_percent"] for row in mine if row["policy"].startswith(f"{one}(")}
            for one in (name, PLAIN)
        )
        lengths = sorted(theirs.keys() & ours.keys())
        ahead = [length for length in lengths if theirs[length] < ours[length]]
        if not ahead or ahead != lengths[: len(ahead)]:
            return name, {}
        ends[budget] = ahead[-1]
        behind |= len(ahead) < len(lengths)
    return name, ends if behind and name != PLAIN else {}
