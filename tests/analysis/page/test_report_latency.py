"""Speed and memory in the report: each number recomputed from the Parquet files in plain Python, and what is said."""

import json
import re
from dataclasses import replace

import golden
import numpy as np
import pyarrow.parquet as pq
import pytest
from golden import (
    FULL,
    PLAIN,
    QUICK,
    SHAPES,
    Latency,
    built,
    commit,
    database_of,
    quick_report,
    report_of,
    streaming,
    table_of,
    write,
    write_json,
)
from report_oracle import Tables, Timed, answer_of, assert_printed, cells_of, page_of, rows_of, summary_of

from analysis.charts.figures import CHARTS
from analysis.charts.specs import for_page
from analysis.numbers import database
from analysis.numbers.rounds import round_intervals
from analysis.read.records import read_records
from analysis.words import speed as speed_words
from analysis.words import wording

NEOX = "tiny-neox"


@pytest.fixture(scope="module", params=["golden", "shapes"])
def case(request, tmp_path_factory):
    records, report = built(request.param, tmp_path_factory)
    return cells_of(records), report


def test_latency_table_as_printed(case):
    cells, report = case
    seen = set()
    for attributes, columns in Tables(page_of(report)).tables["latency"][1:]:
        shown = {name: text for name, text in columns if name}
        model, batch = columns[0][1], int(shown["batch"])
        timed = cells[model, int(attributes["data-length"]), batch]
        expected = timed.totals(shown["contender"])
        seen.add((model, expected["context"], batch, shown["contender"]))
        for name in set(shown) - {"contender"}:
            if shown[name] == "–":
                assert expected[name] is None or (shown["contender"] == "full" and name.endswith("ratio"))
            else:
                assert_printed(shown[name], expected[name])
    assert seen == {
        (*key, label) for key, one in cells.items() for label in one.contenders if "without eviction" not in label
    }


@pytest.mark.parametrize("name", ["latency", "context", "eviction", "throughput"])
def test_tables_at_full_precision(case, name):
    cells, report = case
    rows = rows_of(report, name)
    several = len({batch for _, _, batch in cells}) > 1
    assert bool(rows) == (several or name != "throughput")
    for row in rows:
        label = row.get("contender") or row["policy"]
        expected = cells[row["setting"], int(row["context"]), int(row["batch"])].totals(label)
        checked = set(row) & set(expected)
        assert len(checked) > 2
        for column in checked:
            assert (row[column] == "") == (expected[column] is None), (column, row)
            if row[column]:
                assert float(row[column]) == pytest.approx(expected[column], rel=1e-9, abs=1e-9), (column, row)


def test_full_against_itself_and_its_drift_as_printed(case):
    cells, report = case
    table = Tables(page_of(report)).tables["again"]
    assert len(table) == len(cells) + 1
    for _, columns in table[1:]:
        shown = {name: text for name, text in columns if name}
        timed = cells[columns[0][1], int(columns[1][1].replace(",", "")), int(columns[2][1])]
        for name, phase in (("again_tpot", "step"), ("again_ttft", "ttft")):
            assert_printed(shown[name].partition("×")[0], timed.ratio("full (again)", phase, "full"))
        assert_printed(shown["drift"], timed.drift())
    ratios = [timed.ratio("full (again)", "step", "full") for timed in cells.values()]
    said = f"Over {len(ratios)} cells it is {min(ratios):.3f} to {max(ratios):.3f} in time per token."
    assert said in page_of(report)


