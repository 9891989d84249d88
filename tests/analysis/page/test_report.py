"""The report's command line: what it writes, what it refuses, and that nothing drops out in silence."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from golden import (
    FULL,
    GOLDEN,
    QUICK,
    Latency,
    built,
    quick_report,
    report_of,
    streaming,
    write,
    write_cell,
    write_failure,
    write_json,
)
from report_oracle import answer_of, page_of, rows_of, summary_of

from analysis import report as command
from analysis.charts import drawing
from analysis.charts.figures import CHARTS
from analysis.numbers import database
from analysis.read.records import read_records
from analysis.words.visible import visible

SMALL = replace(QUICK, policies=QUICK.policies[:2], documents=("Job",), tokens=300, lengths=(300,))

DIVERGED = ("divergence", "tail", "far", "worst", "attention")  # which the golden records, as older ones, do not hold


def test_writes_page_charts_tables_and_summary(tmp_path_factory):
    _, report = built("shapes", tmp_path_factory)
    assert {path.name for path in (report / "charts").iterdir()} == {
        f"{name}.{ending}" for name in ("tpot", "peak_memory", "eviction") for ending in ("svg", "png")
    }
    assert (report / "charts" / "tpot.svg").read_text(encoding="utf-8").startswith("<svg")
    assert (report / "charts" / "tpot.png").read_bytes().startswith(b"\x89PNG")
    _, golden = built("golden", tmp_path_factory)
    assert {path.stem for path in (golden / "tables").glob("*.csv")} == set(command.TABLES)
    for name in command.TABLES:
        plans = {"protection": "protection", "recall": "recall", "repeats": "recall", "stream": "stream"}
        plans |= {"parts": "stream"} | dict.fromkeys(DIVERGED, "quick")
        report = built(plans.get(name, "golden"), tmp_path_factory)[1]
        table = pq.read_table(report / "tables" / f"{name}.parquet")
        printed = rows_of(report, name)
        assert (len(printed), list(printed[0])) == (table.num_rows, table.column_names), name
    assert "take streaming_llm(4," in summary_of(golden)


def test_page_is_self_contained_and_escaped(tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    page = page_of(report)
    assert len(page) < 3_000_000
    assert "&lt;b&gt;weights&lt;/b&gt; &amp; made up" in page
    assert "default-src 'none'" in page
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"""<(?!a )[^>]*(?:src|href)=["']?(?:https?:)?//""", outside)  # links alone may lead outside
    assert page.count("<script>") == 2
    bundle = re.search(r"<script>(.*?)</script>", page, flags=re.S).group(1)
    assert "<!--" not in bundle
    for spec in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', outside, flags=re.S):
        assert not set("<>&") & set(spec)
        json.loads(spec, parse_constant=lambda constant: pytest.fail(f"{constant} in a spec"))


def test_failed_missing_and_invalid_are_named(tmp_path_factory):
    records, report = built("golden", tmp_path_factory)
    page = page_of(report)
    for badge in ("2 failed", "1 missing", "2 invalid rows"):
        assert f'<li class="badge">{badge}</li>' in page
    known = {path.name[:16] for path in records.glob("*.json")}
    missing = set(json.loads((records / "sweep.json").read_text())["cells"]) - known
    assert len(missing) == 1
    assert missing.pop() in page
    assert "golden failure" in page
    summary = (report / "summary.md").read_text(encoding="utf-8")
    assert "Incomplete: 2 failed, 1 missing, 2 invalid rows." in summary
    told = {
        (row[0], int(row[1]), int(row[2])) for row in re.findall(r"`(.+)` \((\d+) documents, full (\d+)\)", summary)
    }
    apart = [row for row in rows_of(report, "perplexity") if row["longest"] == "True"]
    apart = {(row["policy"], int(row["documents"]), int(row["full_documents"])) for row in apart}
    assert told == {(policy, own, full) for policy, own, full in apart if own != full}
    assert told


