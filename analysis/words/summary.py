"""What stands outside the page: `summary.md`, the line of what was run, and the list of what went wrong."""

from typing import Any

from analysis.read.records import Records
from analysis.words import card_sentences, recall, wording
from analysis.words.answers import answers
from analysis.words.metric import METRICS
from analysis.words.speed import again_ratio, launched
from analysis.words.standing import compared_at, place_of, texts_of
from analysis.words.visible import in_markdown, visible
from analysis.words.wording import counted, listed

SAID = (
    *("overview", "answer", "speed", "cards", "perplexity", "tradeoff", "latency", "models", "noise", "invalid"),
    "recall",
)
Row = dict[str, Any]
Frames = dict[str, list[Row]]


def problems(records: Records, frames: Frames) -> list[tuple[str, list[str]]]:
    """Badges and what is behind each."""
    failed = []
    for record in records.failed:
        fields = record.get("fields") or {}
        where = " · ".join(str(fields.get(name)) for name in ("model", "policy", "document"))
        if fields.get("kind") == "latency":
            where = f"{fields.get('model')} · latency · context {fields.get('context')} · batch {fields.get('batch')}"
        failed.append(f"{where}: {record.get('error')} (after {counted(record.get('attempts') or 1, 'attempt')})")
    invalid = []
    for row in frames["invalid"]:
        where = " · ".join(row[name] for name in ("setting", "policy", "document"))
        invalid.append(f"{where}: {counted(row['invalid'], 'row')}, first at position {row['first_position']}")
    missing = [f"cell {key}: not run yet; run the sweep again" for key in records.missing]
    left_out, aside = ([f"{name}: {why}" for name, why in found] for found in (records.excluded, records.aside))
    badges = {f"{len(failed)} failed": failed, f"{len(missing)} missing": missing}
    badges |= {f"{len(left_out)} left out": left_out, f"{len(aside)} set aside": aside}
    badges[counted(sum(row["invalid"] for row in frames["invalid"]), "invalid row")] = invalid
    return [(badge, lines) for badge, lines in badges.items() if lines]


def summarise(records: Records, frames: Frames) -> str:
    """The answer, the main table at the longest length, the latency table of models without quality, as Markdown."""
    frames = {name: in_markdown(frames[name]) for name in SAID}
    lines = []
    for answer in answers(frames):
        first, *further = answer["more"]
        lines += [f"**{answer['headline']}** {first}\n", *(f"- {line}" for line in further), ""]
    several = len(frames["overview"][0]["settings"]) > 1
    if frames["perplexity"]:
        with_quality = {row["setting"] for row in frames["perplexity"]}
        lines += card_sentences.table([row for row in frames["cards"] if row["setting"] in with_quality], several)
        few = card_sentences.too_few(frames["cards"])
        named = METRICS[frames["cards"][0]["metric"]].named if few else ""
        lines += [f"\nIn brackets behind {named}: {few}.", ""] if few else [""]
        longest = [row for row in frames["perplexity"] if row["longest"]]
        lines += [*quality_table(longest, frames["tradeoff"], several), f"\n{measured(frames)}"]
    lines += [f"\n{sentence}" for sentence in recall.sentences(frames["recall"], several)]
    alone = {row["setting"] for row in frames["speed"] if not row["has_quality"]}
    if fastest := [row for row in frames["latency"] if row["setting"] in alone and row["headline"]]:
        lines += ["", *latency_table(fastest, several)]
    notes = [f"{row['model']}: {row['note']}." for row in frames["models"] if row["note"]]
    lines += [*([f"\n{' '.join(notes)}"] if notes else []), *speed_lines(frames)]
    if bad := [badge for badge, _ in problems(records, frames) if not badge.endswith("set aside")]:
        lines.append(f"\nIncomplete: {', '.join(bad)}.")
    return "\n".join(lines).rstrip()


