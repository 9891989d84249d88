"""The README's sentences on what was found: sinks, choosing older tokens, recall, time. Each of one sweep's rows."""

from analysis.numbers.order import by
from analysis.words.budget_findings import further
from analysis.words.findings import Frames, Row, code, lost, near, plain
from analysis.words.latency_findings import timed
from analysis.words.wording import NOT_IDLE, bracketed, change, listed, pace, whole


def in_short(frames: dict[str, Frames]) -> list[str]:
    """The sentences, from the frames of each sweep that is kept."""
    told = (
        without_sinks(frames["sinks"]) if "sinks" in frames else "",
        choosing(frames["budgets"], frames.get("length", {})) if "budgets" in frames else "",
        forgotten(frames["recall"]) if "recall" in frames else "",
        sooner(frames["latency"]) if "latency" in frames else "",
    )
    return list(filter(None, told))


def without_sinks(frames: Frames) -> str:
    """What the smallest budget costs without sinks and with StreamingLLM's four, in a sentence, if both were run."""
    rows = {row["start_size"]: row for row in frames["sinks"] if row["budget"] == frames["sinks"][0]["budget"]}
    bare, kept = rows.get(0), rows.get(4)
    if not (bare and kept):
        return ""
    return (
        f"Keeping only the newest {whole(bare['budget'])} of {whole(bare['length'])} tokens costs {lost(bare)} "
        f"perplexity; giving four of those places to the text’s first tokens {lost(kept)}."
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
    worse = [whole(budget) for budget in found if further(sizes[budget][1])]
    none = [whole(budget) for budget, (own, _) in found.items() if near(own) and whole(budget) not in worse]
    of = f" of {whole(equal[0]['length'])} tokens"
    loses = f"loses measurably with {listed(worse)}{of}" if worse else ""
    nothing = f"gains nothing measurable with {listed(none)}{'' if worse else of}" if none else ""
    kl = {row["policy"]: row["kl_nats"] for row in frames.get("divergence", [])}
    some = [better(own, best, longer.get("length", []), kl) for own, best in found.values() if not near(own)]
    told = "; ".join(filter(None, (" and ".join(filter(None, (loses, nothing))), *some)))
    return f"Choosing older tokens by a score in place of the newest, in the settings that were tried, {told}."


def better(own: Row, best: Row, longer: list[Row], kl: dict[str, float]) -> str:
    """Who is closer to full than sinks and the newest tokens at a budget, in KL too, and in a longer text too."""
    policy = best["policy"]
    told = f"with {whole(best['budget'])} {code(policy.partition('(')[0])} is at {change(best['ppl_change_percent'])} "
    told += f"against {change(own['ppl_change_percent'])} for sinks and the newest tokens"
    if {policy, own["policy"]} <= kl.keys() and kl[policy] >= kl[own["policy"]]:
        told += ", though not closer in KL"
    last = {row["policy"]: row for row in longer if row["length"] == max(one["length"] for one in longer)}
    if {policy, own["policy"]} <= last.keys():
        theirs, ours = (change(last[one]["stretch_change_percent"]) for one in (policy, own["policy"]))
        told += f", and on tokens {whole(last[policy]['since'])} to {whole(last[policy]['length'])} of longer texts "
        told += f"at {theirs} against {ours}"
    return told


def forgotten(frames: Frames) -> str:
    """What policies recall beyond the smallest budget, where full recalls anything, in a sentence."""
    budget = min(row["budget"] for row in frames["recall"])
    far = [row for row in frames["recall"] if row["budget"] == budget < row["distance"] and row["full_recalls"]]
    right = {policy: sum(row["recalled"] for row in rows) for policy, rows in by(far, "policy").items()}
    answers = sum(row["answers"] for row in far if row["policy"] == "full")
    full = right.pop("full", 0)
    if not right:
        return ""
    return (
        f"With {whole(budget)} tokens kept none of {len(right)} policies recalls more than {max(right.values())} of "
        f"{answers} facts that stand further back; the full cache recalls {full}."
    )


def sooner(frames: Frames) -> str:
    """What a step takes with the smallest budget's sinks and newest tokens, after the longest context of all models.

    Of all machines with the kind of device that the first has.
    """
    mine = [row for row in timed(frames) if plain(row) and row["smallest_batch"]]
    budget = min((row["budget"] for row in mine), default=0)
    mine = [row for row in mine if row["budget"] == budget and row["device"] == mine[0]["device"]]
    models = by(mine, "model")
    shared = set.intersection(*({row["context"] for row in rows} for rows in models.values())) if models else set()
    if not shared:
        return ""
    context = max(shared)
    found = sorted((row for row in mine if row["context"] == context), key=lambda row: float(row["tpot_ratio"]))
    span = " to ".join(dict.fromkeys(bracketed(*pace(row)) for row in (found[0], found[-1])))
    far = max(mine, key=lambda row: int(row["context"]))
    further_on = f"; after {whole(far['context'])} {bracketed(*pace(far))} ({far['model']})"
    apart = list(dict.fromkeys(filter(None, (row["setting"].partition(" · ")[2] for row in mine))))  # as by hardware
    busy = NOT_IDLE if any(row["busy"] for row in (found[0], found[-1], far)) else ""
    where = "; ".join(filter(None, (f"{listed(list(models))}, random weights", listed(apart), busy)))
    return (
        f"After {whole(context)} tokens a step with {whole(budget)} kept takes {span} the full cache’s time on "
        f"{mine[0]['device'].upper()} ({where})"
        f"{further_on if far['context'] > context else ''}."
    )
