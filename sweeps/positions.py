"""Which position do cached keys have: that in the cache, that in the text, or that of the moment they came in?

Hypothesis: within the trained context the place in the cache and the place in the text cost the same; keys frozen at
the position that the cache had when they came in, a known bug of cache code, lose more; layers that never evict hide
what eviction costs, and cost the memory. https://arxiv.org/abs/2309.17453
Cost: 90 quality cells of 2,048 tokens on ten books, about six minutes on two CPU cores; `--dry-run` prints the
estimate. Its report: python analysis/report.py --records records/positions

    python sweeps/positions.py
    python sweeps/positions.py --text kjv:whole --documents 1 --lengths 32768     beyond what the model was trained on
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

POSITIONS = ("cache", "absolute", "frozen")
GRID = Grid(
    name="positions",
    models=("smollm2-135m",),
    policies=(
        *expand(("full", "streaming_llm"), (256,), start_sizes=(4,), positions=POSITIONS),
        *expand(("recent_only",), (256,), positions=POSITIONS),
        *expand(("streaming_llm",), (256,), start_sizes=(4,), positions=("absolute",), skip_layers=((0, 1),)),
        *expand(("recent_only",), (256,), positions=("absolute",), skip_layers=((0, 1),)),
    ),
    text="kjv",
    documents=10,
    lengths=(2048,),
)

if __name__ == "__main__":
    main(GRID, __doc__)
