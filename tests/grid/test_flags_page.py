"""docs/flags.md is what the parser says, whatever policies with axes of their own there are beside."""

import flags_page

from kvstream.grid.flags import policy_axes


def test_the_page_is_the_parsers():
    there = flags_page.PAGE.read_text().splitlines()
    made = flags_page.page().splitlines()
    own = tuple(f"| `--{name.replace('_', '-')} " for name in policy_axes())
    assert [line for line in there if line not in made] == [], "run python tests/flags_page.py"
    assert [line for line in made if line not in there and not line.startswith(own)] == [], "the same"
    assert [line for line in made if line in there] == there
