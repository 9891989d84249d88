"""Sections of the page: each has something to show and a link to it; what was not measured is one line at the end."""

import re
from dataclasses import replace

import pytest
from golden import FULL, PLAIN, built, report_of, streaming
from report_oracle import page_of

SHOWN = {
    "golden": ["both", "equal", "sinks", "text", "speed", "published", "all", "method"],
    "quick": ["both", "equal", "divergence", "text", "all", "method"],
    "shapes": ["speed", "all", "method"],
    "recall": ["both", "equal", "recalled", "text", "all", "method"],
    "stream": ["text", "all", "method"],
}


def body_of(page):
    return page.partition("<main>")[2].partition("</main>")[0]


@pytest.mark.parametrize("name", SHOWN)
def test_a_section_is_there_where_it_has_something_to_show(name, tmp_path_factory):
    page = page_of(built(name, tmp_path_factory)[1])
    body = body_of(page)
    sections = re.findall(r'<h2 id="([\w-]+)"', body)
    linked = re.findall(r'href="#(\w+)"', page.partition("<nav")[2].partition("</nav>")[0])
    assert linked == ["answer", *(one for one in sections if one != "answer-title")]
    for part in re.split(r'<h2 id="[\w-]+"', body)[2:]:
        assert re.search(r"<(figure|table|dl)\b", part), part[:80]
    assert 'class="empty"' not in page
    assert not re.search(r"\bNone\b|\bnan\b", re.sub(r"(?s)<(pre|script).*?</\1>|<code>.*?</code>", "", body))


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_missing_is_one_line_at_the_end(name, tmp_path_factory):
    body = body_of(page_of(built(name, tmp_path_factory)[1]))
    assert body.count('<details id="missing">') == 1  # closed
    _, _, last = body.partition('<dl class="method">')
    _, _, missing = last.partition('<details id="missing">')
    summary = missing.partition("</summary>")[0]
    comparable = '<h2 id="published">' in body
    assert ('id="published"' in missing) == (not comparable)
    assert ("anything to compare with published numbers" in summary) == (not comparable)
    tally = re.search(r"(\d+) reproduced, (\d+) differ", body)
    assert comparable == (tally.groups() != ("0", "0"))
    assert ("perplexity and accuracy" in summary) == (name == "shapes")
    assert ("time and memory" in summary) == (name in ("quick", "recall", "stream"))


def test_a_time_per_token_has_one_name_and_each_column_its_own(tmp_path_factory):
    page = page_of(built("golden", tmp_path_factory)[1])
    heads = page.partition('id="latency"')[2].partition("</thead>")[0]
    names = re.findall(r'<button type="button">([^<]*)</button>', heads)
    assert len(set(names)) == len(names)
    assert {"Time per token, ms", "Time per token, × full’s"} <= set(names)
    assert "÷ full" not in names
    words = re.sub(r"(?s)<(pre|script)\b.*?</\1>", "", page)
    assert words.count("TPOT") == 2  # explained in the glossary; in Method it is vLLM's word


def test_a_shared_budget_is_called_a_mean(tmp_path):
    policy = streaming(4, 60, 0.01)
    label = policy.label.replace(")", ",layer_budgets='pyramid')")
    mean = replace(policy, label=label, fields=policy.fields | {"layer_budgets": "pyramid"})
    page = page_of(report_of(replace(PLAIN, policies=(FULL, mean), documents=("Job", "Ruth")), tmp_path))
    assert "It keeps 64 tokens on average over layers, chosen by its rule (" in page
