"""Does the scorer matter once the ends are protected? A sentence for each setting and budget. Decides nothing."""

from typing import Any

from analysis.words.wording import between, change, counted

Row = dict[str, Any]
HALF = 50  # per cent of the budget: the share for the newest tokens nearest to it stands for "protected"


def sentences(rows: list[Row], several: bool) -> list[str]:
    """What protection does to the gap between scorers, and what the best is worth against random."""
    found = []
    for setting, budget in dict.fromkeys((row["setting"], row["budget"]) for row in rows):
        mine = [row for row in rows if (row["setting"], row["budget"]) == (setting, budget)]
        places = sorted({(row["start_size"], row["recent_percent"]) for row in mine})
        sinks = places[-1][0]
        bare, kept = places[0], min((place for place in places if place[0] == sinks), key=lambda p: abs(p[1] - HALF))
        before, after = (at(mine, place) for place in (bare, kept))
        where = f"{setting}, " if several else ""
        told = f"{where}{budget:,} tokens: with {named(bare)}, perplexity is {span(before)} against the full cache"
        protected = f"; with {named(kept)}, {span(after)}" if kept != bare else ""
        found.append(f"{told}{protected}. {against_random(after)}")
    return found


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
    best, worst = rows[0], rows[-1]
    return f"{change(lost(best))} ({best['scorer']}) to {change(lost(worst))} ({worst['scorer']})"


def against_random(rows: list[Row]) -> str:
    """The best scorer against its control, with the interval that says whether that is a difference."""
    scored = [row for row in rows if row["over_random_percent"] is not None]
    if not scored:
        return "No scorer was measured beside random on the same documents."
    best = scored[0]
    low, high = best["over_random_low_percent"], best["over_random_high_percent"]
    worth = change(best["over_random_percent"])
    over = f"{best['scorer']}, the best scorer there, is at {worth} against keeping random tokens"
    if low is None:
        return f"{over}."
    over += f" ({between(low, high, change)}{' over documents' if best['over_random_spread'] == 'range' else ''})"
    if best["over_random_spread"] == "range":
        return f"{over}; too few documents for an interval."
    if low <= 0 <= high:
        return f"{over}: no measurable difference."
    return f"{over}: {'better' if high < 0 else 'worse'}."