def test_few_documents_get_no_interval(tmp_path_factory):
    _, report = built("quick", tmp_path_factory)
    assert "2 documents: too few for an interval" in page_of(report)
    missing = page_of(report).partition('<details id="missing">')[2].partition("</details>")[0]
    assert "Position modes needs one policy in several position modes: <code>python sweeps/full.py" in missing
    assert '<figure id="position_modes"' not in page_of(report)


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (lambda folder, key: flip(folder / f"{key}.parquet"), "sha256"),
        (lambda folder, key: (folder / f"{key}.parquet").unlink(), "file"),
        (lambda folder, key: edit(folder / f"{key}.json", rows=7), "rows"),
        (lambda folder, key: edit(folder / f"{key}.json", schema=2), "schema"),
        (lambda folder, key: (folder / f"{key}.json").write_text("{"), "not JSON"),
        (lambda folder, key: unseal(folder / f"{key}.json"), "checksum"),
        (lambda folder, key: forget(folder / f"{key}.json", "policy_fields"), "fields.policy_fields: missing"),
    ],
)
def test_a_damaged_cell_is_named_and_excluded(tmp_path, damage, field):
    folder = write(SMALL, tmp_path)
    key = json.loads((folder / "sweep.json").read_text())["cells"][0]
    damage(folder, key)
    [(name, why)] = read_records(folder).excluded
    assert name == f"{key}.json"
    assert field in why