def quality_table(rows: list[Row], tradeoff: list[Row], several: bool) -> list[str]:
    """Perplexity, accuracy and memory of these rows, and beside them the time per token where it is known."""
    paces = {(row["setting"], row["policy"]): row for row in tradeoff if row["axis"] == "tpot"}
    compared = any(row["kl_nats"] for row in rows)
    lines = []
    for row in rows:
        shown = [wording.megabytes(row["kv_mb"]), wording.percent(row["kv_percent"]), wording.ppl(row["ppl_corpus"])]
        apart = [wording.nats(row["kl_nats"]), wording.percent(row["same_top_percent"])] if compared else []
        full = row["policy_name"] == "full"
        against = [wording.change(row["ppl_change_percent"]), *apart]
        shown += [wording.NONE] * len(against) if full else against
        points = wording.NONE if full else wording.points(row["accuracy_change_points"])
        shown += [wording.percent(row["accuracy_percent"]), points]
        if paces:
            pace = None if full else paces.get((row["setting"], row["policy"]))
            ends = {f"tpot_ratio_{end}": pace[f"x_{end}"] for end in ("low", "high")} if pace else {}
            shown.append(timed(pace | ends) if pace else wording.NONE)
        sample = f" (one of {row['every']} tokens)" if row["every"] else ""
        if row["full_documents"] not in (None, row["documents"]):
            sample += f" ({row['documents']} documents, full {row['full_documents']})"
        lines.append([f"`{row['policy']}`{sample}{wording.caveat(row['skip_layers'])}", *shown])
    headings = ["Policy", "KV kept, MB", "of full", "Perplexity", "against full"]
    headings += ["KL, nats", "Same top token"] if compared else []
    headings += ["Accuracy", "points"]
    headings += ["Time per token"] if paces else []
    return wording.table(headings, lines, 1, [row["setting"] for row in rows if several])


def latency_table(rows: list[Row], several: bool) -> list[str]:
    """Time to first token, time per token and memory at each setting's headline cell."""
    lines = []
    for row in rows:
        shown = [wording.megabytes(row["kv_mb"]), wording.fixed(1)(row["ttft_ms"]), wording.fixed(2)(row["tpot_ms"])]
        against = wording.NONE if row["contender"] == "full" else timed(row)
        lines.append([f"`{row['contender']}`{wording.caveat(row['skip_layers'])}", *shown, against])
    headings = ["Policy", "KV kept, MB", "Time to first token, ms", "Time per token, ms", "against full"]
    return wording.table(headings, lines, 1, [row["setting"] for row in rows if several])


def timed(row: Row) -> str:
    """The time per token against full's, and whether the machine was not idle."""
    return wording.paced(row) + (f" ({wording.NOT_IDLE})" if row["busy"] else "")


def measured(frames: Frames) -> str:
    """Of what the qualities are: models, text, documents, device and dtype."""
    overview = frames["overview"][0]
    models = [row["model"] for row in frames["models"] if row["tokens"]]
    size = f"{counted(overview['documents'], 'document')} of {compared_at(frames):,} tokens"
    what = f"{', '.join(models)} on {', '.join(overview['texts'])}"
    return f"{what}, {size}, {place_of(overview)}. Perplexity is over all documents together."


def speed_lines(frames: Frames) -> list[str]:
    """Where each setting's time per token was measured, and what full against itself came to there, in one line."""
    found = []
    for row in (row for row in frames["noise"] if row["headline"]):
        of = f"{row['setting']} ({row['device']}, {row['dtype']}) at {wording.tokens_of(row)}"
        where = f"{of}, {counted(row['threads'], 'thread')}, {row['rounds']} rounds"
        steps = f", {how}" if (how := launched(row)) else ""
        found.append(f"{where}, full against itself {again_ratio(row, 'tpot')}{wording.busy(row)}{steps}")
    start = "Time per token is a multiple of full’s, with its 95\u00a0% interval over rounds; a difference is one only "
    start += "outside the interval of full against itself"
    return [f"\n{start}: {'; '.join(found)}."] if found else []


def subtitle_of(frames: Frames) -> str:
    """What was run, from the records: a sweep's own words would not know which of its axes were replaced."""
    overview = frames["overview"][0]
    run = [*frames["perplexity"], *(row for row in frames["latency"] if row["role"] == "policy")]
    bounded = [row for row in run if row["budget"] is not None]
    names = listed(dict.fromkeys(row["policy_name"] for row in bounded)) or "No policy with a budget"
    budgets = sorted({row["budget"] for row in bounded})
    at = f" at budgets of {listed(f'{size:,}' for size in budgets)} tokens" if budgets else ""
    against = " against the full cache" if any(row["policy_name"] == "full" for row in run) else ""
    what = [f"{names}{at}{against} on {listed(overview['models'])}"]
    what += [f"quality on {texts_of(frames)}"] if overview["quality_cells"] else []
    if overview["contexts"]:
        what.append(f"speed after {listed(f'{size:,}' for size in sorted(overview['contexts']))} tokens")
    return "; ".join([*what, place_of(overview)]) + "."


def title_of(records: Records) -> str:
    """The sweep's name, or the folder's."""
    return str(visible(records.sweep.get("name") or records.folder.name))
