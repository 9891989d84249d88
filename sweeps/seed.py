"""What did the seed report measure, and what comes out as the papers mean it?

The seed is the unpublished report on StreamingLLM that kvstream grew out of. Its grid on its own model and books,
twice: as it measured, with each key at its place in the text and layers 0 and 1 never evicting, and as the papers mean.
Hypothesis: its numbers come out again where they are comparable, but hide what eviction costs, as a third of the layers
kept everything. https://arxiv.org/abs/2309.17453
Cost: 130 quality cells of 3,000 tokens and two latency cells; `--dry-run` prints the estimate.
Its report: python analysis/report.py --records records/seed. Read "Published against measured".

    python sweeps/seed.py                                         needs the Hugging Face hub, once
    python sweeps/seed.py --models smollm2-135m --text kjv        offline, on the demo model
"""

from dataclasses import replace

from kvstream.grid import Grid, expand
from kvstream.policies import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.sweep.main import main

MEANT = (
    *(StreamingLLM(4, budget - 4) for budget in (256, 512, 1024)),
    FixSizeL2(512, 0.7, "keep_low"),
    FixSizeL2(512, 0.7, "random"),
    RecentOnly(512),
)
MEASURED = tuple(replace(policy, position="absolute", skip_layers=(0, 1)) for policy in MEANT)
GRID = Grid(
    name="seed",
    models=("pythia-70m-deduped",),
    policies=(Full(), *MEANT, *MEASURED),
    text="pg19",
    documents=10,
    lengths=(2024, 3000),
    contexts=(256, 2024),  # no more than a budget, where TTFT cannot depend on the policy, and the seed's own
    latency_policies=expand(("full", "streaming_llm"), (256, 512, 1024), start_sizes=(4,)),
)

if __name__ == "__main__":
    main(GRID, __doc__)
