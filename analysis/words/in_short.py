"""The README's sentences on what was found: sinks, choosing among older tokens, recall. Each of one sweep's rows."""

from analysis.words.findings import Frames, Row, by, code, lost, near, plain
from analysis.words.wording import change, listed, whole


def in_short(frames: dict[str, Frames]) -> str:
    """The sentences, from the frames of each sweep that is kept."""
    told = (
        without_sinks(frames["sinks"]) if "sinks" in frames else "",
        choosing(frames["budgets"]) if "budgets" in frames else "",
        forgotten(frames["recall"]) if "recall" in frames else "",
    )
    return " ".join(filter(None, told))


def without_sinks(frames: Frames) -> str:
    """What the smallest budget costs without sinks and with StreamingLLM's four, in a sentence, if both were run."""
    rows = {row["start_size"]: row for row in frames["sinks"] if row["budget"] == frames["sinks"][0]["budget"]}
    bare, kept = rows.get(0), rows.get(4)
    if not (bare and kept):
        return ""
    return (
        f"A cache of the newest {whole(bare['budget'])} of {whole(bare['length'])} tokens costs {lost(bare)} "
        f"perplexity, one that keeps the first four in place of as many {lost(kept)}."
    )


def choosing(frames: Frames) -> str:
    """At which budgets choosing among older tokens is measurably better than keeping the newest, if both were run."""
    sizes = {
        budget: (next(filter(plain, rows), None), rows) for budget, rows in by(frames["equal_budget"], "budget").items()
    }
    found = {budget: (own, rows[0]) for budget, (own, rows) in sizes.items() if own and rows[1:]}
    if not found:
        return ""
    none = [whole(budget) for budget, (own, _) in found.items() if near(own)]
    some = [better(budget, *pair) for budget, pair in found.items() if not near(pair[0])]
    others = len({row["series"] for row in frames["equal_budget"]}) - 1
    kept = f"Of {others} other ways to choose what is kept"
    nothing = f"none is measurably better with {listed(none)} tokens" if none else ""
    return f"{kept} {'; '.join(filter(None, (nothing, listed(some))))}."


def better(budget: int, own: Row, best: Row) -> str:
    """Who is closer to full than sinks and the newest tokens at a budget, and how much."""
    who, ours, theirs = code(best["policy"].partition("(")[0]), best["ppl_change_percent"], own["ppl_change_percent"]
    return f"with {whole(budget)} {who} is at {change(ours)} against {change(theirs)}"


def forgotten(frames: Frames) -> str:
    """What the best policy recalls beyond the smallest budget, if full recalls there, in a sentence."""
    budget = min(row["budget"] for row in frames["recall"])
    far = [row for row in frames["recall"] if row["budget"] == budget < row["distance"] and row["full_recalls"]]
    right = {policy: sum(row["recalled"] for row in rows) for policy, rows in by(far, "policy").items()}
    if set(right) <= {"full"}:
        return ""
    answers = sum(row["answers"] for row in far if row["policy"] == "full")
    best = max((policy for policy in right if policy != "full"), key=lambda policy: right[policy])
    return (
        f"Asked for a fact further back than its {whole(budget)} tokens, the best of {len(right) - 1} policies, "
        f"{code(best)}, is right {right[best]} of {answers} times, the full cache {right['full']} times."
    )
