"""Does a policy lose more as the text grows longer?

Hypothesis: what is lost grows until the text is some times the budget, and then no more, as a policy that bounds its
cache has forgotten as much at any later token. https://arxiv.org/abs/2309.17453
Cost: 110 quality cells of 8,192 tokens on ten books, about fifty minutes on two CPU cores; `--dry-run` prints the
estimate. Lengths are prefixes of the same runs. Its report: python analysis/report.py --records records/length

    python sweeps/length.py
    python sweeps/length.py --budgets 256 --documents 2 --lengths 512,1024,2048
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

GRID = Grid(
    name="length",
    models=("smollm2-135m",),
    policies=(
        *expand(("full", "streaming_llm", "recent_only"), (512,), start_sizes=(4,)),
        *expand(("fix_size_l2",), (512,), strategies=("keep_low",)),
        *expand(
            ("sink_l2", "sink_random", "keydiff", "h2o", "tova", "snapkv", "l2_compress"), (512,), start_sizes=(4,)
        ),
    ),
    text="kjv",
    documents=10,
    lengths=(512, 1024, 2048, 4096, 8192),
)

if __name__ == "__main__":
    main(GRID, __doc__)
