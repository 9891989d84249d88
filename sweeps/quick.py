"""What does a bounded KV cache cost and gain? Attention sinks, a recent window and L2 norms on a small trained model.

Hypothesis: with four attention sinks, 512 cached tokens of 2,048 stay within 5 % of the full cache's perplexity and are
decoded faster than all of them, and 1,536 stay within 1 %; without sinks, 128 tokens lose several times what they lose
with them. https://arxiv.org/abs/2309.17453
Cost: 18 quality cells of 2,048 tokens and 1 latency cell; three to eight minutes on two CPU cores.

    python sweeps/quick.py                  starts Ray by itself, or uses one that runs
    python sweeps/quick.py --dry-run        prints the cells and what they would cost
    python sweeps/quick.py --lengths 8192   flags replace an axis
"""

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.grid import Grid, Repeats
from kvstream.sweep.main import main

BUDGETS = (128, 512, 1536)

GRID = Grid(
    name="quick",
    models=("smollm2-135m",),
    policies=(
        Full(),
        *(StreamingLLM(4, budget - 4) for budget in BUDGETS),
        RecentOnly(128),
        FixSizeL2(128, 0.7, "keep_low"),
    ),
    text="kjv",
    documents=3,
    lengths=(512, 1024, 2048),
    contexts=(2048,),  # beyond every budget: elsewhere nothing is saved
    # Prefills take most of a latency cell's time, and the answer is about the tokens after them.
    repeats=Repeats(prefills=1, rounds=16),
    latency_policies=tuple(StreamingLLM(4, budget - 4) for budget in BUDGETS),
)

if __name__ == "__main__":
    main(GRID, __doc__)
