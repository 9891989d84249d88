"""Words on a terminal: numbers and what they count agree."""

import pytest

from kvstream.grid.terminal import counted


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 cells"), (1, "1 cell"), (2, "2 cells"), (1200, "1,200 cells")], ids=str
)
def test_things_are_counted_in_words_that_agree(count, words):
    assert counted(count, "cell") == words
