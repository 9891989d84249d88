"""What does a bounded KV cache cost and gain? The seed project's policies on a small trained model and two books.

Hypothesis: with four attention sinks, 256 cached tokens stay within 15 % of the full cache's perplexity; without
sinks, the same 256 tokens lose half as much again or more. https://arxiv.org/abs/2309.17453
Cost: 18 quality cells of 4,096 tokens and 2 latency cells; about ten minutes on two CPU cores.

    python sweeps/quick.py                  starts Ray by itself, or uses one that runs
    python sweeps/quick.py --dry-run        prints the cells and what they would cost
    python sweeps/quick.py --lengths 8192   flags replace an axis
"""

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.grid import Grid, Repeats
from kvstream.sweep import main

GRID = Grid(
    name="quick",
    models=("smollm2-135m",),
    policies=(
        Full(),
        *(StreamingLLM(sinks, budget - sinks) for budget in (256, 1024) for sinks in (1, 4)),
        *(RecentOnly(budget) for budget in (256, 1024)),
        *(FixSizeL2(256, 0.7, strategy) for strategy in ("keep_low", "random")),
    ),
    text="kjv",
    documents=2,
    lengths=(512, 1024, 2048, 4096),
    contexts=(512, 2048),
    repeats=Repeats(prefills=5, rounds=20),
    latency_policies=(
        *(StreamingLLM(4, budget - 4) for budget in (256, 1024)),
        *(RecentOnly(budget) for budget in (256, 1024)),
        FixSizeL2(256, 0.7, "keep_low"),
    ),
)

if __name__ == "__main__":
    main(GRID, __doc__)