def test_what_else_the_machine_did_is_said_and_hides_nothing(tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    busy = {(row["model"], row["context"], row["batch"]): row["busy"] for row in rows_of(report, "noise")}
    assert {key for key, words in busy.items() if words} == {(NEOX, "600", "1")}
    rows = rows_of(report, "latency")
    assert {row["context"] for row in rows if row["headline"] == "True"} == {"600"}
    assert page_of(report).count('<span class="tag busy"') == sum(bool(row["busy"]) for row in rows) > 0
    neox = answer_of(report).partition("For tiny-neox: take")[2].partition("</p>")[0]
    meanwhile = "; on a machine that was not idle (other processes used 0.7 of 2 cores) it took "
    assert re.fullmatch(r"0\.\d+ × the time per token at 600\.", neox.partition(meanwhile)[2])
    note = "1 of 11 cells was timed while the machine was not idle, as the tables say of each: other work may slow"
    assert note in page_of(report)


BUSY = "machine not idle: other processes used 0.7 of 2 cores"
VERDICT = re.compile(r"faster|slower|fastest|cannot be told|[Aa]s fast|measurable")


@pytest.mark.parametrize("evicting", [1.02, 3.0])  # a policy that seems to gain, and one that seems to lose
def test_times_of_a_machine_that_was_not_idle_are_no_verdict(tmp_path, evicting):
    """Neither beside quality nor of speed alone, and each sentence that has a time says what else the machine did."""
    latency = Latency((600,), rounds=6, evicting=evicting, blemishes={(NEOX, 600, 1): "busy"})
    plan = replace(PLAIN, policies=(FULL, streaming(4, 60, 0.01)), latency=latency)
    report = report_of(plan, tmp_path / "both")
    ratio = cells_of(tmp_path / "both" / "records")[NEOX, 600, 1].ratio("streaming_llm(4,60)", "step", "full")
    [bullet] = [line for line in summary_of(report).splitlines() if line.startswith("- It took")]
    for text in (answer_of(report).partition('class="headline">')[2].partition("</p>")[0], bullet):
        assert not VERDICT.search(text), text
        assert f"{ratio:.2f}" in text
        assert "other processes used 0.7 of 2 cores" in text
    assert bullet.partition(". ")[2].startswith(speed_words.AGAIN)
    table = [line for line in summary_of(report).splitlines() if line.startswith(("| Recommended", "| `streaming"))]
    assert len(table) == 2
    assert all(f"{ratio:.2f}" in line and "(machine not idle" in line and not VERDICT.search(line) for line in table)
    nearest = next(line for line in summary_of(report).splitlines() if line.startswith("| Speed first"))
    assert "too much else ran on the machine to tell which is faster" in nearest
    assert f"{ratio:.2f}" in nearest
    assert f"full’s time per token ({BUSY})" in nearest
    assert nearest.rstrip(" |–").endswith("a sweep on an idle machine tells more")
    alone = report_of(replace(plan, documents=()), tmp_path / "alone")
    head = re.search(r"\*\*(.*?)\*\*(.*)", summary_of(alone))
    assert f"at 600 tokens of context ({BUSY})" in head[1]
    assert not VERDICT.search(head[1])
    assert not re.search("[Aa]s fast", head[2])
    assert speed_words.AGAIN in summary_of(alone)


def test_of_several_contexts_those_that_can_be_told_are_counted(tmp_path):
    """Seemingly faster at all three: at one other work may explain it, and at one of the others it is not."""
    latency = Latency((100, 300, 600), rounds=6, blemishes={(NEOX, 300, 1): "busy"})
    connection = database_of(replace(PLAIN, policies=(FULL, streaming(4, 60, 0.01)), latency=latency), tmp_path)
    connection.execute("UPDATE latency SET tpot_verdict = CASE context WHEN 100 THEN 'same' WHEN 600 THEN 'faster' END")
    [row] = database.rows(connection, "speed")
    told = "that exceed its budget, as far as other work lets it be told, it is measurably faster at 1."
    said = f" Of 2 contexts timed {told}"
    assert speed_words.sentence(row).endswith(said)


def test_cells_with_compiled_steps_hide_no_others(tmp_path):
    """Each is a setting of its own, whose numbers are its samples'; the answer's speed is of the sweep's own."""
    plan = replace(PLAIN, policies=(FULL, streaming(4, 60, 0.01)), latency=Latency((300, 600), rounds=6))
    folder = write(plan, tmp_path / "records")
    timed = {}
    for path in [path for path in folder.glob("*.json") if '"kind": "latency"' in path.read_text()]:
        record = json.loads(path.read_text())
        timed[record["fields"]["context"], "--no-compiled"] = record["cell"]
        key = record["cell"][::-1]
        rows = pq.read_table(folder / record["file"])
        quicker = np.where(np.array(rows["policy"].to_pylist()) == "full", 0.5, 0.25) * rows["seconds"].to_numpy()
        rows = (
            rows.set_column(0, "cell", [[key] * rows.num_rows])
            .drop_columns("seconds")
            .append_column("seconds", [quicker])
        )
        commit(folder, key, record["fields"] | {"compiled": True}, rows, record["environment"])
        timed[record["fields"]["context"], "--compiled"] = key
    sweep = json.loads((folder / "sweep.json").read_text())
    for own in ("--compiled", "--no-compiled"):
        quality = [cell for cell in sweep["cells"] if cell not in timed.values()]
        planned = quality + [cell for (_, way), cell in timed.items() if way == own]
        write_json(folder / "sweep.json", sweep | {"cells": planned})
        assert quick_report("--records", folder, "--out", tmp_path / own).returncode == 0
        rows = [row for row in rows_of(tmp_path / own, "latency") if row["contender"] == "streaming_llm(4,60)"]
        shown = {(int(row["context"]), row["setting"]): row for row in rows}
        assert shown.keys() == {(context, f"{NEOX} · {way}") for context, way in timed}
        for (context, way), cell in timed.items():
            expected = Timed(folder, json.loads((folder / f"{cell}.json").read_text()))
            ratio = expected.ratio("streaming_llm(4,60)", "step", "full")
            assert float(shown[context, f"{NEOX} · {way}"]["tpot_ratio"]) == pytest.approx(ratio, rel=1e-9)
            if (context, way) == (600, own):
                assert f"{ratio:.2f} × the time per token at 600 ({NEOX} · {own})." in answer_of(tmp_path / own)
        other = next(way for _, way in timed if way != own)
        assert f"For {NEOX} · {other}: streaming_llm(4,60) decodes fastest" in answer_of(tmp_path / own)
        page = page_of(tmp_path / own)
        assert "Some cells were timed with <code>--compiled</code> and some without" in page
        assert "another’s place" not in page


def test_cells_of_one_kind_need_no_flag_in_their_names(one_cell, tmp_path):
    _, record, path = one_cell
    table = pq.read_table(path.with_name(record["file"]))
    for key, compiled in (("a" * 16, False), ("b" * 16, None)):  # as older records
        fields = record["fields"] | ({} if compiled is None else {"compiled": compiled})
        commit(tmp_path, key, fields, table.set_column(0, "cell", [[key] * table.num_rows]), record["environment"])
    connection = database.open_database(read_records(tmp_path), 5.0)
    assert [row["setting"] for row in database.rows(connection, "noise")] == ["shape:pythia-70m"]


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory):
    """A folder with a single latency cell, its record, and the record's place."""
    plan = replace(SHAPES, policies=SHAPES.policies[:2], models=SHAPES.models[:1], latency=Latency((512,), rounds=6))
    folder = write(plan, tmp_path_factory.mktemp("cell"))
    [path] = [path for path in folder.glob("*.json") if path.name != "sweep.json"]
    return folder, json.loads(path.read_text()), path


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ({"others": 0.04, "steal": 0.004}, None),  # what would be printed as zero
        ({"others": 0.06, "steal": 0.0}, "other processes used 0.1 of 2 cores"),
        ({"others": 0.0, "steal": 0.02}, "2 % of processor time was stolen"),
        ({"others": None, "steal": None, "load_after": 5.0}, "load 5.0 with 2 threads at work"),
        ({"others": None, "steal": None, "load_after": 2.3}, None),
    ],
)
def test_busy_is_a_description(one_cell, noise, words):
    folder, record, path = one_cell
    write_json(path, record | {"fields": record["fields"] | {"noise": record["fields"]["noise"] | noise}})
    connection = database.open_database(read_records(folder), 5.0)
    write_json(path, record)
    assert [row["busy"] for row in database.rows(connection, "noise")] == [words]


