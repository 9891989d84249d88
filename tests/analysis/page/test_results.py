"""docs/results says what is kept of the records, which is what was kept; its sentences follow from its tables."""

import json
import math
import re
import shutil
from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pyarrow.parquet as pq
import pytest
from golden import FULL, QUICK, ROOT, SHAPES, Latency, built, streaming, write, write_json

from analysis import results
from analysis.page.answered import page
from analysis.page.kept import BESIDE, added_up, all_kept, by_sweep, kept
from analysis.page.questions import QUESTIONS
from analysis.read.records import read_records
from analysis.report import asked
from analysis.words import budget_findings, divergence, findings, how_long, latency_findings
from analysis.words.by_document import in_documents

KEPT = ROOT / "docs" / "results" / "kept"
FOLDERS = sorted(path.name for path in KEPT.iterdir())
SWEEPS = [name for name in FOLDERS if BESIDE not in name]
PAGES = sorted(path.stem for path in KEPT.parent.glob("*.md") if path.stem != "README")


@cache
def held():
    """What is kept of each sweep; read where it is used, as collecting tests should read nothing."""
    return by_sweep(all_kept(KEPT))


def test_every_page_is_what_is_kept_and_all_of_it_is_small(capsys):
    assert results.main(["--check"]) == 0, capsys.readouterr().out
    assert set(PAGES) == set(results.answered(held()))
    assert all((ROOT / "docs" / "results" / f"{name}.png").exists() for name in PAGES)
    assert sum(path.stat().st_size for path in KEPT.rglob("*")) < 10e6


