"""What does a bounded KV cache gain in TTFT, TPOT, throughput and memory? Pythia's shapes, no download.

Hypothesis: a bounded cache decodes faster than a full one as soon as the context exceeds the budget, at a pace that
does not depend on the context, and eviction itself costs next to nothing. https://arxiv.org/abs/2309.17453
Latency does not depend on the values of weights, so they are random here: these models have no quality.
Cost: 9 cells, each alone on its machine, one after the other, about an hour on two CPU cores; `--dry-run` prints the
estimate. Contexts to 32,768 and batches to 32 are for a GPU, or a night: each cell takes as long as its prompts.

    python sweeps/latency.py
    python sweeps/latency.py --contexts 32768                          goes on in the same records
    python sweeps/latency.py --contexts 2048 --batches 8,32
    python sweeps/latency.py --models ./my-model --contexts 4096
"""

from kvstream import H2O, FixSizeL2, Full, StreamingLLM
from kvstream.grid import Grid
from kvstream.sweep.main import main

GRID = Grid(
    name="latency",
    models=("shape:pythia-70m", "shape:pythia-160m", "shape:pythia-410m"),
    policies=(
        Full(),
        StreamingLLM(4, 252),
        StreamingLLM(4, 1020),
        FixSizeL2(1024, 0.7, "keep_low"),
        H2O(1024, 512, 4),
    ),
    contexts=(512, 2048, 8192),
    batches=(1,),
)

if __name__ == "__main__":
    main(GRID, __doc__)