LAUNCHED = {
    "graphs": ({"DynamicCache": "eager"}, "a step is launched as one CUDA graph"),
    "one apart": (
        {"DynamicCache": "eager", "full (again)": "eager"},
        "a step is launched as one CUDA graph, that of full (again) operation by operation",
    ),
    "compiled": (
        dict.fromkeys(("full", "full (again)", "streaming_llm(4,252)", "streaming_llm(4,252) without eviction"),
                      "compiled, CUDA graph") | {"DynamicCache": "eager"},
        "a step is launched as one CUDA graph of compiled operations",
    ),
    "eager": (dict.fromkeys(("full", "full (again)", "streaming_llm(4,252)", "DynamicCache",
                             "streaming_llm(4,252) without eviction"), "eager"), None),
    "older records": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHED)
def test_how_steps_were_launched_is_said_where_a_gpu_repeats_them(tmp_path, name):
    launched, words = LAUNCHED[name]
    cells = Latency((512,), rounds=6, launched=launched)
    report = report_of(replace(SHAPES, policies=SHAPES.policies[:2], models=SHAPES.models[:1], latency=cells), tmp_path)
    said = f"{words}, that of DynamicCache operation by operation"
    for text in (summary_of(report), page_of(report)):
        assert (said in text) == (words is not None)
        assert ("a step is launched" in text) == (words is not None)


