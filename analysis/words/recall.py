"""Who recalls what lies beyond its budget? A sentence for each setting and budget. Decides nothing.

Of distances at which the full cache itself recalls next to nothing (`full_recalls`) no policy is blamed.
"""

from typing import Any

from analysis.numbers.order import by
from analysis.words.wording import evicting, listed

Row = dict[str, Any]


def sentences(rows: list[Row], several: bool) -> list[str]:
    """What each policy recalls beyond its budget, beside full; or that the model cannot recall at all."""
    found = []
    for setting, mine in by(rows, "setting").items():
        where = f"{setting}: " if several else ""
        if not any(row["full_recalls"] for row in mine):
            found.append(f"{where}{unable(mine)}")
            continue
        for budget in dict.fromkeys(row["budget"] for row in mine if row["budget"] is not None):
            # At the budget itself a fact is just inside a window without sinks, and just outside one with some.
            far = [row for row in mine if row["budget"] == budget and row["distance"] > budget]
            if far:
                found.append(f"{where}{beyond(budget, far)}")
            near = [row for row in mine if row["budget"] == budget and row["distance"] < evicting(row)]
            near = [row for row in near if row["full_recalls"] and row["policy"] != "full"]
            found += [f"{where}{within(budget, alike)}" for alike in by_distances(near)]
    return found


def unable(rows: list[Row]) -> str:
    """That even full does not recall, of all answers."""
    of_full = {row["distance"]: row for row in rows if row["policy"] == "full"}.values()  # the same beside each budget
    return (
        f"Even with the full cache this model has {added(of_full, 'recalled'):,} of {added(of_full, 'answers'):,} "
        "answers right, at no distance measurably more than a tenth: as far as they tell, it cannot recall these "
        "facts, and nothing follows about policies."
    )


def beyond(budget: int, far: list[Row]) -> str:
    """What policies of a budget recall at distances beyond it where full does."""
    known = [row for row in far if row["full_recalls"]]
    if not known:
        of_full = [row for row in far if row["policy"] == "full"]
        return (
            f"Beyond {budget:,} tokens the full cache itself has {added(of_full, 'recalled'):,} of "
            f"{added(of_full, 'answers'):,} answers right, at no distance measurably more than a tenth: nothing "
            "follows about policies."
        )
    distances = sorted({row["distance"] for row in known})
    span = f"at {listed(f'{distance:,}' for distance in distances)} tokens"
    return f"Beyond a budget of {budget:,}, {span}: {'; '.join(right(known))}.{out_of_reach(far)}"


def out_of_reach(far: list[Row]) -> str:
    """At which distances beyond a budget full itself recalls too little to tell, if at some."""
    lost = [row for row in far if row["policy"] == "full" and not row["full_recalls"]]
    if not lost:
        return ""
    distances = listed(f"{row['distance']:,}" for row in sorted(lost, key=lambda row: int(row["distance"])))
    count = f"{added(lost, 'recalled'):,} of {added(lost, 'answers'):,}"
    return f" At {distances} full itself has {count} right, not measurably more than a tenth: nothing follows there."


def by_distances(near: list[Row]) -> list[list[Row]]:
    """Rows of policies that were asked at the same distances together: where layers differ, eviction begins earlier."""
    asked: dict[tuple[int, ...], list[Row]] = {}
    for mine in by(near, "policy").values():
        asked.setdefault(tuple(sorted(row["distance"] for row in mine)), []).extend(mine)
    return list(asked.values())


def within(budget: int, near: list[Row]) -> str:
    """What policies of a budget recall at distances within it, which the newest tokens alone would hold."""
    distances = listed(f"{distance:,}" for distance in sorted({row["distance"] for row in near}))
    return f"Within a budget of {budget:,}, at {distances} tokens: {'; '.join(right(near))}."


def right(known: list[Row]) -> list[str]:
    """How many answers each policy has right of how many, by the number of answers."""
    told: dict[tuple[int, int], list[tuple[int, str]]] = {}  # by the number of answers, and how many full has right
    for policy, mine in by((row for row in known if row["policy"] != "full"), "policy").items():
        answers, full, own = (added(mine, name) for name in ("answers", "full_recalled", "recalled"))
        told.setdefault((answers, full), []).append((own, policy))
    return [
        f"of {answers:,} answers full has {full:,} right, {by_count(policies)}"
        for (answers, full), policies in told.items()
    ]


def by_count(policies: list[tuple[int, str]]) -> str:
    """Who has how many right, the most first."""
    ranked = sorted(policies, key=lambda one: -one[0])
    some = [f"{policy} {right:,}" for right, policy in ranked if right]
    none = [policy for right, policy in ranked if not right]
    return listed([*some, *([f"{listed(none)} none"] if none else [])])


def added(rows: Any, name: str) -> int:
    """The sum of a count."""
    return sum(row[name] for row in rows)
