"""What a sweep found, for its page in `docs/results`: sentences, of which the first is the answer, and the table.

Every number is one of the rows'. Which of two is better is said only where an interval tells.
"""

import math
from typing import Any

from analysis.words.wording import (
    between,
    bracketed,
    capital,
    caveat,
    change,
    counted,
    fixed,
    listed,
    percent,
    ppl,
    whole,
)

Row = dict[str, Any]
Frames = dict[str, list[Row]]
PLAIN = "streaming_llm"  # sinks and the newest tokens: what any choice of older tokens must beat


def lost(row: Row) -> str:
    """A change of perplexity with its interval."""
    ends = between(row["ppl_change_low_percent"], row["ppl_change_high_percent"], change)
    return bracketed(change(row["ppl_change_percent"]), ends)


def by(rows: list[Row], *names: str) -> dict[Any, list[Row]]:
    """Rows by the value of a field, or the values of several, in order of first appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[names[0]] if len(names) == 1 else tuple(row[name] for name in names), []).append(row)
    return found


def code(text: str) -> str:
    """A label as code."""
    return f"`{text}`"


def budgets(frames: Frames) -> list[str]:
    """Where sinks and the newest tokens are measurably beaten, and who is closest at each budget."""
    sizes = by(frames["equal_budget"], "budget")
    told = ["; ".join(against_plain(budget, rows) for budget, rows in sizes.items()) + "."]
    for budget, rows in sizes.items():
        best, worst = rows[0], rows[-1]
        own = next(filter(plain, rows), best)
        tied = [code(row["policy"]) for row in rows if row["tied_with_best"]]
        beside = f", {code(own['policy'])} is at {lost(own)}" if own is not best else ""
        ties = f" Not to be told from the best: {listed(tied)}." if tied else ""
        told.append(
            f"With {whole(budget)} of {whole(best['length'])} tokens {code(best['policy'])} is closest, at "
            f"{lost(best)} perplexity{beside}; the furthest is {code(worst['policy'])} at {lost(worst)}.{ties}"
        )
    return [capital(line) for line in told]


def against_plain(budget: int, rows: list[Row]) -> str:
    """Whether anything is measurably closer to full at a budget than sinks and the newest tokens."""
    best = rows[0]
    own = next(filter(plain, rows), None)
    if own and near(own):
        return (
            f"with {whole(budget)} cached tokens nothing is measurably closer to the full cache in perplexity than "
            "attention sinks and the newest tokens"
        )
    closer = "measurably closer" if own and own["tied_with_best"] is not None else "closest"
    against = f" against {change(own['ppl_change_percent'])} with {code(own['policy'])}" if own else ""
    found = f"{change(best['ppl_change_percent'])} perplexity{against}"
    return f"with {whole(budget)} {code(best['policy'])} is {closer}, at {found}"


def plain(row: Row) -> bool:
    """Whether a row is of sinks and the newest tokens alone."""
    return str(row["policy"]).startswith(f"{PLAIN}(") and not row.get("skip_layers")


def near(row: Row) -> bool:
    """Whether a row is the best of its budget, or cannot be told from it."""
    return bool(row["best"] or row["tied_with_best"])


def sinks(frames: Frames) -> list[str]:
    """What each number of sinks costs at one budget, and from which on more cannot be told from the best."""
    ties = {row["policy"]: near(row) for row in frames["equal_budget"]}
    told = []
    for budget, rows in by(frames["sinks"], "budget").items():
        steps = listed(f"{lost(row)} with {row['start_size'] or 'none'}" for row in rows)
        best = min(rows, key=lambda row: float(row["ppl_change_percent"]))
        known = [row["start_size"] for row in rows if ties.get(row["policy"])]
        few = min(known, default=best["start_size"])
        if best["spread"] != "interval":
            said = f"{counted(best['start_size'], 'sink')} lost least, over too few documents to tell"
        elif few < best["start_size"]:
            said = f"more than {counted(few, 'sink')} gain nothing measurable"
        else:
            said = f"{counted(few, 'sink')} lost least, measurably less than fewer"
        told.append(f"With {whole(budget)} cached tokens {said}: perplexity against the full cache is {steps}.")
    return told


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


def positions(frames: Frames) -> list[str]:
    """What each way of numbering keys costs the same policy."""
    told = []
    bases = by(frames["position_modes"], "base")
    for base, rows in sorted(bases.items(), key=lambda one: min(float(row["ppl_change_percent"]) for row in one[1])):
        ways = listed(f"{lost(row)} with “{row['variant']}”{caveat(row['skip_layers'])}" for row in rows)
        told.append(f"{code(base)} is at {ways} against the full cache.")
    return told


def length(frames: Frames) -> list[str]:
    """Whether sinks and the newest tokens lose more as the text grows, from the first length at which they evict."""
    beyond = [row for row in frames["length"] if row["length"] > row["budget"]]
    spans = [(rows[0], rows[-1]) for rows in by([row for row in beyond if plain(row)], "budget").values() if rows[1:]]
    more = [first for first, last in spans if ends(first)[1] < ends(last)[0]]
    if not spans:
        return []
    told = [
        f"At {len(more)} of {counted(len(spans), 'budget')} what {code(PLAIN)} loses grows measurably with the text: "
        "its interval at the longest length lies above that at the first at which tokens leave."
    ]
    for first, last in spans:
        budget, early, late = (whole(number) for number in (first["budget"], first["length"], last["length"]))
        told.append(
            f"With {budget} cached tokens it is at {lost(first)} after {early} tokens and at {lost(last)} after {late}."
        )
    return told


def stream(frames: Frames) -> list[str]:
    """What the first and the last part of a long text cost: loss, and the memory beyond the model."""
    told = []
    runs = [rows for rows in by(frames["parts"], "policy", "document").values() if rows[1:]]
    for rows in sorted(runs, key=lambda rows: float(rows[-1]["nll_nats"])):
        first, last = rows[0], rows[-1]
        told.append(
            f"Over {whole(last['tokens'])} tokens, {whole(last['tokens'] / last['trained_context'])} times the trained "
            f"context, {code(last['policy'])} loses {level(first)} nats a token in the first {whole(first['until'])} "
            f"tokens and {level(last)} in the last {whole(last['until'] - last['since'])}{held(rows)}."
        )
    return told


def held(rows: list[Row]) -> str:
    """How much memory the parts of a text took beyond the model, where that was measured."""
    peaks = [row["peak_mb"] for row in rows if row["peak_mb"] is not None]
    if not peaks:
        return ""
    low, high = whole(min(peaks)), whole(max(peaks))
    return f", with {low if low == high else f'{low} to {high}'} MB beyond the model in each of {len(peaks)} parts"


def level(row: Row) -> str:
    """A loss per token, with the least and the most over the bins of its part."""
    return bracketed(*(fixed(2)(row["nll_nats"]), between(row["nll_nats_low"], row["nll_nats_high"], fixed(2))))


def ends(row: Row) -> tuple[float, float]:
    """The interval of a change of perplexity; of nothing known all numbers."""
    low, high = row["ppl_change_low_percent"], row["ppl_change_high_percent"]
    return (-math.inf, math.inf) if low is None or high is None else (low, high)


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


def seed(frames: Frames) -> list[str]:
    """How far apart the seed's way of measuring and the papers' are, and how many of its numbers come out again."""
    pairs = []
    for base, rows in by(frames["position_modes"], "base").items():
        meant = next((row for row in rows if row["variant"] == "cache"), None)
        measured = next((row for row in rows if row["skip_layers"]), None)
        if meant and measured:
            pairs.append((base, measured, meant))
    told = []
    if pairs:
        base, measured, meant = widest = max(pairs, key=apart)
        more = max(one["kv_percent"] / other["kv_percent"] for _, one, other in pairs)
        told.append(
            "Measured as the seed did, with each key at its place in the text and layers that never evict, policies "
            f"are at most {fixed(1)(apart(widest))} points of perplexity from what the papers mean ({code(base)}: "
            f"{lost(measured)} and {lost(meant)} against the full cache), with up to {fixed(1)(more)} × the memory."
        )
    rows = [row for row in frames["published"] if row["source"].startswith("seed")]
    verdicts = by(rows, "verdict")
    told.append(
        f"Of the seed’s {len(rows)} numbers {len(verdicts.get('reproduced', []))} are reproduced, "
        f"{len(verdicts.get('differs', []))} differ and {len(verdicts.get('not comparable', []))} cannot be compared."
    )
    for base, measured, meant in pairs:
        ways = ((measured, "as the seed measured"), (meant, "as the papers mean it"))
        both = (f"{lost(row)} with {percent(row['kv_percent'])} of full’s KV memory {way}" for row, way in ways)
        told.append(f"- {code(base)}: {'; '.join(both)}.")
    return told


def claims(frames: Frames) -> list[str]:
    """Which of the seed's three claims hold here: on TTFT, on throughput, on who loses least at one budget."""
    timed, equal = frames["published_latency"], frames["equal_budget"]
    first, further = ([row for row in timed if row["metric"].startswith(name)] for name in ("TTFT", "throughput"))
    methods = [row for row in equal if row["budget"] == equal[0]["budget"]] if equal else []
    mine = next(filter(plain, methods), None)
    if not (first and further and mine):
        return []
    falls = [all(row["high"] is not None and row["high"] < 1 for row in rows) for rows in (first, further)]
    least = near(mine)
    true = sum((*falls, least))
    held = f"{true or 'None'} of the seed’s three claims hold{'s' if true == 1 else ''}"
    ttft, throughput = ("falls" if fell else "does not measurably fall" for fell in falls)
    place = "loses least" if mine["best"] else "cannot be told from what loses least" if least else "is beaten"
    return [
        f"{held} here: TTFT {ttft} with {code(PLAIN)}, throughput {throughput}, and at one budget of "
        f"{whole(mine['budget'])} tokens {code(mine['policy'])} {place}."
    ]


def apart(pair: tuple[str, Row, Row]) -> float:
    """How many points of perplexity two ways of measuring a policy are apart."""
    return float(abs(pair[1]["ppl_change_percent"] - pair[2]["ppl_change_percent"]))


def levels(frames: Frames) -> str:
    """The full cache's own perplexity, without which no change can be judged."""
    full = [row for row in frames["perplexity"] if row["policy_name"] == "full" and row["longest"]]
    return listed(f"{ppl(row['ppl_corpus'])} ({row['setting']}, {whole(row['length'])} tokens)" for row in full)