def test_what_is_excluded_is_said_and_counted_and_ends_with_2(tmp_path):
    folder = write(SMALL, tmp_path / "records")
    torn = next(folder.glob("*.parquet"))
    flip(torn)
    done = quick_report("--records", folder, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"left out {torn.stem}.json: sha256" in done.stderr
    page = page_of(tmp_path / "out")
    assert '<li class="badge">1 left out</li>' in page
    assert f"{torn.stem}.json: " in page
    assert "1 of 2 cells" in page


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def forget(path, name):
    record = json.loads(path.read_text())
    del record["fields"][name]
    edit(path, **record)


def unseal(path):
    """One bit of the checksum's own name: without a checksum nothing is known of the rest."""
    path.write_text(path.read_text().replace('"checksum"', '"checksul"'))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--records", "nowhere"], ["--records", "nowhere", "make run"]),
        (["--records", "empty"], ["--records", "empty", "no finished cell"]),
        (["--records", "torn"], ["sha256", "run"]),
        (["--records", "fine", "--readme", "nowhere.md"], ["--readme", "nowhere.md"]),
        (["--records", "fine", "--readme", "bare.md"], ["--readme", "results:begin", "add"]),
        (["--records", "fine", "--out", "bare.md"], ["bare.md"]),
        (["--within", "x"], ["argument --within: 'x'", "pass a number"]),
        (["--quality-within", "-1"], ["argument --quality-within: '-1'", "at least 0"]),
        (["--memory", "nan"], ["argument --memory: 'nan'", "pass a number"]),
        (["--memory", "inf"], ["argument --memory: 'inf'", "pass a number"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare.md").write_text("no markers")
    for name in ("fine", "torn"):
        write(SMALL, tmp_path / name)
    for path in (tmp_path / "torn").glob("*.parquet"):
        flip(path)
    monkeypatch.chdir(tmp_path)
    done = quick_report(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr.splitlines()[-1] for word in words), done.stderr


@pytest.mark.parametrize("policy", GOLDEN.policies[:2])
def test_one_policy_alone_is_reported_without_an_answer(tmp_path, policy):
    report = report_of(replace(SMALL, policies=(policy,)), tmp_path)
    assert "compare no policy that has to evict with the full cache" in page_of(report)


def test_readme_block_is_rewritten_in_place(tmp_path):
    records = write(replace(QUICK, tokens=1100, lengths=(1100,)), tmp_path / "records")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:begin -->\nbygone\n<!-- results:end -->\nafter\n")
    (tmp_path / "out" / "charts").mkdir(parents=True)
    (tmp_path / "out" / "charts" / "tradeoff_kv.png").write_bytes(b"a picture")
    assert quick_report("--records", records, "--out", tmp_path / "out", "--readme", readme).returncode == 0
    assert (tmp_path / "docs" / "report.png").read_bytes() == b"a picture"
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- results:begin -->\n")
    assert text.endswith("\n<!-- results:end -->\nafter\n")
    assert "bygone" not in text
    assert "](docs/report.png)" in text
    assert "python analysis/report.py --records" in text
    assert len(text.splitlines()) <= 24 + 2
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == 5
    assert {"`full`", "`streaming_llm(4,1020)`"} <= {row.split(" | ")[0].removeprefix("| ") for row in rows}


def test_of_two_cells_for_the_same_run_the_planned_one_counts(tmp_path):
    expected = report_of(SMALL, tmp_path)
    folder = tmp_path / "records"
    cell = json.loads(next(path for path in folder.glob("*.json") if path.name != "sweep.json").read_text())
    count = cell["rows"]
    losses = np.full(count, 9, dtype=np.float32)  # an older version's cell, not in the plan any more
    stale = (np.zeros(count, dtype=np.int32), losses, np.zeros(count, dtype=bool))
    for key in ("0" * 16, "f" * 16):
        write_cell(folder, key, cell["fields"], *stale, cell["environment"])
    assert quick_report("--records", folder, "--out", tmp_path / "two").returncode == 0
    assert rows_of(tmp_path / "two", "perplexity") == rows_of(expected, "perplexity")
    assert "2 cells repeat" in page_of(tmp_path / "two")


def test_report_is_reproducible_and_links_to_records_beside_it_alone(tmp_path, tmp_path_factory):
    records, report = built("quick", tmp_path_factory)
    again = report.with_name("again")  # beside the first, for a page links to the records that lie beside it
    assert quick_report("--records", records, "--out", again).returncode == 0
    assert page_of(again) == page_of(report)
    assert f'<a href="../records/">{records}</a>' in page_of(report)
    far = tmp_path / "off" / "and" / "away"
    assert quick_report("--records", write(SMALL, tmp_path / "mine"), "--out", far).returncode == 0
    assert f"<code>{tmp_path / 'mine'}</code>" in page_of(far)
    assert "../mine/" not in page_of(far)


def test_a_folder_with_glob_characters_and_quotes_is_read(tmp_path):
    folder = write(SMALL, tmp_path / "it's [1] *?")
    shutil.copy(next(folder.glob("*.parquet")), folder / "stray.parquet")  # uncommitted: must not be read
    connection = database.open_database(read_records(folder), 5.0)
    assert connection.sql("SELECT sum(n) FROM pieces").fetchall() == [(598,)]


def test_every_query_opens_with_its_question():
    for path in database.QUERIES.glob("*.sql"):
        assert re.match(r"-- [A-Z].*\?\n", path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("table", ["results", "latency"])
def test_policies_with_layers_that_never_evict_are_marked_and_no_others(table, tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    rows = page_of(report).partition(f'id="{table}"')[2].partition("</table>")[0].split("<tr")[2:]
    marked = [row for row in rows if '<span class="tag grows"' in row]
    assert marked
    assert marked == [row for row in rows if "skip_layers" in row]
    assert all('whatever the budget: layers 0, 1 never evict">memory grows</span>' in row for row in marked)
    for line in (report / "summary.md").read_text(encoding="utf-8").splitlines():
        assert ("(memory grows with the text)" in line) == ("skip_layers" in line), line


@pytest.mark.parametrize(
    ("within", "said"), [(1, "No policy tried stays"), (50, "Take streaming_llm(4,60,skip_layers=")]
)
def test_no_answer_calls_memory_bounded_that_grows(tmp_path, within, said):
    sizes = ((1, 63, 0.2), (4, 60, 0.1), (4, 124, 0.05))
    plan = replace(SMALL, policies=(FULL, *(streaming(*size, skip="0,1") for size in sizes)), documents=("Job", "Ruth"))
    report = report_of(plan, tmp_path, "--within", within, "--quality-within", within)
    answer = answer_of(report)
    assert said in answer
    assert "of the KV memory at 300 tokens (memory grows with the text)" in answer
    assert ("MB kept at 300 tokens (memory grows with the text)" in answer) == (within == 50)
    assert "Its memory grows with the text all the same: layers 0, 1 never evict." in answer
    tight = "At 64 tokens the best is" in answer
    assert tight == ("of the memory (memory grows with the text)." in answer) == (within == 1)
    cross = page_of(report).partition('id="cross"')[2].partition("</table>")[0]
    assert cross.count('<span class="tag grows"') == 2


def test_the_latest_sweep_says_which_prefixes_are_reported(tmp_path):
    folder = write(SMALL, tmp_path / "records")
    sweep = json.loads((folder / "sweep.json").read_text())
    write_json(folder / "sweep.json", sweep | {"lengths": [50, 200, 300]})
    records = read_records(folder)
    assert {tuple(commit["fields"]["lengths"]) for commit in records.commits["quality"]} == {(50, 200, 300)}


HOSTILE = "</script><img src=x onerror=alert(1)>\x00\x1b[31m\u202e|x\u2028\n<!--"


def test_hostile_names_are_escaped_and_their_control_characters_shown(tmp_path, monkeypatch):
    few = {name: replace(chart, file=name in ("equal_budget", "tpot")) for name, chart in CHARTS.items()}
    monkeypatch.setattr(drawing, "CHARTS", few)  # each file takes a second
    plan = replace(SMALL, models=((HOSTILE, HOSTILE, 512),), documents=(HOSTILE,), text=HOSTILE, question=HOSTILE)
    plan = replace(plan, policies=(FULL, *(streaming(start, 60, 0.1) for start in (0, 4))))
    records = write(replace(plan, latency=Latency(contexts=(128, 300), rounds=6)), tmp_path / "records")
    write_failure(records, "0" * 16, {"model": HOSTILE}, HOSTILE)
    assert command.main(["--records", str(records), "--out", str(tmp_path / "out")]) == 0
    texts = [page_of(tmp_path / "out"), summary_of(tmp_path / "out")]
    texts += [path.read_text(encoding="utf-8") for path in (tmp_path / "out" / "charts").glob("*.svg")]
    assert len(texts) > 2
    for text in texts:
        assert not set("\x00\x1b\u202e\u2028") & set(re.sub(r"<script>.*?</script>", "", text, flags=re.S))
        assert "<img src=x" not in text
    assert "␀␛[31m⟨U+202E⟩|x⟨U+2028⟩␊" in texts[0]
    assert "␀␛[31m⟨U+202E⟩\\|x" in texts[1]  # a bar would end a cell of the table
    assert texts[0].count("<script>") == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain name", "plain name"), ("é ü 字", "é ü 字"), ("a\tb\x7f", "a␉b␡"), ("\ufeffx\x85", "⟨U+FEFF⟩x⟨U+0085⟩")],
)
def test_what_cannot_be_seen_gets_a_symbol(text, shown):
    assert visible(text) == shown
    assert visible({"names": [text], "other": 1.5}) == {"names": [shown], "other": 1.5}


def test_policies_that_share_no_document_with_full_have_no_line_over_it(tmp_path):
    plan = replace(SMALL, documents=("Job", "Ruth"))
    folder = write(plan, tmp_path / "records")
    for path in folder.glob("????????????????.json"):
        fields = json.loads(path.read_text(encoding="utf-8"))["fields"]
        if (fields["policy"] == "full") == (fields["document"] == "Ruth"):
            path.unlink()
    done = quick_report("--records", folder, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