def samples_with(ratio, again, spread):
    """Latency samples whose one policy takes `ratio` of full's time, full again `again`, give or take."""

    def samples(key, fields, measure, blemish):
        random = np.random.default_rng(3)
        levels = {"again": again, "dynamic": 1.5, "without eviction": 1.0}
        rows = []
        for phase, count in (("ttft", measure.prefills), ("step", measure.rounds)):
            for one in fields["contenders"]:
                if phase == "ttft" and one["role"] == "without eviction":
                    continue
                level = levels.get(one["role"], ratio if one["budget"] else 1.0)
                for number in range(count):
                    seconds = level * (1 + spread * random.uniform(-1, 1)) if one["label"] != "full" else 1.0
                    rows.append((one["label"], phase, number, 0, 0, seconds))
        return table_of(key, rows)

    return samples


@pytest.mark.parametrize(
    ("ratio", "again", "spread", "others", "verdict"),
    [
        (0.90, 1.00, 0.01, None, "faster"),
        (1.10, 1.00, 0.01, None, "slower"),
        (0.96, 0.95, 0.04, None, "same"),  # inside what full differs from itself
        (0.99, 0.97, 0.002, None, "same"),  # inside, for equals may lie on either side of one
        (1.02, 0.97, 0.002, None, "slower"),
        # Who lost 0.7 cores' time was slowed to 3.3 times at most.
        (0.25, 1.00, 0.01, "busy", "faster"),
        (0.35, 1.00, 0.01, "busy", None),
        (2.80, 1.00, 0.01, "busy", None),
        (3.80, 1.00, 0.01, "busy", "slower"),
        (0.96, 0.95, 0.04, "busy", None),
    ],
)
def test_a_difference_is_one_only_outside_that_of_full_from_itself_and_of_what_other_work_explains(
    tmp_path, monkeypatch, ratio, again, spread, others, verdict
):
    monkeypatch.setattr(golden, "samples_of", samples_with(ratio, again, spread))
    policy = streaming(4, 28, 0.01)
    latency = Latency((512,), rounds=12, steps=1, blemishes={(NEOX, 512, 1): others} if others else {})
    connection = database_of(replace(PLAIN, policies=(FULL, policy), latency=latency), tmp_path)
    [row] = [row for row in database.rows(connection, "latency") if row["contender"] == policy.label]
    assert row["tpot_verdict"] == row["ttft_verdict"] == verdict
    assert row["busy"] == ("other processes used 0.7 of 2 cores" if others else None)
    [speed] = [row for row in database.rows(connection, "cards") if row["card"] == "speed"]
    assert (speed["policy"], speed["nearest_policy"]) == (
        (policy.label, None) if verdict == "faster" else (None, policy.label)
    )
    beaten = {row["policy"]: row["unbeaten"] for row in database.rows(connection, "tradeoff") if row["axis"] == "tpot"}
    assert beaten == {"full": True, policy.label: row["tpot_ratio_high"] < row["tpot_band_low"]}  # as the chart shows


