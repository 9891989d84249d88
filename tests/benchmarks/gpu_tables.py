"""What gpu.py measured, as the end of a run and docs/benchmarks.md say it: figures beside their targets, and tables.

Their columns stand here: of these policies and contenders gpu.py measures each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kvstream import H2O, TOVA, FixSizeL2, Full, KeyDiff, Policy, RecentOnly, SnapKV, StreamingLLM
from kvstream.measure.contenders import DYNAMIC, WITHOUT_EVICTION

TOKENS = 8192
PLAIN = "plain forward pass with loss"
POLICIES = [
    Full(),
    StreamingLLM(4, 1020),
    RecentOnly(1024),
    FixSizeL2(1024, 0.7, "keep_low", position="absolute"),
    FixSizeL2(1024, 0.7, "keep_low"),
]
SCANNED = [H2O(512, 256, 4), TOVA(512), KeyDiff(512, 256, 4), SnapKV(512)]
DECODED = [StreamingLLM(4, 1020), FixSizeL2(512, 0.7, "keep_low")]
CONTENDERS = ["full", DYNAMIC, *(str(each) for each in DECODED), *(WITHOUT_EVICTION.format(each) for each in DECODED)]


def way(found: dict) -> str:
    """How a case of decoding was run, in words."""
    texts = "one text" if found["texts"] == 1 else f"{found['texts']} texts"
    how = ", compiled" if found["compiled"] else ""
    return f"{found['model']}, {found['dtype']}, {texts}, {found['context']:,} tokens{how}"


def figures(report: dict) -> Iterator[tuple[str, float, str, float]]:
    """Yield what there is a target for, as far as it was measured: what it is, how much, ≤ or ≥, and the target."""
    full, streaming, recent, absolute, by_rank = map(str, POLICIES)
    least = {full: 0.9, streaming: 0.9, recent: 0.9}
    for case in report["cases"]:
        alone = case["dtype"] == "float32" and case["texts"] == 1
        bounds = least | ({absolute: 0.5, by_rank: 0.3} if case["model"] == "70m" else {}) if alone else {}
        for label, bound in bounds.items():
            what = f"replay under `{label}` ÷ {PLAIN}, {case['model']}, {case['dtype']}"
            yield what, case["of_plain"][label], "≥", bound
        if (case["model"], case["dtype"], case["texts"]) == ("70m", "bfloat16", 8):
            what = f"tokens per second, replay under `{streaming}`, 70m, bfloat16, 8 texts"
            yield what, case["tokens_per_s"][streaming], "≥", 1e6
    for what, measure, name, bound in (
        ("losses in float32 against float64, tiny models, most, nats", "most", "exactness", 2e-5),
        (f"losses against the CPU’s, smollm2-135m, {TOKENS:,} tokens, mean, nats", "mean", "demo", 1e-4),
    ):
        if found := report.get(name):
            yield what, max(each[measure] for each in found.values()), "≤", bound
    streaming, by_norm = map(str, DECODED)
    for found in report["decoding"]:
        small = (found["model"], found["dtype"]) == ("70m", "bfloat16")
        alone = found["texts"] == 1
        if small and alone and found["compiled"]:
            yield f"ms, a step under `{streaming}`, {way(found)}", found["step_ms"][streaming], "≤", 0.30
            what = f"DynamicCache ÷ a step under `{streaming}`, {way(found)}"
            yield what, 1 / found["step_of_dynamic"][streaming], "≥", 8
        if small:
            for label, bound in ((streaming, 1.08), (by_norm, 1.25)):
                what = f"a step under `{label}` ÷ without eviction, {way(found)}"
                yield what, found["step_of_twin"][label], "≤", bound
        if (found["model"], found["dtype"], found["context"]) == ("410m", "bfloat16", 8192):
            bound = 1.02 if alone else 0.6
            yield f"a step under `{streaming}` ÷ full’s, {way(found)}", found["step_of_full"][streaming], "≤", bound
        if small and alone and not found["compiled"]:
            bound = 1.5 if found["context"] < TOKENS else 1
            for label in (full, streaming):
                what = f"first token under `{label}` ÷ DynamicCache’s, {way(found)}"
                yield what, found["ttft_of_dynamic"][label], "≤", bound
    if last := report.get("far"):
        first, far_off = last["contexts"]
        what = f"a step under `{last['policy']}`, 410m, bfloat16, after {far_off:,} ÷ after {first:,} tokens"
        yield what, last["ratio"], "≤", 1.05
    if mission := report.get("mission"):
        yield f"seconds, {mission['cells']:,} quality cells, start-up included", mission["seconds"], "≤", 360


def with_targets(report: dict) -> dict:
    """The report, and in it the figures beside their targets."""
    rows = [
        {"what": what, "figure": figure, "target": f"{sign} {bound:,.10g}",
         "reached": figure >= bound if sign == "≥" else figure <= bound}
        for what, figure, sign, bound in figures(report)
    ]  # fmt: skip
    return report | {"targets": rows}


def short(figure: float) -> str:
    """A figure with about three digits."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3f}" if figure >= 0.01 else f"{figure:.1e}"


