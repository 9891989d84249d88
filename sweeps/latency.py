"""What does a bounded KV cache gain in TTFT, TPOT, throughput and memory? Pythia's shapes, no download.

Hypothesis: a bounded cache decodes faster than a full one as soon as the context exceeds the budget, at a pace that
does not depend on the context, and eviction itself costs next to nothing. https://arxiv.org/abs/2309.17453
Latency does not depend on the values of weights, so they are random here: these models have no quality.
Cost: 12 cells, each alone on its machine, one after the other; `--dry-run` prints the estimate.

    python sweeps/latency.py
    python sweeps/latency.py --models shape:pythia-70m --contexts 512,2048 --batches 1
    python sweeps/latency.py --models ./my-model --contexts 4096
"""

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.grid import Grid
from kvstream.sweep.main import main

GRID = Grid(
    name="latency",
    models=("shape:pythia-70m", "shape:pythia-160m", "shape:pythia-410m"),
    policies=(
        Full(),
        StreamingLLM(4, 252),
        StreamingLLM(4, 1020),
        RecentOnly(256),
        RecentOnly(1024),
        FixSizeL2(256, 0.7, "keep_low"),
        FixSizeL2(1024, 0.7, "keep_low"),
    ),
    contexts=(512, 2048, 4096, 8192),
    batches=(1,),
)

if __name__ == "__main__":
    main(GRID, __doc__)
