"""How many attention sinks does a budget need?

Hypothesis: without sinks perplexity explodes; one repairs most of it, four all, and more gain nothing, as each takes
the place of a recent token. https://arxiv.org/abs/2309.17453
Cost: 130 quality cells of 2,048 tokens on ten books, about ten minutes on two CPU cores; `--dry-run` prints
the estimate. Its report: python analysis/report.py --records records/sinks

    python sweeps/sinks.py
    python sweeps/sinks.py --models pythia-160m-deduped --text pg19     needs the Hugging Face hub, once
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

GRID = Grid(
    name="sinks",
    models=("smollm2-135m",),
    policies=expand(("full", "streaming_llm"), (256, 512), start_sizes=(0, 1, 2, 4, 8, 16)),
    text="kjv",
    documents=10,
    lengths=(2048,),
)

if __name__ == "__main__":
    main(GRID, __doc__)
