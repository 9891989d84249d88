"""Flags replace axes of a grid, and a bad one is one line and exit code 2."""

import pytest

from kvstream.grid.axes import Grid
from kvstream.grid.flags import parse_flags
from kvstream.policies import FixSizeL2, Full, RecentOnly, StreamingLLM

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
    ],
)  # fmt: skip
def test_flags_replace_axes(flags, expected):
    assert parse_flags(GRID, "", flags)[0].policies == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budgets", "0"], ["budget", "at least 1"]),
        (["--budgets", "8,"], ["--budgets", "comma list"]),
        (["--budgets", "-8"], ["--budgets"]),
        (["--budgets", "eight"], ["--budgets", "'eight'", "digits"]),
        (["--budgets", "4", "--start-sizes", "8"], ["start_sizes: 8", "budget of 4"]),
        (["--policies", "h2o"], ["--policies", "'h2o'", "choose among full"]),
        (["--policies", ""], ["--policies"]),
        (["--policies", "streaming_llm(1)"], ["--policies", "takes start_size"]),
        (["--policies", "streaming_llm(1,2"], ["--policies", "cannot be read"]),
        (["--strategies", "keep_all"], ["strategy='keep_all'", "keep_low"]),
        (["--keep-ratios", "2"], ["keep_ratio=2.0", "from 0 to 1"]),
        (["--keep-ratios", "nan"], ["keep_ratio=nan", "from 0 to 1"]),
        (["--positions", "middle"], ["position='middle'", "cache, absolute, frozen"]),
        (["--lengths", "1"], ["lengths: 1", "2 or more"]),
        (["--contexts", "0"], ["contexts: 0", "1 or more"]),
        (["--batches", "0"], ["batches: 0", "1 or more"]),
        (["--rounds", "0"], ["--rounds", "1 or more"]),
        (["--policies", "recent_only(8)", "--budgets", "16"], ["--budgets", "nothing to vary"]),
        (["--documents", "0"], ["documents: 0", "1 or more"]),
        (["--documents", "two"], ["--documents", "digits"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
        (["--threads", "0"], ["--threads", "1 or more"]),
        (["--budget", "8"], ["unrecognized arguments: --budget"]),
        (["--models"], ["--models", "expected"]),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(GRID, "", flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
