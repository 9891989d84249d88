"""What stands outside the page: `summary.md`, the line of what was run, and the list of what went wrong."""

from collections.abc import Iterable
from typing import Any

from analysis.read.records import Records
from analysis.words import cards, wording
from analysis.words import speed as speed_words
from analysis.words.visible import in_markdown, visible

SAID = ("overview", "answer", "speed", "cards", "perplexity", "tradeoff", "latency", "models", "noise", "invalid")
Row = dict[str, Any]


def problems(records: Records, frames: dict[str, list[Row]]) -> list[tuple[str, list[str]]]:
    """Badges and what is behind each."""
    failed = []
    for record in records.failed:
        fields = record.get("fields") or {}
        if fields.get("kind") == "latency":
            where = f"{fields.get('model')} · latency · context {fields.get('context')} · batch {fields.get('batch')}"
        else:
            where = " · ".join(str(fields.get(name)) for name in ("model", "policy", "document"))
        failed.append(f"{where}: {record.get('error')} (after {record.get('attempts')} attempts)")
    invalid = []
    for row in frames["invalid"]:
        where = " · ".join(row[name] for name in ("setting", "policy", "document"))
        rows = f"{row['invalid']} row{'s' if row['invalid'] > 1 else ''}"
        invalid.append(f"{where}: {rows}, first at position {row['first_position']}")
    missing = [f"cell {key}: not run yet; run the sweep again" for key in records.missing]
    left_out = [f"{name}: {why}" for name, why in records.excluded]
    aside = [f"{name}: {why}" for name, why in records.aside]
    count = sum(row["invalid"] for row in frames["invalid"])
    found = [
        (f"{len(failed)} failed", failed),
        (f"{len(missing)} missing", missing),
        (f"{len(left_out)} left out", left_out),
        (f"{len(aside)} set aside", aside),
        (f"{count} invalid row{'s' if count != 1 else ''}", invalid),
    ]
    return [(badge, lines) for badge, lines in found if lines]


def answers(frames: dict[str, list[Row]]) -> list[Row]:
    """The answers in words: one for each setting with quality, then one for each of which only speed was measured."""
    several = len(frames["overview"][0]["settings"]) > 1
    speeds = {row["setting"]: row for row in frames["speed"]}
    found = []
    for row in frames["answer"]:
        speed = speeds.get(row["setting"])
        found.append(wording.answer(row, several, speed_words.beside_quality(speed) if speed else None))
    alone = [row for row in frames["speed"] if not row["has_quality"]]
    return found + [speed_words.alone(row, several) for row in alone]


def summarise(records: Records, frames: dict[str, list[Row]]) -> str:
    """The answer, the main table at the longest length, the latency table of models without quality, as Markdown."""
    frames = {name: in_markdown(frames[name]) for name in SAID}
    lines = []
    for answer in answers(frames):
        first, *further = answer["more"]
        lines += [f"**{answer['headline']}** {first}\n", *(f"- {line}" for line in further), ""]
    several = len(frames["overview"][0]["settings"]) > 1
    if frames["perplexity"]:
        with_quality = {row["setting"] for row in frames["perplexity"]}
        lines += cards.table([row for row in frames["cards"] if row["setting"] in with_quality], several)
        if few := next((row["paired_documents"] for row in frames["cards"] if row["spread"] == "range"), 0):
            over = f"the range over {few} document{'s' if few > 1 else ''}, too few for an interval"
            lines.append(f"\nIn brackets behind perplexity: {over}.")
        lines += quality_table(frames, several)
    alone = {row["setting"] for row in frames["speed"] if not row["has_quality"]}
    if alone:
        lines += latency_table(
            [row for row in frames["latency"] if row["setting"] in alone and row["headline"]], several
        )
    notes = [f"{row['model']}: {row['note']}." for row in frames["models"] if row["note"]]
    lines += [*([f"\n{' '.join(notes)}"] if notes else []), *speed_lines(frames)]
    bad = [badge for badge, _ in problems(records, frames) if not badge.endswith("set aside")]
    if bad:
        lines.append(f"\nIncomplete: {', '.join(bad)}.")
    return "\n".join(lines).rstrip()


def quality_table(frames: dict[str, list[Row]], several: bool) -> list[str]:
    """Perplexity, accuracy and memory at the longest length, and beside them the time per token where it is known."""
    rows = [row for row in frames["perplexity"] if row["longest"]]
    return ["", *quality_rows(rows, frames["tradeoff"], several), f"\n{measured(frames)}"]


def quality_rows(rows: list[Row], tradeoff: list[Row], several: bool) -> list[str]:
    """The table of these rows."""
    paces = {(row["setting"], row["policy"]): row for row in tradeoff if row["axis"] == "tpot"}
    lines = [
        f"| {'Model | ' if several else ''}Policy | KV kept, MB | of full | Perplexity | against full | Accuracy |"
        f" points |{' Time per token |' if paces else ''}",
        f"|{'---|' if several else ''}---|---:|---:|---:|---:|---:|---:|{'---:|' if paces else ''}",
    ]
    for row in rows:
        shown = [wording.megabytes(row["kv_mb"]), wording.percent(row["kv_percent"]), wording.ppl(row["ppl_corpus"])]
        shown += [wording.change(row["ppl_change_percent"]), wording.percent(row["accuracy_percent"])]
        shown.append(wording.points(row["accuracy_change_points"]))
        if row["policy_name"] == "full":
            shown[3] = shown[5] = wording.NONE
        if paces:
            pace = paces.get((row["setting"], row["policy"]))
            known = pace is not None and row["policy_name"] != "full"
            shown.append(times_of(pace) if known and pace else wording.NONE)
        name = f"`{row['policy']}`{wording.caveat(row['skip_layers'])}"
        lines.append(f"| {row['setting'] + ' | ' if several else ''}{name} | {' | '.join(shown)} |")
    return lines


