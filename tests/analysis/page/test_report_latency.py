"""Speed and memory in the report: each number recomputed from the Parquet files in plain Python, and what is said."""

import json
import re
from dataclasses import replace

import golden
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden import (
    FULL,
    GOLDEN,
    QUICK,
    SHAPES,
    Latency,
    built,
    commit,
    quick_report,
    recent,
    streaming,
    write,
    write_json,
)
from report_oracle import Tables, assert_printed, cells_of, page_of, rows_of

from analysis.charts.figures import CHARTS
from analysis.charts.specs import for_page
from analysis.numbers import database
from analysis.numbers.rounds import round_intervals, spread
from analysis.read.records import read_records
from analysis.words import speed as speed_words
from analysis.words import wording


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


def test_latency_csv_at_full_precision(case):
    cells, report = case
    rows = rows_of(report, "latency")
    for row in rows:
        expected = cells[row["model"], int(row["context"]), int(row["batch"])].totals(row["contender"])
        for name, value in expected.items():
            assert (row[name] == "") == (value is None), (name, row)
            if value is not None:
                assert float(row[name]) == pytest.approx(value, rel=1e-9, abs=1e-9), (name, row)
        for name in ("tpot_ratio", "ttft_ratio"):
            if row[f"{name}_low"]:
                assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
    assert {row["itl_p99_ms"] == "" for row in rows} == {len(cells) > 2}  # 700 gaps in shapes, 72 in golden


@pytest.mark.parametrize("name", ["context", "eviction", "throughput"])
def test_figure_tables(case, name):
    cells, report = case
    for row in rows_of(report, name):
        label = row.get("contender") or row["policy"]
        expected = cells[row["setting"], int(row["context"]), int(row["batch"])].totals(label)
        checked = {column for column in set(row) & set(expected) if row[column]} - {"context", "batch"}
        assert checked
        for column in checked:
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


def test_how_far_full_strays_from_itself_is_said(case):
    cells, report = case
    ratios = [timed.ratio("full (again)", "step", "full") for timed in cells.values()]
    said = f"Over {len(ratios)} cells it is {min(ratios):.3f} to {max(ratios):.3f} in time per token."
    assert said in page_of(report)


def test_intervals_are_what_a_bootstrap_over_many_rounds_gives(tmp_path_factory):
    records, report = built("golden", tmp_path_factory)
    timed = cells_of(records)["tiny-llama", 600, 1]
    rows = {row["contender"]: row for row in rows_of(report, "latency") if row["cell"] == timed.cell}
    random = np.random.default_rng(0)
    twin = timed.twin("recent_only(128)")
    for against, name, scale in (("full", "tpot_ratio", float), (twin, "eviction", lambda x: 1 + float(x) / 100)):
        mine = np.array(timed.rounds("recent_only(128)", "step")) / np.array(timed.rounds(against, "step"))
        medians = [np.median(random.choice(mine, len(mine))) for _ in range(4000)]
        ends = ("low", "high") if against == "full" else ("low_percent", "high_percent")
        for end, expected in zip(ends, np.percentile(medians, (2.5, 97.5))):
            assert scale(rows["recent_only(128)"][f"{name}_{end}"]) == pytest.approx(expected, abs=0.002)