@pytest.mark.parametrize(
    ("device", "cores", "noise", "verdict"),
    [
        ("cpu", 2, {"others": 0.5}, None),
        ("cpu", 16, {"others": 0.5}, "faster"),  # on cores that the measurement left free
        ("cpu", 16, {"others": 14.5}, None),
        ("cuda", 16, {"others": 14.5, "threads": 16}, "faster"),  # one core launches
        ("cuda", 16, {"others": 15.5, "threads": 16}, None),
        ("cpu", 64, {"others": 0.0, "steal": 0.001}, "faster"),  # what would be printed as zero, counts as zero
        ("cpu", 64, {"others": 0.0, "steal": 0.02}, None),
        ("cpu", 2, {"others": None, "load_after": 2.4}, "faster"),
        ("cpu", 2, {"others": None, "load_after": 2.6}, None),
        ("cpu", None, {"others": 0.5}, None),
    ],
)
def test_what_other_work_took_is_what_the_measurement_needed(tmp_path, monkeypatch, device, cores, noise, verdict):
    monkeypatch.setattr(golden, "samples_of", samples_with(0.90, 1.00, 0.01))
    plan = replace(PLAIN, policies=(FULL, streaming(4, 28, 0.01)), latency=Latency((512,), rounds=12, steps=1))
    plan = replace(plan, documents=(), environment=golden.ENVIRONMENT | {"cores": str(cores)})
    folder = write(plan, tmp_path)
    [path] = [path for path in folder.glob("*.json") if '"kind": "latency"' in path.read_text()]
    record = json.loads(path.read_text())
    fields = record["fields"] | {"device": device, "threads": noise.pop("threads", 2)}
    write_json(path, record | {"fields": fields | {"noise": fields["noise"] | {"steal": 0.0} | noise}})
    connection = database.open_database(read_records(folder), 5.0)
    [row] = [row for row in database.rows(connection, "latency") if row["contender"] == "streaming_llm(4,28)"]
    assert row["tpot_verdict"] == verdict
    assert verdict or row["busy"]


def test_no_measurable_difference_is_said_wherever_speed_is(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "samples_of", samples_with(0.96, 0.95, 0.04))
    policies = (FULL, streaming(4, 28, 0.01))
    report = report_of(replace(PLAIN, policies=policies, latency=Latency((512,), rounds=12, steps=1)), tmp_path)
    assert "and no measurable difference in time per token at 512." in answer_of(report)
    summary = summary_of(report)
    assert "no measurable difference: " in next(line for line in summary.splitlines() if line.startswith("| `stream"))
    assert "none is faster by more than full differs from itself. Nearest: streaming_llm(4,28)" in summary
    assert "a sweep with longer --contexts or more --rounds tells more" in summary


def test_a_context_that_does_not_exceed_the_budget_says_nothing(tmp_path):
    """Budget 512 at a context of 512 does what full does, whatever its time: no headline, bullet or trade-off of it."""
    policies = (FULL, streaming(4, 508, 0.01), streaming(4, 124, 0.01))
    plan = replace(PLAIN, policies=policies, latency=Latency((512,), rounds=6))
    connection = database_of(plan, tmp_path / "two")
    for name in ("tradeoff", "eviction"):
        rows = [row for row in database.rows(connection, name) if row.get("axis") != "kv"]
        assert rows
        assert not [row for row in rows if row["budget"] == 512], name
    answer = answer_of(report_of(replace(plan, policies=policies[:2]), tmp_path))
    assert "time per token" not in answer.partition('class="headline">')[2].partition("</p>")[0]
    assert "the longest context timed, 512 tokens, does not exceed its budget of 512" in answer
    assert "<b>not measured</b><small>its budget is not exceeded at 512 tokens of context" in answer