def test_a_page_that_is_out_of_date_and_a_table_that_was_changed_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs" / "results")
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    assert results.main(["--check"]) == 0
    page = tmp_path / "docs" / "results" / "sinks.md"
    page.write_text(page.read_text().replace("cached tokens", "tokens"))
    assert results.main(["--check"]) == 1
    assert "sinks.md is out of date" in capsys.readouterr().out
    table = tmp_path / "docs" / "results" / "kept" / "sinks" / "sinks.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    assert results.main(["--check"]) == 2
    assert "is not what was kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--keep", "sunk", "r", "--command", "c"], "--keep: 'sunk' is the sweep of no page; choose among budgets, "),
        (["--keep", "sinks", "r"], "--keep and --command: one needs the other; pass both, or none"),
        (["--command", "c"], "--keep and --command: one needs the other; pass both, or none"),
        (["--keep", "sinks", "nowhere", "--command", "c"], "--records: no folder 'nowhere'"),
        (["--keep", "sinks", "{other}", "--command", "c"], "holds the sweep 'quick', not 'sinks'; pass the records of"),
        (["--keep", "recall", "{bare}", "--command", "c"], "says nothing for recall.md; run python sweeps/recall.py"),
        (["--keep", "sinks", "{two}", "--command", "c"], "a page is of one, sweep one of them alone"),
        (["--beside", "amd"], "--beside: only times of latency are kept by machine; pass it with --keep of these"),
        (["--keep", "sinks", "r", "--command", "c", "--beside", "amd"], "--beside: only times of latency are kept by"),
        (["--keep", "latency", "r", "--command", "c", "--beside", "../x"], "--beside: '../x' is no name of small"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line_and_nothing_is_lost(arguments, why, tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("other", "bare", "two")}
    for name, sweep in (("other", "quick"), ("bare", "recall"), ("two", "sinks")):
        if f"{{{name}}}" not in arguments:
            continue
        models = (*QUICK.models, ("another", "", 512)) if name == "two" else QUICK.models
        write(replace(QUICK, models=models), folders[name])
        told = json.loads((folders[name] / "sweep.json").read_text())
        write_json(folders[name] / "sweep.json", told | {"name": sweep})
    before = {path: path.read_bytes() for path in (ROOT / "docs" / "results").rglob("*") if path.is_file()}
    try:
        code = results.main([argument.format(**folders) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    err = capsys.readouterr().err
    assert why in err.splitlines()[-1]
    assert "Traceback" not in err
    assert before == {path: path.read_bytes() for path in (ROOT / "docs" / "results").rglob("*") if path.is_file()}


def test_records_are_kept_and_their_page_written(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs" / "results")
    (tmp_path / "README.md").write_text(f"before {results.BEGIN}bygone{results.END} after")
    places = tuple(streaming(sinks, 60 - sinks, 0.3 - sinks / 20) for sinks in (0, 1, 4))
    folder = write(replace(QUICK, policies=(FULL, *places), tokens=200, lengths=(200,)), tmp_path / "records")
    write_json(folder / "sweep.json", json.loads((folder / "sweep.json").read_text()) | {"name": "sinks"})
    assert results.main(["--keep", "sinks", str(folder), "--command", "python x.py"]) == 0
    assert results.main(["--check"]) == 0
    page = (tmp_path / "docs" / "results" / "sinks.md").read_text()
    assert "`python x.py`" in page
    assert (tmp_path / "docs" / "results" / "sinks.png").read_bytes()[:4] == b"\x89PNG"
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before ")
    assert readme.endswith(" after")
    assert "Keeping only the newest 60 of 200 tokens costs" in readme


def test_latency_of_two_commands_is_one_page_and_its_batches_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs" / "results")
    monkeypatch.setattr(results, "draw", lambda held: None)
    (tmp_path / "README.md").write_text(results.BEGIN + results.END)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    shapes = replace(SHAPES, latency=Latency(contexts=(512, 2048), batches=(1, 8), rounds=12))
    folder = write(shapes, tmp_path / "records")
    told = json.loads((folder / "sweep.json").read_text())
    write_json(
        folder / "sweep.json", told | {"name": "latency", "cells": told["cells"][:3]}
    )  # the last command's alone
    assert results.main(["--keep", "latency", str(folder), "--command", "python x.py"]) == 0
    text = (tmp_path / "docs" / "results" / "latency.md").read_text()
    assert "prompts of random tokens · cpu, float32, 2 threads · Golden; 8 cells |" in text
    found, _ = kept(tmp_path / "docs" / "results" / "kept" / "latency")
    rows = {(row["model"], row["context"], row["batch"], row["contender"]): row for row in found["latency"]}
    for model, *_ in SHAPES.models:
        alone, together = (rows[model, 2048, batch, "streaming_llm(4,252)"]["tpot_ratio"] for batch in (1, 8))
        line = next(line for line in text.splitlines() if line.startswith(f"{model}: with 8 texts at once"))
        words = r"after 2,048 tokens, .* puts out ([\d.]+)\s× .* tokens per second; one alone, ([\d.]+)\s×"
        said = re.search(words, line)
        assert float(said[1]) == pytest.approx(1 / together, rel=0.01)
        assert float(said[2]) == pytest.approx(1 / alone, rel=0.01)
    readme = (tmp_path / "README.md").read_text()
    ratios = [float(ratio) for ratio in re.findall(r"([\d.]+)\s×", readme)]
    own = [rows[model, 2048, 1, "streaming_llm(4,252)"]["tpot_ratio"] for model, *_ in SHAPES.models]
    assert (min(ratios), max(ratios)) == pytest.approx((min(own), max(own)), rel=0.02)
    assert "After 2,048 tokens a step with 256 kept takes" in readme
    held = [line for line in text.splitlines() if "| `streaming_llm(4,1020)` | 512 |" in line]
    assert not held
    assert any("| `streaming_llm(4,1020)` | 2,048 |" in line for line in text.splitlines())


def test_times_of_two_machines_stand_on_one_page_under_their_own_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs" / "results")
    monkeypatch.setattr(results, "draw", lambda held: None)
    (tmp_path / "README.md").write_text(results.BEGIN + results.END)

    def keep(processor: str, seed: int, *beside: str) -> int:
        plan = replace(SHAPES, seed=seed, environment=SHAPES.environment | {"cpu": processor})
        folder = write(plan, tmp_path / f"records-{seed}")
        told = json.loads((folder / "sweep.json").read_text())
        write_json(folder / "sweep.json", told | {"name": "latency"})
        return results.main(["--keep", "latency", str(folder), "--command", f"python {seed}.py", *beside])

    (tmp_path / "docs" / "results").mkdir(parents=True)
    with pytest.raises(SystemExit):
        keep("Slow", 1, "--beside", "slow")
    assert "--beside: nothing is kept of latency to stand beside; leave it out" in capsys.readouterr().err
    assert keep("Fast", 1) == 0
    alone = (tmp_path / "docs" / "results" / "latency.md").read_text()
    assert "Fast" not in alone.split("| Measured on |")[0]
    assert keep("Slow", 2, "--beside", "slow") == 0
    assert results.main(["--check"]) == 0
    text = (tmp_path / "docs" / "results" / "latency.md").read_text()
    for model, *_ in SHAPES.models:
        for processor, number in (("Fast", 1), ("Slow", 2)):
            own = rows_in(text, f"| {model} · {processor} |")
            found, _ = kept(tmp_path / "docs" / "results" / "kept" / ("latency" if number == 1 else "latency@slow"))
            assert own == len([row for row in found["latency"] if row["model"] == model and in_table(row)])
    for begins in (
        "| Machine | Fast, ",
        "| Machine | Slow, ",
        "| Command, Fast | `python 1.py`",
        "| Command, Slow | `python 2.py`",
    ):
        assert rows_in(text, begins) == 1
    assert "random weights; Fast and Slow)" in (tmp_path / "README.md").read_text()
    cells = re.search(r"cpu, float32, 2 threads · Fast and Slow; (\d+) cells", text)[1]
    assert int(cells) == 2 * int(re.search(r"cpu, float32, 2 threads · Fast; (\d+) cells", alone)[1])
    assert keep("Fast", 3, "--beside", "slow") == 2
    assert "kept latency and latency@slow are both of 'Fast'" in capsys.readouterr().err
    assert text == (tmp_path / "docs" / "results" / "latency.md").read_text()


def test_overviews_of_two_versions_are_added_up():
    older, newer = {"cells": 2, "models": ["a"], "batches": [1]}, {"cells": 3, "models": ["a", "b"], "texts": []}
    for rows in ((older, newer), (newer, older)):
        whole = added_up(rows)
        assert (whole["cells"], sorted(whole["models"])) == (5, ["a", "b"])


def test_cells_on_a_busy_machine_are_counted_and_few_are_named():
    rows = [row for row in held()["latency"][0]["latency"] if row["busy"] and row["role"] == "policy"]
    [said] = [
        line for line in page("latency", *held()["latency"]).splitlines() if line.startswith("Machines were busy")
    ]
    busy = {(row["setting"], row["context"], row["batch"]): row["busy"] for row in rows}
    for what, count in Counter(busy.values()).items():
        assert f"{what} in {count} cell" in said
        for (setting, context, _), why in busy.items():
            if why == what and count <= 2:
                assert f"{setting} at {context:,} tokens of context" in said
    assert sum(map(int, re.findall(r" in (\d+) cells?", said))) == len(busy) > 0


def test_the_seeds_claims_say_where_the_machine_was_not_idle():
    frames, about = deepcopy(held()["seed"])
    assert "not idle" not in page("claims", frames, about)
    for row in frames["published_latency"]:
        row["busy"] = "a wave"
    first = page("claims", frames, about).partition("**")[2].partition("**")[0]
    assert first.count("(machine not idle: a wave)") == 2


def rows_in(text: str, beginning: str) -> int:
    return sum(line.startswith(beginning) for line in text.splitlines())


def in_table(row: dict) -> bool:
    return row["role"] in ("policy", "dynamic", "again") and (row["filled"] or row["budget"] is None)


def changes_of(sweep: str) -> dict[tuple[str, int], float]:
    """Each policy's change of perplexity against full in per cent, by length, from what is kept of each document."""
    documents = pq.read_table(KEPT / sweep / "documents.parquet").to_pylist()
    sums = defaultdict(lambda: [0.0, 0, 0.0, 0])
    for row in documents:
        if row["paired"]:
            own = sums[row["policy"], row["length"]]
            for place, name in enumerate(("nll_sum", "n", "full_nll_sum", "full_n")):
                own[place] += row[name]
    return {key: 100 * math.expm1(nll / n - full / full_n) for key, (nll, n, full, full_n) in sums.items()}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_changes_are_those_of_the_documents(sweep):
    own = changes_of(sweep)
    checked = 0
    for path in (KEPT / sweep).glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            if row.get("policy") not in (None, "full") and row.get("ppl_change_percent") is not None:
                assert own[row["policy"], row["length"]] == pytest.approx(row["ppl_change_percent"], rel=1e-9, abs=1e-9)
                checked += 1
    assert checked or sweep in ("latency", "recall", "stream", "strings")


def test_losses_between_two_lengths_are_those_of_the_documents():
    def sums(policy, length):
        own = [row for row in documents if (row["policy"], row["length"]) == (policy, length) and row["paired"]]
        names = ("nll_sum", "n", "full_nll_sum", "full_n")
        return [sum(row[name] for row in own) if length else 0 for name in names]

    documents = pq.read_table(KEPT / "length" / "documents.parquet").to_pylist()
    for row in pq.read_table(KEPT / "length" / "length.parquet").to_pylist():
        until, since = (sums(row["policy"], row[name]) for name in ("length", "since"))
        nll, n, full_nll, full_n = (late - soon for late, soon in zip(until, since))
        change = 100 * math.expm1(nll / n - full_nll / full_n)
        assert row["stretch_change_percent"] == pytest.approx(change, rel=1e-9, abs=1e-9)


def test_losses_of_a_streams_parts_are_those_of_the_whole():
    longest = {row["policy"]: row for row in pq.read_table(KEPT / "stream" / "documents.parquet").to_pylist()}
    summed = defaultdict(float)
    for part in pq.read_table(KEPT / "stream" / "parts.parquet").to_pylist():
        summed[part["policy"]] += part["nll_nats"] * part["n"]
    assert summed == pytest.approx({policy: row["nll_sum"] for policy, row in longest.items()}, rel=1e-9)


@pytest.mark.parametrize("name", PAGES)
def test_each_number_of_an_answer_stands_in_the_rows(name):
    """What a sentence prints with an interval is a row of the tables, printed so."""
    frames, about = held()[QUESTIONS[name].sweep]
    shown = {findings.lost(row) for rows in frames.values() for row in rows if "ppl_change_low_percent" in row}
    shown |= {findings.lost_since(row) for row in frames.get("length", ()) if "stretch_change_percent" in row}
    for table, changed in (("latency", "eviction"), ("protection", "over_random")):
        for row in frames.get(table, ()):
            cost, *ends = (row[f"{changed}_{of}"] for of in ("percent", "low_percent", "high_percent"))
            if cost is not None and None not in ends:
                low, high = (f"{end:+.1f}" for end in ends)
                shown.add(f"{cost:+.1f}\u00a0% [{low}, {high}]".replace("-", "−"))
    text = page(name, frames, about)
    said = re.findall(r"[+−][\d,.]+\u00a0% \[[^]]+\]", text)
    assert set(said) <= shown
    assert said or name in (
        "claims",
        "protection",
        "recall",
        "stream",
        "strings",
        "tail",
    )  # which print no such interval
    for setting in re.findall(r"`([a-z0-9_]+\([^`]*\))`", text):
        rows = [*frames["perplexity"], *frames.get("latency", ())]
        assert any(row.get("policy") == setting or row.get("base") == setting for row in rows)


@pytest.mark.parametrize("plan", ["golden", "protection", "recall", "shapes", "stream"])
def test_a_page_can_be_made_of_other_records(plan, tmp_path, tmp_path_factory, monkeypatch):
    """Also of ranges in place of intervals, of several models, and where a policy is missing at a budget."""
    records, _ = built(plan, tmp_path_factory)
    _, frames = asked(read_records(records))
    about = {"command": "c", "records": "r", "machine": "m", "cells": 1, "planned": 2}
    about |= {"standing": dict.fromkeys(("quality", "speed", "both"), ("a model", "range"))}
    made = 0
    for name, question in QUESTIONS.items():
        if all(frames.get(table) for table in question.tables if table != "published"):
            text = page(name, frames, about)
            assert text.startswith(f"# {question.title}\n\n**")
            assert "1 of 2 cells" in text
            assert not re.search(r"\bNone\b|\bnan\b", text)
            made += 1
    assert made


def test_more_sinks_than_gain_anything_are_told_from_those_that_do():
    def row(sinks, lost, low, high, spread="interval"):
        return {
            "budget": 64, "start_size": sinks, "policy": f"s({sinks})", "ppl_change_percent": lost, "spread": spread,
            "ppl_change_low_percent": low, "ppl_change_high_percent": high,
        }  # fmt: skip

    rows = [row(0, 90.0, 80.0, 99.0), row(4, 5.0, 4.0, 6.0), row(8, 4.9, 4.0, 6.0)]
    told = {0: (False, False), 4: (False, True), 8: (True, False)}
    near = [{"policy": f"s({sinks})", "best": best, "tied_with_best": tied} for sinks, (best, tied) in told.items()]
    assert (
        "4 sinks are enough, and more gain nothing measurable"
        in findings.sinks({"sinks": rows, "equal_budget": near})[0]
    )
    near[1]["tied_with_best"] = False
    assert (
        "8 sinks, the most that were tried, lost measurably least"
        in findings.sinks({"sinks": rows, "equal_budget": near})[0]
    )
    few = [one | {"spread": "range"} for one in rows]
    assert (
        "8 sinks lost least, over too few documents to tell" in findings.sinks({"sinks": few, "equal_budget": near})[0]
    )


def test_a_document_that_decides_is_named():
    def rows(policy, length=100, **losses):
        found = [{"policy": policy, "document": name, "nll_sum": loss, "n": 10} for name, loss in losses.items()]
        return [row | {"length": length, "paired": True} for row in found]

    documents = rows("a", x=10, y=10, z=10) + rows("b", x=9, y=9, z=30) + rows("b", length=50, x=1)
    unpaired = {"policy": "a", "document": "w", "length": 100, "nll_sum": 0.0, "n": 0, "paired": False}
    for given in (documents, [unpaired, *documents]):
        assert in_documents(given, ["a", "b"], "b") == (
            "`a` is closer than `b` in 1 of 3 documents; without “z” `b` would be closest."
        )
    assert in_documents(documents, ["a", "b"], "a").startswith("`a` is closer than `b` in 1 of 3")
    assert in_documents(documents[:-2], ["a", "b"], "b") == "", "they were not run on the same documents"


def test_up_to_where_the_winner_at_the_largest_budget_is_ahead():
    equal = [{"budget": budget, "policy": policy} for budget in (64, 128) for policy in (f"h2o({budget},1)", "x")]

    def stretches(*changes):
        return [
            {"budget": budget, "length": length, "policy": policy, "stretch_change_percent": change}
            for (budget, length), theirs in zip([(64, 64), (64, 128), (64, 256), (128, 256)], changes, strict=True)
            for policy, change in ((f"h2o({budget},1)", theirs), (f"streaming_llm(4,{budget - 4})", 2.0))
        ]

    first_ahead = stretches(0.0, 1.0, 3.0, 1.0)
    assert how_long.how_long(equal, first_ahead) == (
        "`h2o` is closer to full than `streaming_llm` on a text’s earlier tokens, up to token 128 with 64 and 256 with "
        "128, and further on later ones, if the texts have any; not every such difference is measurable."
    )
    for other in (stretches(0.0, 3.0, 1.0, 1.0), stretches(0.0, 1.0, 1.0, 1.0), stretches(0.0, 3.0, 3.0, 1.0), []):
        assert how_long.how_long(equal, other) == ""
    plain = [{"budget": 64, "policy": "streaming_llm(4,60)"}, *equal[:1]]
    assert how_long.how_long(plain, first_ahead) == ""


def test_that_is_so_of_the_main_grids_page():
    said = page("budgets", *held()["budgets"])
    name, told = re.search(
        r"`(\w+)` is closer to full than `streaming_llm` on .*? up to token (.*), and further on", said
    ).groups()
    ends = {
        int(b.replace(",", "")): int(a.replace(",", "")) for a, b in re.findall(r"([\d,]+\d) with ([\d,]+\d)", told)
    }
    losses = defaultdict(lambda: [0.0, 0])  # nats and tokens up to a length, over documents
    for row in pq.read_table(KEPT / "budgets" / "documents.parquet").to_pylist():
        if row["policy_name"] in (name, "streaming_llm"):
            own = losses[row["policy_name"], row["budget"], row["length"]]
            own[0] += row["nll_sum"]
            own[1] += row["n"]
    lengths = sorted({length for _, _, length in losses})
    assert ends.keys() == {budget for _, budget, _ in losses}
    for budget, end in ends.items():
        for since, until in zip([0, *lengths], lengths):
            if until > budget:
                theirs, ours = (
                    losses[policy, budget, until][0] - (losses[policy, budget, since][0] if since else 0.0)
                    for policy in (name, "streaming_llm")
                )
                assert (theirs < ours) == (until <= end)


def ranked(*policies, budget=64, tied=()):
    """Rows of `equal_budget`, the best first: only those in `tied` cannot be told from it."""
    return [
        {
            "budget": budget, "length": 256, "policy": policy, "series": policy.partition("(")[0], "best": not place,
            "tied_with_best": policy in tied, "ppl_change_percent": 1.0 + place, "skip_layers": 0,
        }
        for place, policy in enumerate(policies)
    ]  # fmt: skip


def test_budgets_at_which_every_scorer_is_measurably_further_are_told():
    plain, lot, scored = "streaming_llm(4,60)", "sink_random(64,32)", ("h2o(64,32)", "tova(64)")
    sizes = {
        64: ranked(plain, lot, *scored, tied=(lot,)),
        128: ranked(plain, lot, *scored, budget=128, tied=(scored[0],)),
        256: ranked(scored[0], plain, scored[1], budget=256),
    }
    assert budget_findings.all_further(sizes) == "With 64 all 2 that choose by a score are measurably further."
    assert budget_findings.all_further({64: ranked(plain, lot)}) == ""
    unknown = [row | {"tied_with_best": None} for row in sizes[64]]
    assert budget_findings.all_further({64: unknown}) == ""


@pytest.mark.parametrize(("kl", "said"), [(0.2, "is so in KL, too: 0.200"), (0.4, "is not in KL: 0.400")])
def test_what_is_ahead_in_perplexity_is_compared_in_kl(kl, said):
    plain, best = "streaming_llm(4,60)", "h2o(64,32)"
    rows = [{"policy": best, "kl_nats": kl, "same_top_percent": 80.0}]
    rows += [{"policy": plain, "kl_nats": 0.3, "same_top_percent": 90.0}]
    frames = {"divergence": rows, "equal_budget": ranked(best, plain)}
    [told] = divergence.beside_perplexity(frames)
    assert told.startswith("With 64 tokens `h2o(64,32)`, ahead in perplexity, " + said)
    assert told.endswith("full’s at 80.0\u00a0% of the tokens against 90.0\u00a0%.")
    for equal in (ranked(plain, best), ranked(best, plain, tied=(plain,)), ranked(best)):
        assert divergence.beside_perplexity(frames | {"equal_budget": equal}) == []


def test_a_prompts_time_is_a_difference_only_beyond_that_of_full_from_itself():
    def told(ratio, *noise, low=None):
        rows = [{"role": "again", "ttft_ratio": one} for one in (*noise, None)]
        row = {"ttft_ratio": ratio, "ttft_ratio_low": low, "ttft_ratio_high": low, "ttft_verdict": None}
        return latency_findings.prompt(row, latency_findings.prompts_again({"latency": rows}))

    assert told(0.9, 1.18, 0.72) == "no measurable difference: 0.90\u00a0×"
    assert told(0.6, 1.18, 0.72) == "0.60\u00a0×"
    assert told(0.95, 0.9, 0.8) == "no measurable difference: 0.95\u00a0×", "one is no difference either"
    assert told(0.9, 1.18, 0.72, low=0.9) == "0.900\u00a0× [0.900, 0.900]", "its own interval tells"
    assert told(0.9) == "0.90\u00a0×"


def test_what_a_stream_lost_since_its_first_part_is_told():
    parts = [{"nll_nats": nats} for nats in (2.5, 9.0, 2.61)]
    assert findings.since_first(parts) == "0.11 above"
    assert findings.since_first(parts[::-1]) == "0.11 below"


def test_labels_become_code_once():
    said = "of 3 (two) a(1,2) and `b(3)`, then c(4,d='e')."
    assert findings.with_code([said]) == ["of 3 (two) `a(1,2)` and `b(3)`, then `c(4,d='e')`."]


def test_the_best_scorer_is_counted_beside_no_scorer_document_by_document():
    said = page("protection", *held()["protection"])
    best, other, closer, of = re.search(r"`(.+)` is closer than `(.+)` in (\d+) of (\d+) documents", said).groups()
    losses = defaultdict(dict)
    for row in pq.read_table(KEPT / "protection" / "documents.parquet").to_pylist():
        losses[row["policy"]][row["document"]] = row["nll_sum"] / row["n"]
    assert {best, other} >= {"streaming_llm(4,124)"}
    assert int(of) == len(losses["full"])
    assert int(closer) == sum(losses[best][name] < losses[other][name] for name in losses["full"])
    protected = [policy for policy in losses if re.search(r"\(128,(32|64|96)", policy) and "start_size=0" not in policy]
    protected = [policy for policy in protected if "start_size=4" in policy or policy.startswith("sink_")]
    assert len(protected) == 12
    total = {policy: sum(losses[policy].values()) for policy in [*protected, "streaming_llm(4,124)"]}
    assert min(total, key=total.get) == best


def test_about_says_what_was_computed():
    for folder in FOLDERS:
        about = json.loads((KEPT / folder / "about.json").read_text())
        assert about["command"].startswith(f"python sweeps/{folder.partition(BESIDE)[0]}.py")
        assert about["cells"] <= about["planned"]
        assert re.search(r"kvstream at `[0-9a-f]{12}", about["machine"])