def test_what_else_the_machine_did_is_said_and_hides_nothing(tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    busy = {(row["model"], row["context"], row["batch"]): row["busy"] for row in rows_of(report, "noise")}
    assert {key: words for key, words in busy.items() if words} == {
        ("tiny-neox", "600", "1"): "other processes used 0.7 of 2 cores"
    }
    page = page_of(report)
    assert "noisy" not in re.sub(r"<pre>.*?</pre>|<script>.*?</script>", "", page, flags=re.S)
    rows = rows_of(report, "latency")
    assert {row["context"] for row in rows if row["headline"] == "True"} == {"600"}
    assert page.count('<span class="tag busy"') == sum(bool(row["busy"]) for row in rows) > 0
    answer = page.partition('id="answer"')[2].partition("</section>")[0].replace("\u00a0", " ")
    neox = answer.partition("For tiny-neox: take")[2].partition("</p>")[0]
    assert re.search(r"and 0\.\d+ × the time per token at 600 \(machine slightly busy\)\.$", neox)


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
def test_busy_is_a_description(tmp_path, noise, words):
    plan = replace(SHAPES, policies=SHAPES.policies[:2], models=SHAPES.models[:1], latency=Latency((512,), rounds=6))
    folder = write(plan, tmp_path)
    [path] = [path for path in folder.glob("*.json") if path.name != "sweep.json"]
    record = json.loads(path.read_text())
    record["fields"]["noise"] |= noise
    write_json(path, record)
    connection = database.open_database(read_records(folder), 5.0)
    assert [row["busy"] for row in database.rows(connection, "noise")] == [words]


def timed_plan(ratio, again=1.0, spread=0.001, rounds=12):
    """A plan's latency records whose one policy takes `ratio` of full's time, full again `again`, give or take."""

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
        names = ("policy", "phase", "round", "turn", "step", "seconds")
        kinds = (pa.string(), pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.float64())
        columns = {name: pa.array(column, kind) for name, kind, column in zip(names, kinds, zip(*rows))}
        return pa.table({"cell": [key] * len(rows)} | columns)

    return samples, Latency((512,), rounds=rounds, steps=1, prefills=6)


@pytest.mark.parametrize(
    ("ratio", "again", "spread", "busy", "verdict"),
    [
        (0.90, 1.00, 0.01, False, "faster"),
        (0.90, 1.00, 0.01, True, "faster"),  # a busy machine on which full agrees with itself still answers
        (1.10, 1.00, 0.01, False, "slower"),
        (0.96, 0.95, 0.04, False, "same"),  # inside what full differs from itself
        (0.99, 0.97, 0.002, False, "same"),  # inside, for equals may lie on either side of one
        (1.02, 0.97, 0.002, False, "slower"),
    ],
)
def test_a_difference_is_one_only_outside_that_of_full_from_itself(
    tmp_path, monkeypatch, ratio, again, spread, busy, verdict
):
    samples, latency = timed_plan(ratio, again, spread)
    monkeypatch.setattr(golden, "samples_of", samples)
    latency = replace(latency, blemishes={("tiny-neox", 512, 1): "busy"} if busy else {})
    policy = streaming(4, 28, 0.01)
    plan = replace(GOLDEN, policies=(FULL, policy), models=GOLDEN.models[:1], invalid=False, failed=0, missing=0)
    folder = write(replace(plan, latency=latency), tmp_path / "records")
    assert quick_report("--records", folder, "--out", tmp_path / "out").returncode == 0
    [row] = [row for row in rows_of(tmp_path / "out", "latency") if row["contender"] == policy.label]
    assert row["tpot_verdict"] == row["ttft_verdict"] == verdict
    assert row["busy"] == ("other processes used 0.7 of 2 cores" if busy else "")
    answer = page_of(tmp_path / "out").partition('id="answer"')[2].partition("</section>")[0].replace("\u00a0", " ")
    headline = answer.partition('class="headline">')[2].partition("</p>")[0]
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert ("machine slightly busy" in headline) == busy
    table = next(line for line in summary.splitlines() if line.startswith(f"| `{policy.label}`"))
    assert ("no measurable difference: " in table) == (verdict == "same")
    assert ("no measurable difference in time per token at 512" in headline) == (verdict == "same")
    speed = next(row for row in rows_of(tmp_path / "out", "cards") if row["card"] == "speed")
    assert (speed["policy"] == policy.label) == (verdict == "faster")
    beaten = {row["policy"]: row["unbeaten"] for row in rows_of(tmp_path / "out", "tradeoff") if row["axis"] == "tpot"}
    assert beaten == {"full": "True", policy.label: str(verdict == "faster")}
    if verdict != "faster":
        assert "none is faster by more than full differs from itself" in speed["why"]
        assert "Nearest: streaming_llm(4,28)" in summary
        assert "a sweep with longer --contexts or more --rounds tells more" in summary


def test_a_context_that_does_not_exceed_the_budget_says_nothing(tmp_path):
    """Budget 512 at a context of 512 does what full does, whatever its time: no headline, bullet or trade-off of it."""
    policies = (FULL, streaming(4, 508, 0.01), streaming(4, 124, 0.01))
    plan = replace(GOLDEN, policies=policies, models=GOLDEN.models[:1], invalid=False, failed=0, missing=0)
    plan = replace(plan, latency=Latency((512,), rounds=6), tokens=600, lengths=(600,))
    assert quick_report("--records", write(plan, tmp_path / "r"), "--out", tmp_path / "out").returncode == 0
    for name in ("tradeoff", "eviction"):
        rows = [row for row in rows_of(tmp_path / "out", name) if row.get("axis") != "kv"]
        assert rows
        assert not [row for row in rows if row["budget"] == "512"], name
    alone = replace(plan, policies=policies[:2])
    assert quick_report("--records", write(alone, tmp_path / "a"), "--out", tmp_path / "alone").returncode == 0
    answer = page_of(tmp_path / "alone").partition('id="answer"')[2].partition("</section>")[0].replace("\u00a0", " ")
    headline = answer.partition('class="headline">')[2].partition("</p>")[0]
    assert "time per token" not in headline
    assert "the longest context timed, 512 tokens, does not exceed its budget of 512" in answer
    assert "<b>not measured</b><small>its budget is not exceeded at 512 tokens of context" in answer


def test_older_records_are_read(tmp_path):
    """They hold a verdict of their own on noise, a twin for each policy, and no vocabulary."""
    latency = Latency((512,), rounds=6, own_twins=True, blemishes={("tiny-neox", 512, 1): "busy"})
    plan = replace(
        GOLDEN, models=GOLDEN.models[:1], invalid=False, failed=0, missing=0, latency=latency, vocab_size=None
    )
    folder = write(plan, tmp_path / "r")
    assert quick_report("--records", folder, "--out", tmp_path / "out").returncode == 0
    [timed] = cells_of(folder).values()
    rows = [row for row in rows_of(tmp_path / "out", "latency") if row["budget"]]
    assert {row["busy"] for row in rows} == {"other processes used 0.7 of 2 cores"}
    for row in rows:
        label = row["contender"]
        expected = 100 * (timed.ratio(label, "step", f"{label} without eviction") - 1)
        assert float(row["eviction_percent"]) == pytest.approx(expected, rel=1e-9)


def test_failed_latency_cells_are_named(tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    assert "tiny-llama · latency · context 600 · batch 4: golden failure" in page_of(report)


def test_the_answer_and_the_summary_give_the_speed(tmp_path_factory):
    records, report = built("golden", tmp_path_factory)
    ratio = cells_of(records)["tiny-llama", 600, 1].ratio("streaming_llm(4,124)", "step", "full")
    summary = (report / "summary.md").read_text(encoding="utf-8")
    head = summary.partition("**For tiny-neox")[0].replace("\u00a0", " ")
    assert f"and {ratio:.2f} × the time per token at 600." in head
    assert "It decodes faster than the full cache" in head
    assert f"| {ratio:.3f}" in summary
    assert "full against itself" in summary


def test_speed_without_quality(tmp_path_factory):
    _, report = built("shapes", tmp_path_factory)
    page = page_of(report)
    assert "These records hold no quality" in page
    assert "decodes fastest" in page
    assert "KVStreamCache(model," not in page
    assert 'id="results"' not in page
    for name in ("tpot", "eviction", "peak_memory"):
        assert f'<figure id="{name}"' in page
    for name in ("tradeoff_tpot", "tradeoff_kv", "throughput", "equal_budget"):
        assert f'<figure id="{name}"' not in page
    assert {row["ttft_ratio_low"] for row in rows_of(report, "latency")} == {""}  # three prefills carry no interval


@pytest.mark.parametrize(("policy", "grows"), [(streaming(4, 252, 0, skip="0"), True), (recent(256, 0), False)])
def test_speed_alone_says_whose_memory_grows(tmp_path, policy, grows):
    plan = replace(SHAPES, policies=(FULL, policy), latency=Latency(contexts=(2048,), rounds=6))
    assert quick_report("--records", write(plan, tmp_path / "r"), "--out", tmp_path / "out").returncode == 0
    answer = page_of(tmp_path / "out").partition('id="answer"')[2].partition("</section>")[0]
    for said in ("of the full KV memory there", "of the full KV memory, at 2,048 tokens of context"):
        assert said in answer
        assert (f"{said} (memory grows with the text)" in answer) == grows
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert (f"`{policy.label}` (memory grows with the text) |" in summary) == grows
    drawn = page_of(tmp_path / "out").partition('<figure id="peak_memory"')[2].partition("</figure>")[0]
    assert (' grows"' in drawn) == grows


def test_the_tradeoff_and_its_tooltips_say_whose_memory_grows(tmp_path):
    growing = streaming(4, 60, 0.05, skip="0,1")
    plan = replace(GOLDEN, policies=(FULL, growing), models=GOLDEN.models[:1], tokens=300, lengths=(300,))
    plan = replace(plan, latency=Latency(contexts=(100, 300), rounds=6))
    connection = database.open_database(read_records(write(plan, tmp_path)), 5.0)
    for [worth] in speed_words.fronts(database.rows(connection, "tradeoff")).values():
        assert f"{growing.label} (memory grows with the text)" in worth["said"]
        assert "full (memory" not in worth["said"]
    for name in ("tradeoff_tpot", "tradeoff_kv", "by_budget", "tpot", "peak_memory"):
        chart = CHARTS[name]
        drawn = json.dumps([for_page(panel) for panel in chart.draw(database.rows(connection, chart.query)).panels])
        assert f'"{growing.label} (memory grows with the text)"' in drawn
        assert "full (memory" not in drawn


def test_quality_without_speed(tmp_path_factory):
    _, report = built("quick", tmp_path_factory)
    page = page_of(report)
    assert "No latency in these records" in page
    assert "time per token, at" not in page
    assert 'id="latency"' not in page
    summary = (report / "summary.md").read_text(encoding="utf-8")
    assert summary.count("Time per token") == 1  # the cards' heading, and below it what was not measured
    assert "| not measured |" in summary
    assert rows_of(report, "latency") == []


def test_machines_threads_and_devices_are_never_mixed(tmp_path):
    folder = tmp_path / "records"
    plan = type(SHAPES)(SHAPES.policies[:2], SHAPES.models[:1], (), 0, (), latency=Latency((512,), rounds=6))
    write(plan, folder)
    first = next(path for path in folder.glob("*.json") if path.name != "sweep.json")
    record = json.loads(first.read_text())
    for number, change in enumerate(({"threads": 1}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"batch": 2})):
        other = {**record, "fields": {**record["fields"], **change}}
        copy(folder, other, f"{number}" * 16)
    copy(folder, {**record, "environment": {**record["environment"], "cpu": "Another CPU"}}, "e" * 16)
    copy(folder, record, "f" * 16)  # a stale twin, which no plan names
    assert quick_report("--records", folder, "--out", tmp_path / "out").returncode == 0
    rows = rows_of(tmp_path / "out", "latency")
    settings = {row["setting"] for row in rows}
    assert len(settings) == 5
    assert any("Another CPU" in name for name in settings)
    assert any("1 thread" in name for name in settings)
    assert len({row["cell"] for row in rows}) == 6
    assert "f" * 16 not in {row["cell"] for row in rows}
    assert "1 latency cell repeats" in page_of(tmp_path / "out")


def copy(folder, record, key):
    """The same samples as a cell of another key."""
    table = pq.read_table(folder / record["file"])
    table = table.set_column(0, "cell", [[key] * table.num_rows])
    commit(folder, key, record["fields"], table, record["environment"])


@pytest.mark.parametrize("damage", ["drop", "zero"])
def test_incomplete_or_impossible_samples_are_left_out(tmp_path, damage):
    folder = write(SHAPES, tmp_path / "records")
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
    done = quick_report("--records", folder, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"left out {path.name}: " in done.stderr
    assert {"drop": "every prefill and step", "zero": "positive"}[damage] in done.stderr
    assert '<li class="badge">1 left out</li>' in page_of(tmp_path / "out")


@pytest.mark.parametrize("axis", ["tpot", "kv"])
def test_tradeoff_front_is_what_none_better_matches(axis, tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    rows = [row for row in rows_of(report, "tradeoff") if row["axis"] == axis]

    def end(row, name):
        return float(row[f"x_{name}"] or row["x"])

    for row in rows:
        better = [
            other
            for other in rows
            if other["setting"] == row["setting"]
            and float(other["ppl_ratio"]) < float(row["ppl_ratio"])
            and end(other, "low") <= end(row, "high")
        ]
        assert (row["unbeaten"] == "True") == (not better), row
    assert {row["policy"] for row in rows if row["unbeaten"] == "True"} >= {"full", "streaming_llm(4,124)"}


def test_the_tradeoff_stands_on_the_samples(tmp_path_factory):
    records, report = built("golden", tmp_path_factory)
    cells = cells_of(records)
    for row in rows_of(report, "tradeoff"):
        if row["axis"] == "kv":
            continue
        expected = cells[row["setting"], int(row["context"]), int(row["batch"])].totals(row["policy"])
        assert float(row["x"]) == pytest.approx(expected[f"{row['axis']}_ratio"], rel=1e-9), row
        assert float(row["value"]) == pytest.approx(expected[f"{row['axis']}_ms"], rel=1e-9), row


def rounds_with(ratio, random, rounds=30):
    """Per-round ratios of two contenders that share each round's drift."""
    common = random.lognormal(0, 0.2, rounds)
    mine, full = (common * random.lognormal(0, 0.02, rounds) for _ in range(2))
    return ratio * mine / full


@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_intervals_cover_a_known_ratio_and_a_pair_of_equals_contains_one(ratio):
    random = np.random.default_rng(5)
    lows, highs = spread(np.array([rounds_with(ratio, random) for _ in range(1000)]))
    assert 0.93 <= np.mean((lows <= ratio) & (ratio <= highs)) <= 0.97
    assert np.median(highs - lows) < 0.05


def test_a_slowdown_of_three_per_cent_is_seen():
    random = np.random.default_rng(6)
    lows, _ = spread(np.array([rounds_with(1.03, random, 60) for _ in range(100)]))
    assert np.mean(lows > 1) >= 0.9


def test_no_interval_below_five_rounds():
    rows = [
        {"cell": "c", "phase": "step", "label": "p", "full_ratio": 1 + number / 100, "twin_ratio": None}
        for number in range(5)
    ]
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
    row = {
        "tpot_ratio": ratio,
        "tpot_ratio_low": low,
        "tpot_ratio_high": high,
        "context": 300,
        "batch": 1,
        "budget": 256,
    }
    row |= {"rounds_n": 4, "contexts": 1, "contexts_not_faster": 0, "busy": None, "again_tpot_ratio": None}
    row["tpot_verdict"] = verdict
    said = speed_words.beside_quality(row)
    assert words in " ".join(said["more"]).replace("\u00a0", " ")
    near = "256 of 300 tokens kept, there is little to save"
    assert (near in said["more"][0]) == (ratio > 1 and low is not None)
    assert wording.times(1.0, 0.999, 1.001) == "1.000\u00a0× [0.999, 1.001]"
    early = speed_words.beside_quality(row | {"context": 256})
    assert early["headline"] == ""
    assert "256 tokens, does not exceed its budget of 256" in early["more"][0]


def test_the_seeds_claims_stand_beside_what_is_measured(tmp_path):
    plan = type(QUICK)(
        QUICK.policies, QUICK.models, ("Job",), 1100, (1100,), latency=Latency(contexts=(200, 2048), rounds=6)
    )
    assert quick_report("--records", write(plan, tmp_path / "r"), "--out", tmp_path / "out").returncode == 0
    rows = rows_of(tmp_path / "out", "published_latency")
    first = [row for row in rows if row["metric"].startswith("TTFT")]
    assert {(row["policy"], row["context"]) for row in first} == {
        ("streaming_llm(4,252)", "200"),
        ("streaming_llm(4,1020)", "200"),
    }
    cells = cells_of(tmp_path / "r")
    for row in rows:
        timed = cells["smollm2-135m", int(row["context"]), 1]
        phase, power = ("ttft", 1) if row["metric"].startswith("TTFT") else ("step", -1)
        assert float(row["ours"]) == pytest.approx(timed.ratio(row["policy"], phase, "full") ** power, rel=1e-9)
        assert float(row["low"]) <= float(row["ours"]) <= float(row["high"])
    said = page_of(tmp_path / "out").partition('class="said"')[2].partition("<details")[0]
    assert "the seed: 0.72" in said.replace("\u00a0", " ")
    assert said.count("<dt>Measured here</dt>") == said.count("<dt>Why</dt>") == 3
    ranked = said.rpartition("<dt>Measured here</dt>")[2].partition("</dd>")[0]
    assert "budget 256: streaming_llm(4,252) +" in ranked
    assert (
        ranked.index("streaming_llm(4,252)")
        < ranked.index("fix_size_l2(256,0.7,random)")
        < ranked.index("recent_only(256)")
    )
    assert "Nothing of it in these records" not in said
