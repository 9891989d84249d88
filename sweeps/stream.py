"""What does a stream of a quarter of a million tokens lose, and does its memory stay flat?

Hypothesis: with four sinks and keys at their place in the cache the loss at the end is that at the beginning, thirty
times beyond the trained context; with each key at its place in the text it explodes there. https://arxiv.org/abs/2309.17453
Cost: 2 quality cells of 250,000 tokens of one text, about half an hour on two CPU cores; `--dry-run` prints the
estimate. The full cache is not among them, as beyond its trained context it is no yardstick; hence no KL either.
Its report: python analysis/report.py --records records/stream

    python sweeps/stream.py
    python sweeps/stream.py --policies "streaming_llm(4,252)" --lengths 1000000     all there is of this text
"""

from kvstream.grid import Grid
from kvstream.policies import StreamingLLM
from kvstream.sweep.main import main

GRID = Grid(
    name="stream",
    models=("smollm2-135m",),
    policies=(StreamingLLM(4, 1020), StreamingLLM(4, 1020, position="absolute")),
    text="kjv:whole",
    documents=1,
    lengths=(2048, 8192, 32768, 131072, 250000),
    metrics="nll",
)

if __name__ == "__main__":
    main(GRID, __doc__)
