"""Costs by each quality metric in words, and the sentences on divergence: each number from the rows behind it."""

import pytest
from golden import built
from report_oracle import page_of, rows_of

from analysis.words import divergence
from analysis.words.answers import sure
from analysis.words.card_sentences import quality
from analysis.words.metric import cost, metric_of, none_measurable
from analysis.words.wording import nats

ROW = {
    "metric": "kl", "cost": 4.2, "cost_low": 3.1, "cost_high": 5.9, "ppl_change_percent": 1.25, "kl_nats": 0.042,
    "same_top_percent": 93.4, "spread": "interval", "paired_documents": 12, "length": 2048,
}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "value", "bound"),
    [
        ("ppl", "+4.2 %", "within 5 % of the full cache’s perplexity"),
        ("kl", "0.0420 nats", "within a mean KL of 0.05 nats from the full cache"),
        ("top1", "4.2 %", "at the full cache’s most likely token for all but 5 % of the tokens"),
    ],
)
def test_a_cost_and_its_bound_have_the_metrics_unit(metric, value, bound):
    row = ROW | {"metric": metric}
    assert cost(row)[0].replace("\u00a0", " ") == value
    found = metric_of(row)
    assert found.bound(found.within, 5.0).replace("\u00a0", " ") == bound


def test_a_card_shows_the_other_metrics_small():
    facts = quality(ROW)
    assert [fact[0] for fact in facts] == ["KL from full", "Perplexity"]
    assert facts[0][1] == "0.0420\u00a0nats"
    assert "0.0310 … 0.0590" in facts[0][2]
    assert facts[1][1:] == ("+1.2\u00a0%", "the same most likely token as full at 93.4\u00a0% of tokens")
    assert [fact[0] for fact in quality(ROW | {"metric": "ppl"})] == ["Perplexity", "KL from full"]
    assert len(quality(ROW | {"metric": "ppl", "kl_nats": None})) == 1  # records of before


def test_a_cost_that_may_be_none_is_none_measurable():
    assert none_measurable(ROW | {"cost_low": -0.1})
    assert not none_measurable(ROW)
    assert not none_measurable(ROW | {"cost_low": None, "cost_high": None})


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (12.345, "12.3"), (0.00012, "1.2e-04"), (0.0, "0"), (None, "–")]
)
def test_nats_have_three_digits(value, text):
    assert nats(value) == text


def test_the_sentence_names_the_closest_policy_of_each_budget(tmp_path_factory):
    _, report = built("quick", tmp_path_factory)
    rows = rows_of(report, "divergence")
    page = page_of(report).replace("\u00a0", " ")
    for budget in ("256", "1024"):
        best = min((row for row in rows if row["budget"] == budget), key=lambda row: float(row["kl_nats"]))
        assert f"{int(budget):,} tokens: {best['policy']} has the least mean KL from the full cache" in page
        other = 100 - float(best["same_top_percent"])
        assert f"is another than full’s at {other:.1f} % of the tokens" in page
        assert f"more than {float(best['kl_p999_nats']):.2f} nats away" in page
    assert divergence.sentences([], False) == []


@pytest.mark.parametrize(
    ("metric", "spread", "documents", "text"),
    [
        ("ppl", "interval", 10, "The 95 % interval of the +2.0 % is +1.0 to +3.0 %."),
        ("ppl", "range", 3, "The +2.0 % is +1.0 to +3.0 % over 3 documents, too few for an interval."),
        ("kl", "interval", 10, "The 95 % interval of the 0.0200 nats is 0.0100 to 0.0300 nats."),
        ("top1", "range", 2, "The 2.0 % is 1.0 to 3.0 % over 2 documents, too few for an interval."),
        ("ppl", "range", 1, ""),
    ],
)
def test_the_headlines_cost_is_told_with_its_ends(metric, spread, documents, text):
    row = {"metric": metric, "cost": 2.0, "cost_low": 1.0, "cost_high": 3.0}
    assert sure(row | {"spread": spread, "paired_documents": documents}).replace("\u00a0", " ") == text
    told = sure(row | {"cost_low": -1.0, "spread": spread, "paired_documents": documents})
    assert (told == "") == (spread == "interval" or documents == 1), "an interval that holds 0 is in the headline"
