"""Flags replace axes of a grid, and a bad one is one line and exit code 2; docs/flags.md is what the parser says."""

import flags_page
import pytest

from kvstream.grid.axes import Grid
from kvstream.grid.flags import parse_flags, parser_of, policy_axes
from kvstream.inputs.text_sources import KINDS
from kvstream.policies import H2O, FixSizeL2, Full, KeyDiff, RecentOnly, SinkL2, SinkRandom, StreamingLLM

HUGE = 10**30
GRID = Grid("g", ("m",), (Full(), StreamingLLM(4, 252), FixSizeL2(256, 0.7, "keep_low")), "kjv", 2, (64, 128))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], GRID.policies),
        (["--budgets", "8"], (Full(), StreamingLLM(4, 4), FixSizeL2(8, 0.7, "keep_low"))),
        (["--policies", "recent_only"], (RecentOnly(256),)),
        (["--policies", "full,streaming_llm", "--start-sizes", "0,2"],
         (Full(), StreamingLLM(0, 256), StreamingLLM(2, 254))),
        (["--policies", "streaming_llm(1,7),full"], (Full(), StreamingLLM(1, 7))),
        (["--policies", "recent_only", "--positions", "cache,frozen", "--skip-layers", "0,1"],
         (RecentOnly(256, skip_layers=(0, 1)), RecentOnly(256, position="frozen", skip_layers=(0, 1)))),
        (["--strategies", "random", "--keep-ratios", "0.5,0.9", "--policies", "fix_size_l2"],
         (FixSizeL2(256, 0.5, "random"), FixSizeL2(256, 0.9, "random"))),
        (["--scorers", "h2o,none", "--start-sizes", "2", "--recents", "0.25,100"],
         (Full(), H2O(256, 64, 2), H2O(256, 100, 2), StreamingLLM(2, 254))),
        (["--scorers", "random,l2,keydiff", "--start-sizes", "0,4", "--recents", "0.5", "--budgets", "20"],
         (Full(), *(kind(20, 10, sinks) for kind in (SinkRandom, SinkL2, KeyDiff) for sinks in (0, 4)))),
    ],
)  # fmt: skip
def test_flags_replace_axes(flags, expected):
    assert parse_flags(GRID, "", flags)[0].policies == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budgets", "0"], ["budgets: 0", "1 or more"]),
        (["--budgets", "8,"], ["--budgets: '8,'", "comma list of whole numbers"]),
        (["--lengths", "eight"], ["--lengths: 'eight'", "comma list of whole numbers"]),
        (["--contexts", "none,50"], ["--contexts: 'none,50'", "comma list of whole numbers"]),
        (["--start-sizes=-1"], ["start_size=-1", "at least 0"]),
        (["--lengths", str(HUGE)], [f"lengths: {HUGE}", "up to 2,147,483,647"]),
        (["--batches", "9" * 5000], ["--batches: '999", "comma list of whole numbers"]),
        (["--budgets", "4", "--start-sizes", "8"], ["start_sizes: 8", "budget of 4", "fewer sinks"]),
        (["--policies", "Full"], ["--policies: 'Full'", "choose among full"]),
        (["--policies", "full,"], ["--policies: ''", "choose among full"]),
        (["--policies", "streaming_llm(1)"], ["--policies", "takes start_size"]),
        (["--policies", "streaming_llm(1,2"], ["--policies", "cannot be read", "write it as name(value"]),
        (["--policies", f"recent_only({HUGE})"], ["policies: recent_only", "budgets up to 2,147,483,647"]),
        (["--policies", "recent_only(8)", "--budgets", "16"], ["--budgets", "nothing to vary"]),
        (["--policies", "full,recent_only(8)", "--budgets", "16"], ["--budgets", "nothing to vary"]),
        (["--policies", "full", "--start-sizes", "4"], ["--start-sizes", "nothing to vary"]),
        (["--strategies", ""], ["--strategies: ''", "such as a,b"]),
        (["--strategies", "keep_all"], ["strategy='keep_all'", "keep_low"]),
        (["--keep-ratios", "1e400"], ["keep_ratio=inf", "from 0 to 1"]),
        (["--keep-ratios", "nan"], ["keep_ratio=nan", "from 0 to 1"]),
        (["--keep-ratios", "half"], ["--keep-ratios: 'half'", "such as 0.5,0.7"]),
        (["--positions", "middle"], ["position='middle'", "cache, absolute, frozen"]),
        (["--scorers", "best"], ["--scorers: 'best' is unknown", "choose among none, "]),
        (["--scorers", ""], ["--scorers: '' is unknown", "choose among none, "]),
        (["--scorers", "l2", "--policies", "full"], ["--scorers", "give one of the two"]),
        (["--scorers", "l2", "--recents", "1.5"], ["recents: 1.5", "a share from 0.0 to 1.0"]),
        (["--scorers", "l2", "--recents", "half"], ["--recents: 'half'"]),
        (["--scorers", "l2", "--recents=-1"], ["recents: -1.0 is not valid", "tokens or a share"]),
        (
            ["--scorers", "l2", "--recents", "254", "--start-sizes", "4"],
            ["sink_l2(256,254)", "4 sinks, -2 contested and 254 recent tokens"],
        ),
        (["--lengths", "1"], ["lengths: 1", "2 or more"]),
        (["--lengths", "none"], ["lengths, contexts: both empty", "give lengths"]),
        (["--contexts", "0"], ["contexts: 0", "1 or more"]),
        (["--documents", "two"], ["--documents: 'two'", "whole number from 1"]),
        (["--rounds", "0"], ["--rounds: '0'", "whole number from 1"]),
        (["--threads", "9" * 5000], ["--threads: '999", "whole number from 1"]),
        (["--bos", "yes"], ["--bos", "'yes'", "choose from"]),
        (["--device", "cuda:0"], ["--device", "'cuda:0'", "choose from"]),
        (["--budget", "8"], ["unrecognized arguments: --budget", "--help"]),
        (["two\nlines"], ["unrecognized arguments: two lines", "--help"]),
        (["\x1b[2Jcleared"], ["unrecognized arguments: \\x1b[2Jcleared", "--help"]),
        (["--models"], ["--models", "expected one argument", "--help"]),
        (["--models", "a,,b"], ["--models: 'a,,b'", "such as a,b"]),
    ],
    ids=lambda value: " ".join(value)[:40].encode("unicode_escape").decode(),
)
def test_a_bad_flag_is_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(GRID, "", flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert len(error) < 250
    assert "; " in error, "no remedy"
    assert all(word in error for word in words), error


@pytest.mark.parametrize("name", [*KINDS.partition(", or ")[0].split(", "), "recall:strings"])
def test_help_names_each_kind_of_text(name):
    [text] = [action for action in parser_of(GRID, "")._actions if "--text" in action.option_strings]
    assert f"{name}, " in text.help


def test_the_page_is_the_parsers():
    """Whatever policies with axes of their own there are beside."""
    there = flags_page.PAGE.read_text().splitlines()
    made = flags_page.page().splitlines()
    own = tuple(f"| `--{name.replace('_', '-')} " for name in policy_axes())
    assert [line for line in there if line not in made] == [], "run python tests/flags_page.py"
    assert [line for line in made if line not in there and not line.startswith(own)] == [], "the same"
    assert [line for line in made if line in there] == there
