"""Does it matter how tokens are scored, once the first and the last are protected?

Hypothesis: with nothing protected every scorer loses far more than keeping the newest tokens does; with four sinks and
half the budget for the newest, no scorer is measurably better than keeping random tokens.
https://arxiv.org/abs/2605.18053
Cost: 350 quality cells of 1,024 tokens on ten books, about twenty minutes on two CPU cores; `--dry-run` prints the
estimate. Its report: python analysis/report.py --records records/protection

    python sweeps/protection.py
    python sweeps/protection.py --documents 2                    a first look; fewer than ten give no interval
    python sweeps/protection.py --budgets 256 --recents 64,128   in tokens instead of shares
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

GRID = Grid(
    name="protection",
    models=("smollm2-135m",),
    policies=expand(
        ("full", "streaming_llm", "sink_random", "sink_l2", "keydiff", "h2o"),
        (128,),
        start_sizes=(0, 4),
        recents=(0.0, 0.25, 0.5, 0.75),
    ),
    text="kjv",
    documents=10,
    lengths=(1024,),
)

if __name__ == "__main__":
    main(GRID, __doc__)