def measured(frames: dict[str, list[Row]]) -> str:
    """Of what the qualities are: models, text, documents, device and dtype."""
    overview = frames["overview"][0]
    models = [row["model"] for row in frames["models"] if row["tokens"]]
    documents = f"{overview['documents']} document{'s' if overview['documents'] > 1 else ''}"
    size = f"{documents} of {max(overview['lengths']):,} tokens"
    where = f"{', '.join(overview['devices'])}, {', '.join(overview['dtypes'])}"
    what = f"{', '.join(models)} on {', '.join(overview['texts'])}"
    return f"{what}, {size}, {where}. Perplexity is over all documents together."


def latency_table(rows: list[Row], several: bool) -> list[str]:
    """TTFT, TPOT and memory at each setting's headline cell."""
    lines = [
        f"\n| {'Model | ' if several else ''}Policy | KV kept, MB | Time to first token, ms | Time per token, ms |"
        " against full |",
        f"|{'---|' if several else ''}---|---:|---:|---:|---:|",
    ]
    for row in rows:
        shown = [wording.megabytes(row["kv_mb"]), wording.fixed(1)(row["ttft_ms"]), wording.fixed(2)(row["tpot_ms"])]
        shown.append(wording.NONE if row["contender"] == "full" else times_of(row))
        name = f"`{row['contender']}`{wording.caveat(row['skip_layers'])}"
        lines.append(f"| {row['setting'] + ' | ' if several else ''}{name} | {' | '.join(shown)} |")
    return lines


def times_of(row: Row) -> str:
    """The time per token against full's, with its interval."""
    low, high = (row[f"x_{end}"] if "x_low" in row else row[f"tpot_ratio_{end}"] for end in ("low", "high"))
    shown = wording.times(row["tpot_ratio"], low, high)
    return f"{cards.NO_DIFFERENCE}: {shown}" if row["tpot_verdict"] == "same" else shown


def speed_lines(frames: dict[str, list[Row]]) -> list[str]:
    """Where each setting's time per token was measured, and what full against itself came to there, in one line."""
    found = []
    for row in (row for row in frames["noise"] if row["headline"]):
        ratio = row["again_tpot_ratio"]
        again = wording.NONE if ratio is None else wording.times(ratio, row["again_tpot_low"], row["again_tpot_high"])
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        busy = f" (machine slightly busy: {row['busy']})" if row["busy"] else ""
        of = f"{row['setting']} ({row['device']}, {row['dtype']})"
        where = f"{of} at {wording.tokens_of(row)}, {threads}, {row['rounds']} rounds"
        found.append(f"{where}, full against itself {again}{busy}")
    start = "Time per token is a multiple of full’s, with its 95\u00a0% interval over rounds; a difference is one only "
    start += "outside the interval of full against itself"
    return [f"\n{start}: {'; '.join(found)}."] if found else []


def subtitle_of(frames: dict[str, list[Row]]) -> str:
    """What was run, from the records: a sweep's own words would not know which of its axes were replaced."""
    overview = frames["overview"][0]
    run = [*frames["perplexity"], *(row for row in frames["latency"] if row["role"] == "policy")]
    bounded = [row for row in run if row["budget"] is not None]
    names = listed(dict.fromkeys(row["policy_name"] for row in bounded)) or "No policy with a budget"
    budgets = sorted({row["budget"] for row in bounded})
    at = f" at budgets of {listed(f'{size:,}' for size in budgets)} tokens" if budgets else ""
    what = [f"{names}{at} against the full cache on {listed(overview['models'])}"]
    if overview["quality_cells"]:
        count = overview["documents"]
        documents = f"{count} document{'s' if count > 1 else ''}"
        what.append(f"quality on {documents} of {listed(overview['texts'])}, {max(overview['lengths']):,} tokens each")
    if overview["contexts"]:
        what.append(f"speed after {listed(f'{size:,}' for size in sorted(overview['contexts']))} tokens")
    what.append(f"{listed(overview['devices'])}, {listed(overview['dtypes'])}")
    return "; ".join(what) + "."


def stands_on(frames: dict[str, list[Row]]) -> str:
    """What charts that stand alone are of: models, text, documents, device, and what whiskers are."""
    overview = frames["overview"][0]
    said = [listed(overview["models"])]
    if overview["quality_cells"]:
        count = overview["documents"]
        documents = f"{count} document{'s' if count > 1 else ''}"
        said.append(f"{documents} of {listed(overview['texts'])}, {max(overview['lengths']):,} tokens each")
    said.append(f"{listed(overview['devices'])}, {listed(overview['dtypes'])}")
    ranges = any(row["spread"] == "range" for row in frames["perplexity"])
    said.append(f"whiskers: {'range over documents, for time ' if ranges else ''}95 % interval")
    return " · ".join(said)


def listed(names: Iterable[str]) -> str:
    """Names as a sentence lists them."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def title_of(records: Records) -> str:
    """The sweep's name, or the folder's."""
    return str(visible(records.sweep.get("name") or records.folder.name))
