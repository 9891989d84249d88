"""The answers in words: a headline for each setting, and what else a reader should know.

Decides nothing: which policy is named is the choice of `answer.sql`, and the numbers are its columns.
"""

from typing import Any

from analysis.words import speed
from analysis.words.metric import cost as cost_of
from analysis.words.metric import metric_of, none_measurable
from analysis.words.wording import SAME, between, capital, caveat, counted, growth, listed, percent, ppl

Row = dict[str, Any]
PER_CENT = "\u00a0%"


def answers(frames: dict[str, list[Row]]) -> list[Row]:
    """One for each setting with quality, then one for each of which only speed was measured."""
    several = len(frames["overview"][0]["settings"]) > 1
    speeds = {row["setting"]: row for row in frames["speed"]}
    found = [answer(row, several, speeds.get(row["setting"])) for row in frames["answer"]]
    for one in found:
        one["more"] += left_out([row for row in frames["perplexity"] if row["setting"] == one["setting"]])
    return found + [speed.alone(row, several) for row in frames["speed"] if not row["has_quality"]]


def answer(row: Row, several: bool, timed: Row | None) -> Row:
    """The answer for one setting; `timed`: the row of its speed, if that was measured."""
    where = f"For {row['setting']}: " if several else ""
    if row["guesses"]:
        headline, more = guessing(row)
    else:
        headline, more = recommended(row, timed)
    return {"setting": row["setting"], "headline": capital(where + headline), "more": more}


def recommended(row: Row, timed: Row | None) -> tuple[str, list[str]]:
    """What to take, or that nothing tried is good enough, and why."""
    pace, spoken = speed.beside_quality(timed) if timed else ("", "")
    metric = metric_of(row)
    cost = metric.spoken(row["cost"])
    against = f"{cost} against the full cache"
    if none_measurable(row):
        spread = between(row["cost_low"], row["cost_high"], metric.show)
        cost = against = f"{SAME} in {metric.named} ({spread}{metric.unit or PER_CENT})"
    memory = f"{percent(row['kv_percent'])} of the KV memory at {row['length']:,} tokens{caveat(row['skip_layers'])}"
    if row["qualifies"]:
        headline = f"take {row['policy']}: {against}, with {memory}{pace}."
        smaller = f"No smaller budget tried stays {metric.bound(metric.tolerance, row['tolerance'])}."
        smallest = "It is the smallest budget tried." if row["smallest_tried"] else smaller
        why = " ".join(filter(None, (keeps(row), sure(row), smallest)))
    else:
        headline = f"no policy tried stays {metric.bound(metric.within, row['tolerance'])}."
        why = f"The closest is {row['policy']}: {cost}, with {memory}. {keeps(row)}"
    more = [why, *filter(None, (unequal(row), spoken, untrained(row)))]
    if row["tight_policy"] and row["tight_policy"] != row["policy"]:
        squeezed = f"{metric.brief(row['tight_cost'])} with {percent(row['tight_kv_percent'])} of the memory"
        squeezed += caveat(row["tight_skip_layers"])
        which = "there is" if row["tight_alone"] else "the best is"
        more.append(f"At {row['tight_budget']:,} tokens {which} {row['tight_policy']}: {squeezed}.")
    if row["sinks_budget"]:
        bare, kept = metric.spoken(row["bare_cost"]), metric.brief(row["sinks_cost"])
        less = f"With {row['sinks_budget']:,} tokens and no attention sink, {row['bare_policy']} is at {bare}"
        more.append(f"{less}; {row['sinks_policy']}, which keeps as many, is at {kept}.")
    if others := row["in_other_modes"]:
        left = f"{others} {'policies' if others > 1 else 'policy'} with others, or other layers that never evict,"
        stand = "are" if others > 1 else "is"
        more.append(
            f"The answer is of policies with positions “{row['focus']}”; {left} {stand} in the table of all results."
        )
    return headline, more


def sure(row: Row) -> str:
    """Between what ends the headline's cost lies, where there is more than one document."""
    metric, (_, ends) = metric_of(row), cost_of(row)
    if not ends or none_measurable(row) or row["paired_documents"] < 2:
        return ""
    figure = metric.brief(row["cost"])
    ends = f"{ends.replace(' … ', ' to ')}{metric.unit or PER_CENT}"
    if row["spread"] == "interval":
        return f"The 95{PER_CENT} interval of the {figure} is {ends}."
    return f"The {figure} is {ends} over {counted(row['paired_documents'], 'document')}, too few for an interval."


def unequal(row: Row) -> str:
    """That policies were not compared on the same documents: the sweep has not ended, or losses are no numbers."""
    fewest, most = row["fewest_documents"], row["most_documents"]
    if fewest == most:
        return ""
    return f"Policies were compared with full on {fewest:,} to {most:,} documents: on the same their order may differ."


def left_out(rows: list[Row]) -> list[str]:
    """Which policies are not among those that are compared, and why: of rows of all lengths of a setting."""
    compared = {row["policy"] for row in rows if row["longest"] and (row["kv_mb"] is not None or not row["evicts"])}
    apart = [row for row in rows if row["in_focus"] and row["budget"] is not None and row["policy"] not in compared]
    if not apart:
        return []
    length = next(row["length"] for row in rows if row["longest"])
    run = {row["policy"] for row in apart if row["longest"]}
    told = []
    for is_run, why in ((False, f"not run as far as {length:,} tokens"), (True, f"KV memory at {length:,} not known")):
        names = dict.fromkeys(row["policy"] for row in apart if (row["policy"] in run) == is_run)
        told += [f"{listed(names)} ({why})"] if names else []
    return [f"Not in this comparison: {'; '.join(told)}."]


def untrained(row: Row) -> str:
    """That full is no yardstick where texts are longer than the model was trained on."""
    length, trained = row["length"], row["trained_context"]
    if not trained or length - 1 <= trained:  # the last token is only predicted
        return ""
    return (
        f"The model was trained on {trained:,} tokens, and these texts have {length:,}: past that the full cache "
        f"may fail, so that being as good says little; lengths up to {trained:,} tell what policies cost within it."
    )


def guessing(row: Row) -> tuple[str, list[str]]:
    """The answer for a model whose full cache does no better than guessing: there is nothing to recommend by."""
    level = f"with the full cache the model’s perplexity is {ppl(row['full_ppl'])}, little better than guessing"
    why = (
        f"Its vocabulary has {row['vocab_size']:,} tokens; a model that only guesses, as one with random weights does, "
    )
    why += "has about that perplexity, so no policy can make it worse. Sweep a trained model."
    return f"nothing to choose by: {level}.", [why]


def keeps(row: Row) -> str:
    """What a policy keeps, for readers who meet its name for the first time."""
    unbounded = growth(row["skip_layers"])
    return kept(row) + (f" Its memory grows with the text all the same: {unbounded}." if unbounded else "")


def kept(row: Row) -> str:
    """What the layers that evict keep: in the policy's own words where sinks and the last tokens are not all of it."""
    budget, first = row["budget"], row["start_size"]
    if row["recent_size"] is None:
        fields = f", chosen by its rule ({row['policy_fields']})" if row["policy_fields"] else ""
        mean = " on average over layers" if "layer_budgets=" in row["policy_fields"] else ""
        return f"It keeps {budget:,} tokens{mean}{fields}."
    if not first:
        return f"It keeps the last {budget:,} tokens."
    sinks = "token" if first == 1 else f"{first} tokens"
    return f"It keeps the first {sinks} of the text (the attention sinks) and the last {row['recent_size']:,}."
