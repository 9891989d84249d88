"""Which policy at which budget, in sentences: where sinks and the newest tokens are beaten, and by how much."""

from typing import Any

from analysis.numbers.order import by
from analysis.words.by_document import in_documents
from analysis.words.divergence import beside_perplexity
from analysis.words.findings import Frames, code, lost, near, plain
from analysis.words.how_long import how_long
from analysis.words.wording import between, bracketed, capital, change, fixed, listed, whole

Row = dict[str, Any]


def budgets(frames: Frames) -> list[str]:
    """Where sinks and the newest tokens are measurably beaten, and who is closest at each budget."""
    sizes = by(frames["equal_budget"], "budget")
    unbeaten = [budget for budget, rows in sizes.items() if any(near(row) for row in rows if plain(row))]
    beaten = [against_plain(budget, rows) for budget, rows in sizes.items() if budget not in unbeaten]
    told = ["; ".join([*nothing_closer(unbeaten, frames["equal_budget"][0]["length"]), *beaten]) + "."]
    told += [*beside_perplexity(frames), *filter(None, [all_further(sizes)])]
    told += filter(None, [how_long(frames["equal_budget"], frames.get("length", []))])
    for budget, rows in sizes.items():
        best, worst, ranked = rows[0], rows[-1], [row["policy"] for row in rows]
        own = next(filter(plain, rows), best)
        tied = [code(row["policy"]) for row in rows if row["tied_with_best"]]
        beside = f", {code(own['policy'])} is at {lost(own)}" if own is not best else ""
        ties = f" Not to be told from the best: {listed(tied)}." if tied else ""
        told.append(
            f"With {whole(budget)} of {whole(best['length'])} tokens {code(best['policy'])} is closest, at "
            f"{lost(best)} perplexity{beside}; the furthest is {code(worst['policy'])} at {lost(worst)}.{ties}"
        )
        told += filter(None, (in_documents(frames["documents"], ranked, own["policy"]), drawn_by_lot(rows)))
    return [*map(capital, told)]


def drawn_by_lot(rows: list[Row]) -> str:
    """How many policies that choose by a score are further from full than one that draws lots, if that was run."""
    lot = next((row for row in rows if row["policy"].startswith("sink_random(")), None)
    if not (lot and (scored := choosing(rows))):
        return ""
    worse = sum(row["ppl_change_percent"] > lot["ppl_change_percent"] for row in scored)
    of = f"{worse} of the {len(scored)} policies that choose them by a score; not every difference is measurable"
    return f"{code(lot['policy'])}, which draws lots among older tokens, loses less than {of}."


def choosing(rows: list[Row]) -> list[Row]:
    """The policies that choose by a score."""
    return [row for row in rows if not plain(row) and not row["policy"].startswith(("sink_random(", "recent_only("))]


def further(rows: list[Row]) -> bool:
    """Whether all that choose by a score are measurably further from full than sinks and the newest tokens."""
    scored = choosing(rows)
    return plain(rows[0]) and bool(scored) and all(row["tied_with_best"] is False for row in scored)


def all_further(sizes: dict[int, list[Row]]) -> str:
    """At which budgets all that choose by a score are measurably further than sinks and the newest, if at any."""
    some = [whole(budget) for budget, rows in sizes.items() if further(rows)]
    scored = {row["series"] for rows in sizes.values() for row in choosing(rows)}
    return f"With {listed(some)} all {len(scored)} that choose by a score are measurably further." if some else ""


def nothing_closer(budgets: list[int], length: int) -> list[str]:
    """At which budgets nothing is measurably closer to full than sinks and the newest tokens, if at any."""
    sizes = f"with {listed([whole(budget) for budget in budgets])} of {whole(length)} tokens"
    nothing = "nothing that was tried is measurably closer to the full cache in perplexity"
    return [f"{sizes} {nothing} than attention sinks and the newest tokens"] if budgets else []


def behind(row: Row, best: Row) -> str:
    """What a policy's perplexity is above that of the best of its budget, with its interval over the same documents."""
    per_cent = fixed(2, sign=True, unit="")
    ends = between(row["behind_best_low_percent"], row["behind_best_high_percent"], per_cent)
    above = bracketed(per_cent(100 * (row["ppl_corpus"] / best["ppl_corpus"] - 1)), ends)
    return (
        f", whose perplexity is {above}\u00a0% above it (95\u00a0% interval of the paired difference)" if ends else ""
    )


def against_plain(budget: int, rows: list[Row]) -> str:
    """What is closer to full at a budget than sinks and the newest tokens."""
    best = rows[0]
    own = next(filter(plain, rows), None)
    closer = "measurably closer" if own and own["tied_with_best"] is not None else "closest"
    against = (
        f" against {change(own['ppl_change_percent'])} with {code(own['policy'])}{behind(own, best)}" if own else ""
    )
    found = f"{change(best['ppl_change_percent'])} perplexity{against}"
    return f"with {whole(budget)} {code(best['policy'])} is {closer}, at {found}"
