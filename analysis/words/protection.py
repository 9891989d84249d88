"""Does the scorer matter once the ends are protected? A sentence for each setting and budget. Decides nothing."""

from typing import Any

from analysis.numbers.order import by
from analysis.words.by_document import in_documents
from analysis.words.wording import PLAIN, change, counted, with_ends

Row = dict[str, Any]
FEW = 3  # are named one by one


def sentences(rows: list[Row], several: bool) -> list[str]:
    """What protection does to the gap between scorers, and whether any is worth more than drawing lots."""
    found = []
    for (setting, budget), mine in by(rows, "setting", "budget").items():
        places = sorted({(row["start_size"], row["recent_percent"]) for row in mine})
        sinks = places[-1][0]
        bare, kept = places[0], [place for place in places if place[0] == sinks and place[1]]
        protected = sorted((row for row in mine if (row["start_size"], row["recent_percent"]) in kept), key=lost)
        where = f"{setting}, " if several else ""
        told = f"{where}{budget:,} tokens, {shares(kept)}: {against_random(protected)} "
        told += f"Against the full cache perplexity there is {at_shares(protected)}"
        alone = protected[0]["unscored_change_percent"]
        told += f"; {change(alone)} if all but the sinks are the newest" if alone is not None else ""
        told += f"; with {named(bare)}, {span(at(mine, bare))}" if bare not in kept else ""
        found.append(f"{told}.")
    return found


def page(frames: dict[str, list[Row]]) -> list[str]:
    """The same of one setting, and in how many documents the best scorer beats all but the sinks newest."""
    rows, perplexity = frames["protection"], [row for row in frames["perplexity"] if row["longest"]]
    sinks, budget = max(row["start_size"] for row in rows), rows[0]["budget"]
    scored = {row["policy"] for row in rows if row["start_size"] == sinks and row["recent_percent"]}
    plain = [row["policy"] for row in perplexity if unscored(row, sinks, budget)]
    tried = sorted((row for row in perplexity if row["policy"] in {*scored, *plain}), key=lost)
    beside = in_documents(frames["documents"], [row["policy"] for row in tried], plain[0]) if plain else ""
    first, *others = sentences(rows, several=False)
    return [short(rows, sinks) + first, *others, *([beside] if beside else [])]


def short(rows: list[Row], sinks: int) -> str:
    """The answer in a few words, where intervals tell."""
    protected = [row for row in rows if row["start_size"] == sinks and row["recent_percent"]]
    told = {beside_random(row) for row in protected if row["over_random_percent"] is not None} - {""}
    if not told:
        return ""
    gain = "some scorers gain measurably" if "better" in told else "no scorer gains measurably"
    return f"Against random choice {gain}{' and some lose measurably' if 'worse' in told else ''}, with "


def unscored(row: Row, sinks: int, budget: int) -> bool:
    """Whether it is of so many sinks and else the newest tokens alone."""
    return (row["policy_name"], row["start_size"], row["budget"]) == (PLAIN, sinks, budget)


def shares(places: list[tuple[int, float]]) -> str:
    """The sinks and all shares of newest tokens at which scorers were tried, in words."""
    (sinks, first), (_, last) = places[0], places[-1]
    span = f"{first:.3g}" + (f" to {last:.3g}" if last != first else "")
    return f"{counted(sinks, 'sink')} and {span}\u00a0% of the budget for the newest"


def at(rows: list[Row], place: tuple[int, float]) -> list[Row]:
    """The scorers of one number of sinks and share of recents, best first."""
    return sorted((row for row in rows if (row["start_size"], row["recent_percent"]) == place), key=lost)


def lost(row: Row) -> float:
    """What a row's perplexity is above full's."""
    return float(row["ppl_change_percent"])


def named(place: tuple[int, float]) -> str:
    """What is protected, in words."""
    sinks, recents = place
    if not sinks and not recents:
        return "nothing protected"
    return f"{counted(sinks, 'sink')} and {recents:.3g}\u00a0% of the budget for the newest"


def span(rows: list[Row]) -> str:
    """From the best scorer to the worst."""
    return " to ".join(f"{change(lost(row))} ({row['scorer']})" for row in (rows[0], rows[-1]))


def at_shares(rows: list[Row]) -> str:
    """From the best scorer to the worst, at the largest share of newest tokens and at the smallest."""
    every = [row["recent_percent"] for row in rows]
    ends = dict.fromkeys((max(every), min(every)))
    told = [
        f"{span([row for row in rows if row['recent_percent'] == share])} with {share:.3g}\u00a0%" for share in ends
    ]
    told[0] += " for the newest"
    return " and ".join(told)


def against_random(rows: list[Row]) -> str:
    """How many scorers, at how many shares, are measurably better or worse than keeping as many at random."""
    scored = [row for row in rows if row["over_random_percent"] is not None]
    if not scored:
        return "no scorer was measured beside random on the same documents."
    told = [row for row in scored if beside_random(row)]
    if not told:
        below = sum(row["over_random_percent"] < 0 for row in scored)
        return (
            f"of {counted(len(scored), 'pair')} of scorer and share {below or 'none'} lost less than keeping random "
            "tokens; too few documents for an interval."
        )
    ranked = sorted(told, key=lambda row: float(row["over_random_percent"]))
    better = [row for row in ranked if beside_random(row) == "better"]
    worse = [row for row in reversed(ranked) if beside_random(row) == "worse"]
    return (
        f"of {counted(len(told), 'pair')} of scorer and share {verdict(better, 'better')} than keeping random "
        f"tokens{which(better) or which(ranked[:1], 'at best ')}, and {verdict(worse, 'worse')}{which(worse)}."
    )


def beside_random(row: Row) -> str:
    """What the interval of a scorer against random tells: better, worse, the same; nothing where there is none."""
    low, high = row["over_random_low_percent"], row["over_random_high_percent"]
    if row["over_random_spread"] != "interval" or low is None or high is None:
        return ""
    return "better" if high < 0 else "worse" if low > 0 else "same"


def verdict(rows: list[Row], word: str) -> str:
    """How many are measurably so."""
    return f"{len(rows) or 'none'} {'are' if rows[1:] else 'is'} measurably {word}"


def which(rows: list[Row], where: str = "") -> str:
    """Which these are with their difference and its interval; of many the first alone, which differs most."""
    named = []
    for row in rows if len(rows) <= FEW else rows[:1]:
        gap = with_ends(row, "over_random_percent", change)
        named.append(f"{row['scorer']} at {row['recent_percent']:.3g}\u00a0%: {gap}")
    where = "the most " if len(rows) > FEW else where
    return f" ({where}{', '.join(named)})" if named else ""
