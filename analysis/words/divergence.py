"""What perplexity hides, in words: of each budget's closest policy, how far its predictions are from full's."""

from typing import Any

from analysis.words.wording import between, bracketed, caveat, change, fixed, listed, nats, percent

Row = dict[str, Any]


def sentences(rows: list[Row], several: bool) -> list[str]:
    """One for each setting and budget, of the policy with the least KL there."""
    found = []
    for setting, budget in dict.fromkeys((row["setting"], row["budget"]) for row in rows if row["budget"]):
        mine = [row for row in rows if (row["setting"], row["budget"]) == (setting, budget)]
        best = min(mine, key=lambda row: float(row["kl_nats"]))
        closest = "has the least KL from the full cache, with" if len(mine) > 1 else "is at"
        tail = min(mine, key=lambda row: float(row["kl_p999_nats"]))
        least = f"; the shortest tail has {tail['policy']}, {fixed(2)(tail['kl_p999_nats'])} nats"
        beyond = least if tail is not best else ""
        tied = [row["policy"] for row in mine if row.get("tied_with_least")]
        ties = f" Not to be told from it: {listed(tied)}." if tied else ""
        where = f"{setting}, " if several else ""
        kl = bracketed(nats(best["kl_nats"]), between(best["kl_nats_low"], best["kl_nats_high"], nats))
        other = 100 - best["same_top_percent"]
        found.append(
            f"{where}{budget:,} tokens: {best['policy']}{caveat(best['skip_layers'])} {closest} "
            f"a mean KL of {kl} nats ({change(best['ppl_change_percent'])} perplexity). Its most likely next "
            f"token is another one at {percent(other)} of the tokens, and one token in a thousand is more than "
            f"{fixed(2)(best['kl_p999_nats'])} nats away{beyond}.{ties}"
        )
    return found
