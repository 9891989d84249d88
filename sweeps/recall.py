"""Which policies still recall a fact once more tokens than their budget lie between it and the question?

Hypothesis: beyond its window streaming_llm recalls nothing; policies that choose older tokens by attention recall some
of what full does, and less than full, as no question tells them what to keep; those that choose by keys recall less.
https://arxiv.org/abs/2404.06654
Cost: 78 quality cells of 4,096 tokens on six texts, some 25 minutes on two CPU cores; `--dry-run` prints the estimate.
Its report: python analysis/report.py --records records/recall. Read the section "Recall": how many of full's right
answers each policy has at distances beyond its budget. Where full has none right the model cannot do the task.

    python sweeps/recall.py
    python sweeps/recall.py --documents 2 --lengths 2048    a first look
    python sweeps/recall.py --text recall:strings           random strings, for models that do not follow sentences
    python sweeps/recall.py --text recall:sentences:pg19 --lengths 16384    in books, up to 8,192 tokens apart
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

GRID = Grid(
    name="recall",
    models=("smollm2-135m",),
    policies=expand(
        ("full", "streaming_llm", "sink_l2", "keydiff", "h2o", "tova", "snapkv"),
        (256, 512),
        start_sizes=(4,),
    ),
    text="recall:",
    documents=6,
    lengths=(4096,),
)

if __name__ == "__main__":
    main(GRID, __doc__)
