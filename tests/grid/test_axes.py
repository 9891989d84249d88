"""Grids built in Python: what is wrong with one is said where it is built."""

import pytest

from kvstream.grid.axes import Grid, Repeats
from kvstream.policies import Full, RecentOnly, parse_policy

HUGE = 10**30
GIVEN = {"name": "g", "models": ("m",), "policies": (Full(),), "lengths": (50,)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": None}, ["name: None", "letters"]),
        ({"name": "../../x"}, ["name: '../../x'", "letters"]),
        ({"models": "m"}, ["models: 'm'", "give a tuple"]),
        ({"models": ()}, ["models: empty", "at least one"]),
        ({"models": ([],)}, ["models: []", "give a name"]),
        ({"policies": (Full,)}, ["policies: <class", "StreamingLLM(4, 252)"]),
        ({"policies": (RecentOnly(HUGE),)}, [f"policies: recent_only({HUGE})", "up to 2,147,483,647"]),
        ({"latency_policies": ("full",)}, ["latency_policies: 'full'", "StreamingLLM(4, 252)"]),
        ({"text": "b\udcff.txt"}, [r"text: 'b\udcff.txt'", "is not UTF-8; rename it"]),
        ({"lengths": 50}, ["lengths: 50", "give a tuple"]),
        ({"lengths": (50.0,)}, ["lengths: 50.0", "whole numbers"]),
        ({"lengths": (True,)}, ["lengths: True", "whole numbers"]),
        ({"contexts": (float("nan"),)}, ["contexts: nan", "whole numbers"]),
        ({"documents": HUGE}, [f"documents: {HUGE}", "up to 2,147,483,647"]),
        ({"bos": True}, ["bos: True", "choose one of auto"]),
        ({"join_rows": "yes"}, ["join_rows: 'yes'", "True or False"]),
        ({"repeats": 5}, ["repeats: 5", "Repeats("]),
        ({"repeats": Repeats(compiled=True), "contexts": ()}, ["compiled: no latency cells", "give contexts"]),
    ],
    ids=str,
)
def test_a_bad_grid(fields, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Grid(**GIVEN | fields)
    assert all(word in str(caught.value) for word in (*words, "; ")), str(caught.value)


@pytest.mark.parametrize("value", [0, 1.5, "4", True, HUGE])
def test_bad_repeats(value):
    with pytest.raises(ValueError, match=r"^rounds: .* is not valid; give whole numbers"):
        Repeats(rounds=value)
    if value is not True:
        with pytest.raises(ValueError, match=r"^compiled: .* is not valid; give True or False"):
            Repeats(compiled=value)


@pytest.mark.parametrize("label", [None, 8, Full()])
def test_a_label_that_is_no_text(label):
    with pytest.raises(ValueError, match=r"^policy=.* cannot be read; write it as name\(value"):
        parse_policy(label)
