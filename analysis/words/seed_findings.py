"""What a sweep found of the seed report: how it measured and what the papers mean, its numbers, its three claims."""

from analysis.numbers.order import by
from analysis.words import wording
from analysis.words.findings import Frames, Row, code, lost, near, plain
from analysis.words.wording import PLAIN, fixed, percent, times, whole


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
            f"are at most {fixed(1)(apart(widest))} percentage points of perplexity change, which have no interval, "
            f"from what the papers mean ({code(base)}: {lost(measured)} and {lost(meant)} against the full cache), "
            f"with up to {fixed(1)(more)} × the memory."
        )
    rows = [row for row in frames["published"] if row["source"].startswith("seed")]
    verdicts = by(rows, "verdict")
    others = len(verdicts.get("not comparable", []))
    each = f"{len(verdicts.get('reproduced', []))} are reproduced, {len(verdicts.get('differs', []))} differ"
    told.append(
        f"Not one of the seed’s {len(rows)} numbers can be compared."
        if others == len(rows)
        else f"Of the seed’s {len(rows)} numbers {each} and {others} cannot be compared."
    )
    for base, measured, meant in pairs:
        ways = ((measured, "as the seed measured"), (meant, "as the papers mean it"))
        both = (f"{lost(row)} with {percent(row['kv_percent'])} of full’s KV memory {way}" for row, way in ways)
        told.append(f"- {code(base)}: {'; '.join(both)}.")
    return told


def claims(frames: Frames) -> list[str]:
    """Which of the seed's three claims hold here: on TTFT, on throughput, on who loses least at one budget."""
    timed, equal = frames["published_latency"], frames["equal_budget"]
    ttft, throughput = ([row for row in timed if row["metric"].startswith(name)] for name in ("TTFT", "throughput"))
    methods = [row for row in equal if row["budget"] == equal[0]["budget"]] if equal else []
    mine = next(filter(plain, methods), None)
    if not (ttft and throughput and mine and methods[1:]):
        return []
    few = min(row["n"] for row in ttft)
    told = (
        f"that {code(PLAIN)} loses least of the seed’s {len(methods)} methods {least(mine, methods)}",
        f"that throughput falls {moves(throughput)}{busy(throughput)}",
        f"that TTFT falls {moves(ttft)}{busy(ttft)} (over {few} prefills of {whole(ttft[0]['context'])} tokens), nor "
        "could the seed’s clock tell",
    )
    return [f"Of the seed’s three claims: {'; '.join(told)}."]


def busy(rows: list[Row]) -> str:
    """What else the machine did while one of these ratios was measured, if anything."""
    return wording.busy(next((row for row in rows if row["busy"]), rows[0]))


def least(mine: Row, methods: list[Row]) -> str:
    """Whether sinks and the newest tokens lose least of the seed's methods at one budget."""
    second = next(row for row in methods if row is not mine)
    figures = f"at one budget of {whole(mine['budget'])} tokens, {lost(mine)} against {lost(second)} with "
    figures += code(second["policy"])
    if not mine["best"]:
        return f"{'cannot be told' if near(mine) else 'is wrong'} {figures}"
    sure = {True: "holds, if not measurably,", False: "holds, measurably,"}.get(second["tied_with_best"], "holds")
    return f"{sure} {figures}"


def moves(rows: list[Row]) -> str:
    """What is known of the claim that something falls: ratios against full, each with the seed's own."""
    known = all(row["low"] is not None for row in rows)
    if known and all(row["high"] < 1 for row in rows):
        return "holds"
    if known and all(row["low"] > 1 for row in rows):
        least, most = (times(end(row["ours"] for row in rows)) for end in (min, max))
        return f"is wrong, it is {least} to {most} full’s after {whole(rows[0]['context'])} tokens"
    within = sum(row["low"] <= row["published"] <= row["high"] for row in rows) if known else 0
    undecided = f", as {within or 'none'} of its {len(rows)} ratios lie within our intervals" if known else ""
    return f"cannot be told here{undecided}"


def apart(pair: tuple[str, Row, Row]) -> float:
    """How many points of perplexity two ways of measuring a policy are apart."""
    return float(abs(pair[1]["ppl_change_percent"] - pair[2]["ppl_change_percent"]))
