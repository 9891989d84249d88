"""Which policies still repeat a random string once more tokens than their budget lie between it and its beginning?

Hypothesis: as sweeps/recall.py finds of sentences, nobody repeats what lies beyond the budget, and within it those that
keep the newest tokens repeat most. Small models copy strings before they follow sentences: https://arxiv.org/abs/2209.11895
Cost: 28 quality cells of 8,192 tokens on four texts, some 20 minutes on two CPU cores; `--dry-run` prints the estimate.
Its report: python analysis/report.py --records records/strings. Read the section "Recall".

    python sweeps/strings.py
    python sweeps/strings.py --documents 2 --lengths 2048    a first look
    python sweeps/strings.py --text recall:strings:pg19      in books
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

GRID = Grid(
    name="strings",
    models=("smollm2-135m",),
    policies=expand(
        ("full", "streaming_llm", "sink_l2", "keydiff", "h2o", "tova", "snapkv"),
        (512,),
        start_sizes=(4,),
    ),
    text="recall:strings",
    documents=4,
    lengths=(8192,),
)

if __name__ == "__main__":
    main(GRID, __doc__)
