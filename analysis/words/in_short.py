"""The README's sentences on what was found: sinks, choosing among older tokens, recall. Each of one sweep's rows."""

from analysis.words.findings import Frames, Row, by, code, lost, near, plain
from analysis.words.wording import change, listed, whole


def in_short(frames: dict[str, Frames]) -> str:
    """The sentences, from the frames of each sweep that is kept."""
    told = (
        without_sinks(frames["sinks"]) if "sinks" in frames else "",
        choosing(frames["budgets"], frames.get("length", {})) if "budgets" in frames else "",
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
        f"perplexity, one of the first four and the newest {whole(kept['budget'] - 4)} {lost(kept)}."
    )


def choosing(frames: Frames, longer: Frames) -> str:
    """At which budgets choosing among older tokens is measurably better than keeping the newest, if both were run.

    longer: of the sweep over lengths, which may say otherwise at the end of a longer text.
    """
    equal = frames["equal_budget"]
    sizes = {budget: (next(filter(plain, rows), None), rows) for budget, rows in by(equal, "budget").items()}
    found = {budget: (own, rows[0]) for budget, (own, rows) in sizes.items() if own and rows[1:]}
    if not found:
        return ""
    none = [whole(budget) for budget, (own, _) in found.items() if near(own)]
    some = [better(budget, *pair) for budget, pair in found.items() if not near(pair[0])]
    others = len({row["series"] for row in equal}) - 1
    nothing = f"none is measurably better with {listed(none)} tokens" if none else ""
    told = (nothing, listed(some), *(at_the_end(longer.get("length", []), budget) for budget in found))
    of = f"Of {others} other ways to choose what is kept of {whole(equal[0]['length'])} tokens"
    return f"{of} {'; '.join(filter(None, told))}."


def better(budget: int, own: Row, best: Row) -> str:
    """Who is closer to full than sinks and the newest tokens at a budget, and how much."""
    who, ours, theirs = code(best["policy"].partition("(")[0]), best["ppl_change_percent"], own["ppl_change_percent"]
    return f"with {whole(budget)} {who} is at {change(ours)} against {change(theirs)}"


def at_the_end(rows: list[Row], budget: int) -> str:
    """Who is closest to full at the end of longer texts with that budget."""
    last = [row for row in rows if row["budget"] == budget and row["length"] == max(one["length"] for one in rows)]
    if not last:
        return ""
    best = min(last, key=lambda row: float(row["stretch_change_percent"]))
    where = f"between {whole(best['since'])} and {whole(best['length'])} tokens"
    return f"{where} {code(best['policy'].partition('(')[0])} is closest with {whole(budget)}"


def forgotten(frames: Frames) -> str:
    """What policies recall beyond the smallest budget, where full recalls anything, in a sentence."""
    budget = min(row["budget"] for row in frames["recall"])
    far = [row for row in frames["recall"] if row["budget"] == budget < row["distance"] and row["full_recalls"]]
    right = {policy: sum(row["recalled"] for row in rows) for policy, rows in by(far, "policy").items()}
    asked = {policy: sum(row["answers"] for row in rows) for policy, rows in by(far, "policy").items()}
    full, answers = right.pop("full", 0), asked.pop("full", 0)
    if not right:
        return ""
    return (
        f"Asked for a fact further back than their {whole(budget)} tokens, {len(right)} policies together are "
        f"right {sum(right.values())} of {whole(sum(asked.values()))} times, the full cache {full} of {answers}."
    )
