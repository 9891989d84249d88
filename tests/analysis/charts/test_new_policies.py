"""A policy that the report has never heard of: a look of its own, its label everywhere, its fields, whole sentences."""

import re
from dataclasses import replace

import pytest
from golden import FULL, QUICK, Latency, P, report_of, streaming
from report_oracle import page_of, rows_of

from analysis.charts.theme import STYLES, looks, style


def made_up(budget, every, excess, name="made_up"):
    """Two sinks, every n-th older token, the last ones."""
    fields = {"start_size": 2, "recent_size": budget // 2, "budget": budget, "every": every}
    return P(f"{name}(2,{budget // 2},{budget},{every})", name, excess, budget, 2, fields=fields)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    policies = (FULL, streaming(4, 60, 0.2), made_up(64, 4, 0.01), made_up(64, 8, 0.05), made_up(128, 4, 0.004))
    policies += (made_up(128, 8, 0.03), made_up(64, 4, 0.1, "another"), made_up(128, 4, 0.06, "another"))
    plan = replace(QUICK, policies=policies, tokens=300, lengths=(150, 300), latency=Latency((300,), rounds=6))
    return report_of(plan, tmp_path_factory.mktemp("new"))


def test_it_is_named_by_the_field_that_its_budget_does_not_settle(report):
    series = {row["policy"]: row["series"] for row in rows_of(report, "perplexity")}
    assert series["made_up(2,32,64,4)"] == series["made_up(2,64,128,4)"] == "made_up, 2 sinks every=4"
    assert series["made_up(2,32,64,8)"] == "made_up, 2 sinks every=8"
    assert series["another(2,32,64,4)"] == "another, 2 sinks"  # one value only
    assert series["streaming_llm(4,60)"] == "streaming_llm, 4 sinks"


def test_its_fields_are_in_the_tables(report):
    for name in ("perplexity", "latency", "documents", "cards"):
        rows = [row for row in rows_of(report, name) if row["policy"] == "made_up(2,32,64,4)"]
        assert rows, name
        assert {row["policy_fields"] for row in rows} == {"start_size=2, recent_size=32, budget=64, every=4"}


def test_what_is_said_of_it_is_true(report):
    answer = page_of(report).partition('id="answer"')[2].partition("</section>")[0]
    assert "Take made_up(2,32,64,4)" in answer
    assert "It keeps 64 tokens, chosen by its rule (start_size=2, recent_size=32, budget=64, every=4)." in answer
    assert "parse_policy(&#34;made_up(2,32,64,4)&#34;)" in answer
    assert {row["policy"] for row in rows_of(report, "sinks")} <= {"streaming_llm(4,60)"}  # it keeps other tokens, too


def test_its_look_is_its_own_and_the_same_in_every_chart(report):
    legends = re.findall(r'data-series="([^"]*)"><svg.*?stroke="([^"]*)".*?d="([^"]*)"', page_of(report), re.S)
    looks_of = {}
    for name, colour, shape in legends:
        looks_of.setdefault(name, set()).add((colour, shape))
    assert {"made_up, 2 sinks every=4", "made_up, 2 sinks every=8", "another, 2 sinks"} <= set(looks_of)
    assert all(len(found) == 1 for found in looks_of.values()), looks_of
    assert len({next(iter(found))[0] for found in looks_of.values()}) == len(looks_of)  # by colour alone


def test_thirty_unknown_series_and_all_known_ones_differ_without_colour():
    names = [f"method {number}" for number in range(30)]
    with looks(names):
        found = [style(name) for name in (*names, *STYLES)]
    assert len({(look.shape, look.dash) for look in found}) == len(found)
    grey = found[30].colour
    assert grey not in {look.colour for look in found[:30]}


def test_series_of_one_policy_share_its_colour_and_differ_otherwise():
    names = [f"h2o, {sinks} sinks" for sinks in range(20)]
    with looks([*names, "mine, 4 sinks", "mine, 8 sinks", "yours"]):
        found = [style(name) for name in names]
        assert style("h2o") == found[0]
        assert style("mine") == style("mine, 4 sinks") != style("mine, 8 sinks")
    assert len({look.colour for look in found}) == 1
    assert len({(look.shape, look.dash) for look in found}) == len(found)


def test_a_colour_comes_again_with_another_shape_alone():
    names = [f"method {number}" for number in range(30)]
    with looks(names):
        found = [style(name) for name in names]
    assert len({(look.colour, look.shape) for look in found}) == len(found)
