"""What a sweep found, for its page in `docs/results`: sentences, of which the first is the answer, and the table.

Every number is one of the rows'. Which of two is better is said only where an interval tells.
"""

import re
from typing import Any

from analysis.numbers.order import by
from analysis.words.wording import PLAIN, change, counted, evicting, fixed, listed, ppl, whole, with_ends

Row = dict[str, Any]
Frames = dict[str, list[Row]]


def lost(row: Row) -> str:
    """A change of perplexity with its interval."""
    return with_ends(row, "ppl_change_percent", change)


def code(text: str) -> str:
    """A label as code."""
    return f"`{text}`"


def with_code(lines: list[str]) -> list[str]:
    """Sentences in which labels are plain, with these as code."""
    return [re.sub(r"(?<![`\w])[a-z]\w*\([^()`]*\)(?!`)", lambda label: code(label.group()), line) for line in lines]


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
        elif few == max(row["start_size"] for row in rows):
            said = f"{counted(few, 'sink')}, the most that were tried, lost measurably least"
        else:
            said = f"{counted(few, 'sink')} {'is' if few == 1 else 'are'} enough, and more gain nothing measurable"
        told.append(f"With {whole(budget)} cached tokens {said}: perplexity against the full cache is {steps}.")
    return told


def positions(frames: Frames) -> list[str]:
    """What each way of numbering keys costs the same policy beside “cache”; first of the policy that fares best."""
    told = []
    bases = by(frames["position_modes"], "base")
    for base, rows in sorted(bases.items(), key=lambda one: min(float(row["ppl_change_percent"]) for row in one[1])):
        own = next((row for row in rows if row["variant"] == "cache"), None)
        others = sorted((row for row in rows if row is not own), key=lambda row: float(row["ppl_change_percent"]))
        verdicts: dict[str, list[str]] = {}
        for row in others:
            verdicts.setdefault(beside_cache(row), []).append(way(row))
        first = f"at {lost(own)} against the full cache with “cache”" if own else "against the full cache"
        parts = [first, *(f"{verdict}{listed(ways)}" for verdict, ways in verdicts.items())]
        texts = f"on texts of {whole(rows[0]['length'])} tokens"
        told.append(f"{code(base)} is, {texts}, {'; '.join(parts)}.")
    return told


def beside_cache(row: Row) -> str:
    """What the interval of a way of numbering against “cache” tells, to be followed by the ways."""
    low, high = row["over_cache_low_percent"], row["over_cache_high_percent"]
    if low is None or high is None:
        return "with "
    return (
        "measurably worse with "
        if low > 0
        else "measurably better with "
        if high < 0
        else "not to be told from it with "
    )


def way(row: Row) -> str:
    """How keys are numbered, what that costs, and what to know of it."""
    grows = "memory grows with the text; " if row["skip_layers"] else ""
    return f"“{row['variant']}” ({grows}{lost(row)})"


def length(frames: Frames) -> list[str]:
    """What sinks and the newest tokens lose between one length and the next, and how many policies lose more."""
    told = []
    for budget, rows in by([row for row in frames["length"] if row["since"] >= evicting(row)], "budget").items():
        runs = [mine for mine in by(rows, "policy").values() if mine[1:]]
        known = [mine for mine in runs if mine[-1]["growth_low_percent"] is not None]
        more = [code(mine[-1]["policy"]) for mine in known if mine[-1]["growth_low_percent"] > 0]
        if own := next((mine for mine in runs if plain(mine[0])), None):
            steps = listed(f"{lost_since(row)} on tokens {stretch(row)}" for row in own)
            who = code(own[0]["policy"])
            told_apart = own in known
            loses = "loses measurably more" if who in more else "loses not measurably more" if told_apart else "loses"
            than = " on the last tokens of a text than on the first beyond its budget" if told_apart else ""
            level = own[1:] and own[-1]["stretch_change_percent"] <= own[-2]["stretch_change_percent"]
            so_far = f", though no more than on tokens {stretch(own[-2])}" if level and loses.endswith("more") else ""
            told.append(f"With {whole(budget)} cached tokens {who} {loses}{than}{so_far}: it is at {steps}.")
        if known[1:]:
            first, last = (f"{whole(row['since'])} and {whole(row['length'])}" for row in (runs[0][0], runs[0][-1]))
            lose = "1 loses" if len(more) == 1 else f"{len(more) or 'none'} lose"
            others = [who for mine in known if (who := code(mine[-1]["policy"])) not in more]
            which = f": {listed(more)}" if more and others and len(more) <= len(others) else ""
            which = f", all but {listed(others)}" if more and others and not which else which
            told.append(
                f"Of {len(known)} policies with {whole(budget)} tokens {lose} measurably more between {last} tokens "
                f"than between {first}{which}."
            )
        if runs[1:]:
            told += [levelling(runs), closest(rows)]
    return told