def test_a_budget_that_one_layer_does_not_fill_yet_says_nothing(tmp_path):
    """With unequal budgets per layer the widest decides, on the card as in the sentence."""
    plan = replace(PLAIN, policies=(FULL, streaming(4, 508, 0.01)), latency=Latency((600,), rounds=6))
    folder = write(plan, tmp_path / "records")
    [path] = (path for path in folder.glob("*.json") if '"kind": "latency"' in path.read_text())
    record = json.loads(path.read_text())
    fields = record["fields"]
    fields["contenders"] = [one | ({"full_after": 1000} if one["budget"] else {}) for one in fields["contenders"]]
    commit(folder, path.stem, fields, pq.read_table(folder / record["file"]), record["environment"])
    assert quick_report("--records", folder, "--out", tmp_path / "out").returncode == 0
    answer = answer_of(tmp_path / "out")
    assert "600 tokens, does not exceed its budget of 512, of which its widest layer has 1,000." in answer
    assert "<small>its budget, 1,000 in its widest layer, is not exceeded at 600 tokens of context" in answer


def test_times_of_two_machines_name_theirs_and_point_to_the_quality(tmp_path):
    plan = replace(PLAIN, policies=(FULL, streaming(4, 60, 0.01)), latency=Latency((600,), rounds=6))
    folder = write(plan, tmp_path / "records")
    other = replace(plan, documents=(), latency=Latency((300,), rounds=6))
    write(replace(other, environment=plan.environment | {"cpu": "Other CPU"}), folder)
    assert quick_report("--records", folder, "--out", tmp_path / "out").returncode == 0
    answer = answer_of(tmp_path / "out")
    assert "the time per token at 600 (tiny-neox · Golden CPU)." in answer
    assert "What a policy costs in perplexity stands beside tiny-neox." in answer
    assert "these records do not say" not in answer


def test_the_answer_and_the_summary_give_the_speed(tmp_path_factory):
    records, report = built("golden", tmp_path_factory)
    ratio = cells_of(records)["tiny-llama", 600, 1].ratio("streaming_llm(4,124)", "step", "full")
    head = summary_of(report).partition("**For tiny-neox")[0]
    assert f"and {ratio:.2f} × the time per token at 600." in head
    assert "It decodes faster than the full cache" in head
    assert f"| {ratio:.3f}" in summary_of(report)
    assert "full against itself" in summary_of(report)
    assert "tiny-llama · latency · context 600 · batch 4: golden failure" in page_of(report)


def test_speed_without_quality(tmp_path_factory):
    _, report = built("shapes", tmp_path_factory)
    page = page_of(report)
    assert "These records hold no quality" in page
    assert "decodes fastest" in page
    assert "KVStreamCache(model," not in page
    assert not re.search('id="(results|glance)"', page)
    drawn = {name for name in CHARTS if f'<figure id="{name}"' in page}
    assert drawn == {"tpot", "eviction", "peak_memory"}
    assert {row["ttft_ratio_low"] for row in rows_of(report, "latency")} == {""}  # three prefills carry no interval


def test_quality_without_speed(tmp_path_factory):
    _, report = built("quick", tmp_path_factory)
    page = page_of(report)
    assert "No latency in these records" in page
    assert 'id="latency"' not in page
    assert summary_of(report).count("Time per token") == 1  # the cards' heading, and below it what was not measured
    assert "| not measured |" in summary_of(report)
    assert rows_of(report, "latency") == []


def test_charts_and_their_tooltips_say_whose_memory_grows(tmp_path):
    growing = streaming(4, 60, 0.05, skip="0,1")
    plan = replace(PLAIN, policies=(FULL, growing), latency=Latency(contexts=(100, 300), rounds=6))
    connection = database_of(plan, tmp_path)
    for name in ("tradeoff_tpot", "tradeoff_kv", "by_budget", "tpot", "peak_memory"):
        chart = CHARTS[name]
        drawn = json.dumps([for_page(panel) for panel in chart.draw(database.rows(connection, chart.query)).panels])
        assert f'"{growing.label} (memory grows with the text)"' in drawn
        assert "full (memory" not in drawn


