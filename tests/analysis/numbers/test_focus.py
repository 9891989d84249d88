"""Which policies the figures show of many: the usual sinks and recents of each method, shared budgets too."""

from dataclasses import replace

import pytest
from golden import FULL, PLAIN, P, database_of, streaming


def shared(sinks, budget, excess):
    """A streaming_llm whose layers share the budget."""
    policy = streaming(sinks, budget - sinks, excess)
    label = policy.label.replace(")", ",layer_budgets='pyramid')")
    return replace(policy, label=label, fields=policy.fields | {"layer_budgets": "pyramid"})


def chosen(recents, excess):
    fields = {"budget": 64, "recent_size": recents, "start_size": 4}
    return P(f"h2o(64,{recents},start_size=4)", "h2o", excess, 64, 4, fields=fields, scorer="h2o")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    ends = [kind(sinks, 64, 0.2) for kind in (lambda s, b, e: streaming(s, b - s, e), shared) for sinks in (1, 4, 8)]
    policies = (FULL, *ends, chosen(16, 0.3), chosen(32, 0.2), chosen(48, 0.1))
    plan = replace(PLAIN, policies=policies, documents=PLAIN.documents[:2], tokens=200, lengths=(200,))
    return database_of(plan, tmp_path_factory.mktemp("focus"))


def test_four_sinks_and_half_the_budget_are_usual(database):
    usual = {policy for (policy,) in database.sql("SELECT policy FROM focus WHERE usual_ends").fetchall()}
    assert usual == {
        "full",
        "streaming_llm(4,60)",
        "streaming_llm(4,60,layer_budgets='pyramid')",
        "h2o(64,32,start_size=4)",
    }


def test_a_shared_budget_is_a_series_of_its_own(database):
    series = dict(database.sql("SELECT policy, series FROM policies").fetchall())
    assert series["streaming_llm(4,60,layer_budgets='pyramid')"] == "streaming_llm, 4 sinks pyramid"
    assert series["streaming_llm(4,60)"] == "streaming_llm, 4 sinks"