def levelling(runs: list[list[Row]]) -> str:
    """How many policies lose no more on the last tokens than on those before."""
    before, last = map(stretch, runs[0][-2:])
    level = sum(mine[-1]["stretch_change_percent"] <= mine[-2]["stretch_change_percent"] for mine in runs)
    lose = "loses" if level == 1 else "lose"
    return (
        f"On tokens {last} {level or 'none'} of the {len(runs)} {lose} less than on tokens {before}; whether "
        "measurably, was not asked."
    )


def stretch(row: Row) -> str:
    """From the length before to this one."""
    return f"{whole(row['since'])} to {whole(row['length'])}"


def lost_since(row: Row) -> str:
    """A change of perplexity on the tokens since the length before, with its interval."""
    return with_ends(row, "stretch_change_percent", change)


def closest(rows: list[Row]) -> str:
    """Which policy of a budget is closest to full up to each length, whether or not it can be told from the next."""
    least = [
        min(mine, key=lambda row: float(row["stretch_change_percent"]))
        for _, mine in sorted(by(rows, "length").items())
    ]
    spans = {policy: [stretch(row) for row in mine] for policy, mine in by(least, "policy").items()}
    found = listed(f"{code(policy)} on tokens {listed(mine)}" for policy, mine in spans.items())
    return f"Closest to full, whether or not measurably, is {found}."


def stream(frames: Frames) -> list[str]:
    """What the parts of a long text cost: loss, and the memory of the cache and of all beyond the model."""
    told = []
    runs = [rows for rows in by(frames["parts"], "policy", "document").values() if rows[1:]]
    for rows in sorted(runs, key=lambda rows: float(rows[-1]["nll_nats"])):
        last = rows[-1]
        told.append(
            f"Over {whole(last['tokens'])} tokens, {fixed(1)(last['tokens'] / last['trained_context'])} times the "
            f"trained context, {code(last['policy'])} is at {listed([fixed(2)(row['nll_nats']) for row in rows])} nats "
            f"per token in {len(rows)} parts, one after another, the last {since_first(rows)} the first{held(rows)}."
        )
    return told


def since_first(rows: list[Row]) -> str:
    """How far the last part's loss is from the first's."""
    more = rows[-1]["nll_nats"] - rows[0]["nll_nats"]
    return f"{fixed(2)(abs(more))} {'above' if more > 0 else 'below'}"


def held(rows: list[Row]) -> str:
    """How much memory the parts of a text took beyond the model, where that was measured."""
    peaks = [row["peak_mb"] for row in rows if row["peak_mb"] is not None]
    if not peaks:
        return ""
    low, high = whole(min(peaks)), whole(max(peaks))
    cache = max(row["kv_mb"] for row in rows)
    return f", in {fixed(1)(cache)} MB of KV cache and {low if low == high else f'{low} to {high}'} MB beyond the model"


def level(row: Row) -> str:
    """A loss per token, with the least and the most over the bins of its part."""
    return with_ends(row, "nll_nats", fixed(2))


def levels(frames: Frames) -> str:
    """The full cache's own perplexity, without which no change can be judged."""
    full = [row for row in frames["perplexity"] if row["policy_name"] == "full" and row["longest"]]
    return listed(f"{ppl(row['ppl_corpus'])} ({row['setting']}, {whole(row['length'])} tokens)" for row in full)