def test_machines_threads_and_devices_are_never_mixed(one_cell, tmp_path):
    _, record, path = one_cell
    table = pq.read_table(path.with_name(record["file"]))

    def copy(number, fields=(), environment=()):
        """The same samples as a cell of another key."""
        key = f"{number:x}" * 16
        mine = table.set_column(0, "cell", [[key] * table.num_rows])
        commit(tmp_path, key, record["fields"] | dict(fields), mine, record["environment"] | dict(environment))
        return key

    changes = ({}, {"threads": 1}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"batch": 2})
    planned = [copy(number, change) for number, change in enumerate(changes)]
    planned.append(copy(14, environment={"cpu": "Another CPU"}))
    stale = copy(15)  # which no plan names
    write_json(tmp_path / "sweep.json", {"name": "golden", "cells": planned[:1]})
    done = quick_report("--records", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out", "latency")
    settings = {row["setting"] for row in rows}
    assert len(settings) == 5
    assert any("Another CPU" in name for name in settings)
    assert any("1 thread" in name for name in settings)
    assert {row["cell"] for row in rows} == set(planned) - {stale}
    assert "1 latency cell repeats" in page_of(tmp_path / "out")


@pytest.mark.parametrize("damage", ["drop", "zero"])
def test_incomplete_or_impossible_samples_are_left_out(tmp_path, damage):
    folder = write(replace(SHAPES, latency=Latency((512,), rounds=6)), tmp_path / "records")
    path = next(path for path in folder.glob("*.json") if path.name != "sweep.json")
    record = json.loads(path.read_text())
    table = pq.read_table(folder / record["file"])
    if damage == "drop":
        table = table.slice(1)
    else:
        seconds = table["seconds"].to_numpy().copy()
        seconds[5] = 0
        table = table.set_column(table.column_names.index("seconds"), "seconds", [seconds])
    commit(folder, path.stem, record["fields"], table, record["environment"])
    [(name, why)] = read_records(folder).excluded
    assert name == path.name
    assert {"drop": "every prefill and step", "zero": "positive"}[damage] in why


@pytest.mark.parametrize("axis", ["tpot", "kv"])
def test_the_tradeoff_stands_on_the_samples_and_its_front_is_what_none_better_matches(axis, tmp_path_factory):
    records, report = built("golden", tmp_path_factory)
    cells = cells_of(records)
    rows = [row for row in rows_of(report, "tradeoff") if row["axis"] == axis]

    def end(row, name):
        return float(row[f"x_{name}"] or row["x"])

    for row in rows:
        if axis == "tpot":
            expected = cells[row["setting"], int(row["context"]), int(row["batch"])].totals(row["policy"])
            assert float(row["x"]) == pytest.approx(expected["tpot_ratio"], rel=1e-9), row
            assert float(row["value"]) == pytest.approx(expected["tpot_ms"], rel=1e-9), row
        alike = [other for other in rows if other["setting"] == row["setting"]]
        closer = [other for other in alike if float(other["ppl_ratio"]) < float(row["ppl_ratio"])]
        near = 1.02 if axis == "kv" else 1.0  # memory so near counts as equal
        assert (row["unbeaten"] == "True") == (not any(end(one, "low") <= near * end(row, "high") for one in closer)), (
            row
        )
    assert {row["policy"] for row in rows if row["unbeaten"] == "True"} >= {"full", "streaming_llm(4,124)"}


def test_no_interval_below_five_rounds():
    row = {"cell": "c", "phase": "step", "label": "p", "twin_ratio": None}
    rows = [row | {"full_ratio": 1 + number / 100} for number in range(5)]
    assert round_intervals(rows[:4]).num_rows == 0
    [found] = round_intervals(rows).to_pylist()
    assert (found["against"], found["low"] <= 1.02 <= found["high"]) == ("full", True)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict", "words"),
    [
        (0.5, 0.45, 0.55, "faster", "faster than the full cache: 0.50 × full’s time per token [0.45, 0.55]"),
        (1.1, 1.05, 1.15, "slower", "slower than the full cache: 1.10 ×"),
        (1.01, 0.95, 1.06, "same", "cannot be told from the full cache’s"),
        (1.1, None, None, None, "4 rounds: too few for an interval"),
    ],
)
def test_no_more_is_said_of_speed_than_its_interval_supports(ratio, low, high, verdict, words):
    row = {"tpot_ratio": ratio, "tpot_ratio_low": low, "tpot_ratio_high": high, "tpot_verdict": verdict}
    row |= {
        "context": 300,
        "batch": 1,
        "budget": 256,
        "filled": True,
        "rounds_n": 4,
        "contexts": 1,
        "contexts_unsure": 0,
        "contexts_not_faster": 0,
        "full_after": 256,
        "several_settings": False,
    }
    row |= {"busy": None, "again_tpot_ratio": None, "again_tpot_low": None, "again_tpot_high": None}
    _, said = speed_words.beside_quality(row)
    assert words in said.replace("\u00a0", " ")
    assert ("256 of 300 tokens kept, there is little to save" in said) == (ratio > 1 and low is not None)
    early, said = speed_words.beside_quality(row | {"context": 256, "filled": False})
    assert early == ""
    assert "256 tokens, does not exceed its budget of 256" in said


