"""The answer's cards: they say what the tables hold, their Python runs, and the README's block is of this code."""

import html
import re
from dataclasses import replace

import pytest
import torch
from golden import (
    FULL,
    PLAIN,
    QUICK,
    ROOT,
    Latency,
    database_of,
    l2,
    quick_report,
    recent,
    report_of,
    streaming,
    write,
)
from report_oracle import answer_of, rows_of

from analysis.numbers import database
from analysis.words import card_sentences
from analysis.words.readme import BEGIN, END, readme_parts

NEAR = replace(  # every card finds a policy here
    PLAIN,
    policies=(FULL, streaming(4, 28, 0.05), streaming(4, 124, 0.004), l2(128, "keep_low", 0.3), recent(128, 0.4)),
    documents=tuple(f"book {number}" for number in range(10)),
    latency=Latency(contexts=(600,)),
)


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    return report_of(NEAR, tmp_path_factory.mktemp("near"))


def cards_on(report):
    """The page's cards: name → its HTML."""
    card = r'<li class="card[^"]*" data-card="(\w+)">(.*?)</li>\s*(?=<li class="card|</ol>)'
    return dict(re.findall(card, answer_of(report), re.S))


def test_the_cards_say_what_the_tables_hold(near):
    shown = cards_on(near)
    rows = {row["card"]: row for row in rows_of(near, "cards")}
    main = {row["policy"]: row for row in rows_of(near, "perplexity") if row["longest"] == "True"}
    assert set(shown) == set(rows) == set(card_sentences.CASES)
    for name, row in rows.items():
        assert row["policy"], name
        quality = main[row["policy"]]
        text = html.unescape(re.sub(r"<wbr>", "", shown[name]))
        assert f"<code>{row['policy']}</code>" in text
        printed = re.search(r"<dt>Perplexity</dt><dd><b>([+−][\d.]+) %</b>", text).group(1)
        decimals = len(printed.partition(".")[2])
        assert float(printed.replace("−", "-")) == round(float(quality["ppl_change_percent"]), decimals)
        low, high = re.search(r"95 % interval ([+−][\d.]+) … ([+−][\d.]+),", text).groups()
        assert float(low.replace("−", "-")) == round(float(quality["ppl_change_low_percent"]), decimals)
        assert float(high.replace("−", "-")) == round(float(quality["ppl_change_high_percent"]), decimals)
        ratio = re.search(r"<dt>Time per token</dt><dd><b>([\d.]+) ×</b>", text).group(1)
        assert float(ratio) == round(float(row["tpot_ratio"]), len(ratio.partition(".")[2]))
        saved = re.search(r"<dt>KV memory saved</dt><dd><b>([\d.]+) %</b>", text).group(1)
        assert float(saved) == round(100 - float(quality["kv_percent"]), 1)


def test_the_cards_print_their_thresholds_and_the_flags_that_change_them(tmp_path, near):
    shown = cards_on(near)
    for name, flag, words in (
        ("answer", "--within 5", "within 5 % of full’s"),
        ("quality", "--quality-within 1", "within 1 % of full’s"),
        ("speed", "--within 5", "within 5 % of full’s"),
        ("memory", "--memory 10", "at most 10 % of full’s"),
    ):
        assert f"<code>{flag}</code>" in shown[name]
        assert words in shown[name]
    flags = ("--quality-within", "0.01", "--within", "0.02", "--memory", "1")
    assert quick_report("--records", near.with_name("records"), "--out", tmp_path, *flags).returncode == 0
    tight = cards_on(tmp_path)
    for name, percent in (("answer", 0.02), ("quality", 0.01), ("speed", 0.02), ("memory", 1)):
        flag = f"{card_sentences.CASES[name].flag} {percent:g}"
        assert f"<code>{flag}</code>" in tight[name]
        assert "Nothing qualifies" in tight[name]
        assert re.search(r"<p>[A-Z][^<]*(within|than)[^<]*\.</p>", tight[name]), tight[name]
        lets_in = rf'<p class="nearest">Nearest: [a-z].*; {flag.split()[0]} [\d.]+ lets it in\.</p>'
        assert re.search(lets_in, tight[name]), tight[name]


def test_the_python_of_each_card_runs(near, tiny_neox):
    for name, text in cards_on(near).items():
        taken = re.search(r'<pre class="take"[^>]*>(.*?)</pre>', text, re.S).group(1)
        place = {"model": tiny_neox()}
        exec(html.unescape(taken), place)
        inputs = torch.arange(60)[None] % 97
        out = place["model"].generate(
            inputs, past_key_values=place["cache"], max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
        assert out.shape == (1, 64), name


@pytest.mark.parametrize(("blemish", "used", "verdicts"), [("busy", 0.7, {None}), ("hardly busy", 0.2, {"faster"})])
def test_a_busy_machine_is_said_beside_a_cards_number(tmp_path, blemish, used, verdicts):
    plan = replace(NEAR, latency=Latency(contexts=(600,), blemishes={("tiny-neox", 600, 1): blemish}))
    seen = set()
    for row in database.rows(database_of(plan, tmp_path), "cards"):
        if row["policy"] is None:
            assert row["why"] == "too much else ran on the machine to tell which is faster"
            continue
        _, value, small = (text.replace("\u00a0", " ") for text in card_sentences.pace(row))
        assert re.fullmatch(r"[\d.]+ ×, machine not idle", value), row["card"]
        assert re.match(r"full’s; 95 % interval [\d.]+ … [\d.]+, full against itself ", small), row["card"]
        sure = "" if row["tpot_verdict"] else ": sweep again on an idle machine to be sure"
        assert small.endswith(f"; other processes used {used} of 2 cores{sure}"), row["card"]
        assert card_sentences.line(row)[3].endswith(
            f" at 600 (machine not idle: other processes used {used} of 2 cores)"
        )
        seen.add(row["tpot_verdict"])
    assert seen == verdicts


def tables_of(text):
    """A README block's tables: each header, and how many cells each row has."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    headers = [line for line in lines if "---" in line or line.startswith(("| Case", "| Policy"))]
    return headers, {line.count(" | ") for line in lines if line.startswith("| `")}


def test_the_readmes_results_are_written_by_this_code(tmp_path):
    """Its numbers are one machine's, and no records are kept; all that the code adds must be what it adds today."""
    before, after = readme_parts(ROOT / "README.md")
    block = (ROOT / "README.md").read_text(encoding="utf-8").removeprefix(before).removesuffix(after)
    plan = replace(QUICK, latency=Latency(contexts=(512, 2048), rounds=6))
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    flags = ("--out", tmp_path / "out", "--readme", tmp_path / "README.md")
    assert quick_report("--records", write(plan, tmp_path / "records"), *flags).returncode == 0
    mine = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert tables_of(block) == tables_of(mine)
    cases = re.compile(r"^\| (?:Recommended|Quality first|Speed first|Memory-limited): [^|]*\|", re.M)
    assert cases.findall(block) == cases.findall(mine)
    assert len(cases.findall(block)) == 4
    for words in ("Perplexity is over all documents together.", "In brackets: behind perplexity", "over rounds."):
        assert words in block.replace("\u00a0", " ")
        assert words in mine.replace("\u00a0", " ")
    assert "`python analysis/report.py --records records/quick --readme README.md`" in block
