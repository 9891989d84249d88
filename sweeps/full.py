"""Which KV-cache policy, which budget, how many attention sinks? Three sizes of Pythia on ten books.

Hypothesis: at every budget streaming_llm beats recent_only and fix_size_l2; beyond the trained context of 2,048
tokens the full cache's perplexity explodes and streaming_llm's does not. https://arxiv.org/abs/2309.17453
Cost: 1,470 quality cells of 8,192 tokens and 24 latency cells; `--dry-run` prints the estimate. Latency cells that do
not fit a machine's memory are recorded as such, and the rest is run. On GPUs the kernel of h2o, tova, snapkv, keydiff
and l2_compress was not run yet: `--policies` names others.

    python sweeps/full.py                              needs the Hugging Face hub, once: docs/first_run.md
    python sweeps/full.py --models smollm2-135m --text kjv --documents 5       offline
    python sweeps/full.py --policies full,streaming_llm --budgets 256 --start-sizes 1,2,4,8
    ray start --head; python sweeps/full.py      on a Ray that runs, .venv activated: docs/clusters.md, with a token
"""

from kvstream.grid import Grid, expand
from kvstream.sweep.main import main

GRID = Grid(
    name="full",
    models=("pythia-70m-deduped", "pythia-160m-deduped", "pythia-410m-deduped"),
    policies=(
        *expand(
            ("full", "streaming_llm", "recent_only", "fix_size_l2"),
            (256, 512, 1024),
            start_sizes=(0, 1, 2, 4, 8),
            strategies=("keep_low", "keep_high", "random"),
        ),
        *expand(
            ("sink_l2", "sink_random", "keydiff", "h2o", "tova", "snapkv", "l2_compress"),
            (256, 512, 1024),
            start_sizes=(4,),
        ),
    ),
    text="pg19",
    documents=10,
    lengths=(512, 1024, 2048, 4096, 8192),
    contexts=(512, 2048, 4096, 8192),
    batches=(1, 8),
    latency_policies=expand(("streaming_llm", "recent_only", "fix_size_l2"), (256, 1024)),
)

if __name__ == "__main__":
    main(GRID, __doc__)