def targets_table(report: dict) -> list[str]:
    """Figures beside their targets, as lines of a table."""
    lines = ["| Figure | Measured | Target | |", "|---|---:|---:|---|"]
    for row in with_targets(report)["targets"]:
        reached = "" if row["reached"] else "missed"
        lines.append(f"| {row['what']} | {short(row['figure'])} | {row['target']} | {reached} |")
    return lines


def where(report: dict) -> str:
    """What was measured on."""
    commit = f", commit {report['commit']}" if report.get("commit") else ""
    return f"{report['card']}, torch {report['torch']}{commit}"


def decoding_block(report: dict) -> list[str]:
    """The page's lines on decoding: a row for each way to run, a column for each contender."""
    lines = [
        f"| a step; first token | {' | '.join(f'`{label}`' for label in CONTENDERS)} |",
        "|---|" + "---:|" * len(CONTENDERS),
    ]
    for found in report["decoding"]:
        cells = []
        for label in CONTENDERS:
            step, ttft = found["step_ms"].get(label), found["ttft_ms"].get(label)
            cells.append("–" if step is None else f"{step:.3f} ms · {found['step_of_full'][label]:.2f}")
            cells[-1] += "" if ttft is None else f"; {ttft:.1f} ms · {found['ttft_of_full'][label]:.2f}"
        lines.append(f"| {way(found)} | {' | '.join(cells)} |")
    launched = sorted({label for found in report["decoding"] for label in found["launched"]})
    graphs = f"Steps are CUDA graphs, but for {', '.join(launched)}." if launched else "Steps are CUDA graphs."
    about = f"{where(report)}: medians, and times `full`'s within a turn"
    if not (last := report.get("far")):
        return [*lines, "", f"{about}, over {report['rounds']} rounds. {graphs} From `make bench-gpu`."]
    after = [f"{tokens:,} tokens ({taken:.3f} ms)" for tokens, taken in zip(last["contexts"], last["step_ms"])]
    far_said = (
        f"A step under `{last['policy']}`, 410m, bfloat16, after {after[1]} takes {last['ratio']:.3f} × its time after "
        f"{after[0]}; {last['rounds']} rounds."
    )
    return [*lines, "", f"{about}, over {report['rounds']} rounds. {graphs} {far_said} From `make bench-gpu`."]


def block_of(report: dict) -> list[str]:
    """The page's lines on replay: a row for each way to run, a column for each policy."""
    lines = [*table_of(report["cases"], POLICIES), "", *table_of(report["scanned"], SCANNED)]
    about = f"{where(report)}, TF32 off: tokens per second, and times the plain"
    rounds = f"medians over {report['rounds']} rounds, of ratios within a round"
    return [*lines, "", f"{about} forward pass's; {rounds}. From `make bench-gpu`.", "", *targets_table(report)]


def table_of(cases: list[dict], policies: Sequence[Policy]) -> list[str]:
    """A row for each way to run, a column for each policy."""
    labels = [PLAIN, *map(str, policies)]
    lines = [f"| {TOKENS:,} tokens | {' | '.join([PLAIN, *(f'`{label}`' for label in labels[1:])])} |"]
    lines.append("|---|" + "---:|" * len(labels))
    for found in cases:
        texts = "one text" if found["texts"] == 1 else f"{found['texts']} texts side by side"
        cells = [f"{found['tokens_per_s'][label]:,.0f}" for label in labels]
        cells[1:] = [f"{cell} · {found['of_plain'][label]:.2f}" for cell, label in zip(cells[1:], labels[1:])]
        lines.append(f"| {found['model']}, {found['dtype']}, {texts} | {' | '.join(cells)} |")
    return lines


def mission_block(report: dict) -> list[str]:
    """The page's line on the mission's grid, where that was run."""
    found = report.get("mission")
    if not found:
        return ["The mission's grid was not run on a GPU yet: `make bench-gpu` does it."]
    of = " ".join(["python tests/benchmarks/mission.py", *found["flags"]])
    gpus = f"{found['gpus']} × " if found.get("gpus", 1) > 1 else ""
    return [f"{gpus}{where(found)}: {found['cells']:,} quality cells in {found['seconds']:.0f} s. From `{of}`."]


BLOCKS = {"gpu": block_of, "gpu-decoding": decoding_block, "gpu-mission": mission_block}


def rewrite(page: Path, report: dict) -> None:
    """Replace what the page says between the markers of each block."""
    text = page.read_text(encoding="utf-8")
    for name, lines in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"--page: {str(page)!r} must hold one {begin} and after it one {end}; add these two lines")
        text = text.split(begin)[0] + "\n".join([begin, *lines(report), end]) + text.split(end)[1]
    page.write_text(text, encoding="utf-8")
