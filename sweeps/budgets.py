"""Which policy at which budget, and does that hold as the text grows longer?

Hypothesis: no policy that chooses older tokens by attention or by keys is measurably better than four sinks and the
newest tokens, at any budget; what is lost shrinks as the budget grows, and does not grow with the text.
https://arxiv.org/abs/2309.17453
Cost: 410 quality cells of 8,192 tokens on ten books, about four hours on two CPU cores; `--dry-run` prints the
estimate. Its report: python analysis/report.py --records records/budgets

    python sweeps/budgets.py
    python sweeps/budgets.py --documents 2 --lengths 2048     a first look; fewer than ten give no interval
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

GRID = Grid(
    name="budgets",
    models=("smollm2-135m",),
    policies=(
        *expand(("full", "streaming_llm", "recent_only"), (256, 512, 1024, 2048), start_sizes=(4,)),
        *expand(("fix_size_l2",), (256, 512, 1024, 2048), strategies=("keep_low",)),
        *expand(
            ("sink_l2", "sink_random", "keydiff", "h2o", "tova", "snapkv", "l2_compress"),
            (256, 512, 1024, 2048),
            start_sizes=(4,),
        ),
    ),
    text="kjv",
    documents=10,
    lengths=(512, 1024, 2048, 4096, 8192),
)

if __name__ == "__main__":
    main(GRID, __doc__)
