"""What perplexity hides, in words: of each budget's closest policy, how far its predictions are from full's."""

from typing import Any

from analysis.numbers.order import by
from analysis.words.findings import Frames, code, near, plain
from analysis.words.wording import capital, caveat, change, fixed, listed, nats, percent, whole, with_ends

Row = dict[str, Any]


def page(frames: Frames) -> list[str]:
    """How sinks and the newest tokens fare at all budgets, if they are nowhere measurably further; then each budget."""
    sizes = by(frames["divergence"], "budget")
    own = {budget: next(filter(plain, rows), None) for budget, rows in sizes.items() if budget}
    least = {budget: min(rows, key=mean) for budget, rows in sizes.items()}
    leads = [row for budget, row in own.items() if row and (row is least[budget] or row["tied_with_least"])]
    lead = []
    if leads and len(leads) == len(own):
        away = listed(f"{nats(mean(row))} with {whole(row['budget'])}" for row in leads)
        lead.append(
            "On average nothing is measurably closer to the full cache’s predictions than attention sinks and the "
            f"newest tokens: in nats of KL they are at {away} cached tokens. At the worst tokens some others are: one "
            f"in a thousand is more than {listed(beyond(row, sizes) for row in leads)}. These have no interval."
        )
    return [*lead, *beside_perplexity(frames), *map(capital, sentences(frames["divergence"], several=False))]


def beyond(row: Row, sizes: dict[int, list[Row]]) -> str:
    """How far one token in a thousand is from full, and how many other policies of the budget have less."""
    others = [one for one in sizes[row["budget"]] if one is not row]
    less = sum(one["kl_p999_nats"] < row["kl_p999_nats"] for one in others)
    have = "has" if less <= 1 else "have"
    return (
        f"{fixed(2)(row['kl_p999_nats'])} nats away with {whole(row['budget'])} ({less or 'none'} of {len(others)} "
        f"others {have} less)"
    )


def beside_perplexity(frames: Frames) -> list[str]:
    """Whether what beats sinks and the newest tokens in perplexity is ahead of them in KL, too, budget by budget."""
    rows = {row["policy"]: row for row in frames["divergence"]}
    found = []
    for budget, ranked in by(frames["equal_budget"], "budget").items():
        own = next(filter(plain, ranked), None)
        if own is None or near(own) or not {own["policy"], ranked[0]["policy"]} <= rows.keys():
            continue
        ours, theirs = rows[own["policy"]], rows[ranked[0]["policy"]]
        ahead = "is so in KL, too" if mean(theirs) < mean(ours) else "is not in KL"
        found.append(
            f"With {whole(budget)} tokens {code(theirs['policy'])}, ahead in perplexity, {ahead}: "
            f"{nats(mean(theirs))} nats against {nats(mean(ours))} with {code(ours['policy'])}; its most likely next "
            f"token is full’s at {percent(theirs['same_top_percent'])} of the tokens against "
            f"{percent(ours['same_top_percent'])}."
        )
    return found


def sentences(rows: list[Row], several: bool) -> list[str]:
    """One for each setting and budget, of the policy with the least KL there."""
    found = []
    for (setting, budget), mine in by((row for row in rows if row["budget"]), "setting", "budget").items():
        best = min(mine, key=mean)
        closest = "has the least mean KL from the full cache," if len(mine) > 1 else "is at a mean KL of"
        tail = min(mine, key=lambda row: float(row["kl_p999_nats"]))
        least = f", the least with {tail['policy']}: {fixed(2)(tail['kl_p999_nats'])}"
        beyond = least if tail is not best else ""
        tied = [row["policy"] for row in mine if row.get("tied_with_least")]
        ties = f", not to be told from that of {listed(tied)}" if tied else ""
        where = f"{setting}, " if several else ""
        other = 100 - best["same_top_percent"]
        found.append(
            f"{where}{budget:,} tokens: {best['policy']}{caveat(best['skip_layers'])} {closest} "
            f"{with_ends(best, 'kl_nats', nats)} nats "
            f"({change(best['ppl_change_percent'])} perplexity){ties}. Its most likely next token is another than "
            f"full’s at {percent(other)} of the tokens, and one token in a thousand is more than "
            f"{fixed(2)(best['kl_p999_nats'])} nats away{beyond}."
        )
    return found


def mean(row: Row) -> float:
    """A policy's mean KL from full."""
    return float(row["kl_nats"])