def test_the_seeds_claims_stand_beside_what_is_measured(tmp_path):
    latency = Latency(contexts=(200, 2048), rounds=6)
    report = report_of(replace(QUICK, documents=("Job",), tokens=1100, lengths=(1100,), latency=latency), tmp_path)
    rows = rows_of(report, "published_latency")
    first = {(row["policy"], row["context"]) for row in rows if row["metric"].startswith("TTFT")}
    assert first == {("streaming_llm(4,252)", "200"), ("streaming_llm(4,1020)", "200")}
    cells = cells_of(tmp_path / "records")
    for row in rows:
        timed = cells["smollm2-135m", int(row["context"]), 1]
        phase, power = ("ttft", 1) if row["metric"].startswith("TTFT") else ("step", -1)
        assert float(row["ours"]) == pytest.approx(timed.ratio(row["policy"], phase, "full") ** power, rel=1e-9)
        assert float(row["low"]) <= float(row["ours"]) <= float(row["high"])
    said = page_of(report).partition('class="said"')[2].partition("<details")[0].replace("\u00a0", " ")
    assert "the seed: 0.72" in said
    assert said.count("<dt>Measured here</dt>") == said.count("<dt>Why</dt>") == 3
    ranked = said.rpartition("<dt>Measured here</dt>")[2].partition("</dd>")[0]
    places = [
        ranked.index(name) for name in ("streaming_llm(4,252) +", "fix_size_l2(256,0.7,random)", "recent_only(256)")
    ]
    assert places == sorted(places)
    assert "Nothing of it in these records" not in said


def test_a_ratio_with_a_narrow_interval_has_a_third_digit():
    assert wording.times(1.0, 0.999, 1.001) == "1.000\u00a0× [0.999, 1.001]"
    assert wording.times(0.5, 0.45, 0.55) == "0.50\u00a0× [0.45, 0.55]"
    assert wording.times(0.0512) == "0.051\u00a0×"


def test_of_speed_alone_a_policy_that_is_measurably_faster_comes_first(tmp_path):
    """Whatever another's ratio, of which less is known."""
    connection = database_of(replace(SHAPES, models=SHAPES.models[:1]), tmp_path)
    [before] = database.rows(connection, "speed")
    others = connection.execute(
        "SELECT policy FROM latency WHERE headline AND filled AND role = 'policy' AND in_focus "
        "AND policy NOT IN ('full', ?)",
        [before["policy"]],
    ).fetchall()
    connection.execute("UPDATE latency SET tpot_verdict = 'same' WHERE role = 'policy'")
    connection.execute("UPDATE latency SET tpot_verdict = 'faster' WHERE policy = ?", [others[-1][0]])
    [after] = database.rows(connection, "speed")
    assert after["policy"] == others[-1][0] != before["policy"]
    assert f"{after['policy']} decodes fastest" in speed_words.alone(after, several=False)["headline"]
    unsure = speed_words.alone(after | {"tpot_verdict": None}, several=False)["headline"]
    assert f"{after['policy']} takes the least time of those measured" in unsure
