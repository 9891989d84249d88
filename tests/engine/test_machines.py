"""Other processors' rounding, on this one: the demo model is accepted and the engine is exact whatever kernels run.

torch and MKL choose kernels by what the processor can; these settings have them choose what they would on another. They
are read when torch is imported, so each machine is a process of its own; this one's own kernels run here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvstream import Full, KVStreamCache, StreamingLLM, decode, load_model, replay

HERE = Path(__file__).parent
MACHINES = {
    "AMD": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "1"},
    "old": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"},
}
# Of the exactness suite: each kind of policy in float64 and float32, and every dtype on grouped queries.
CORE = "(test_replay_and_decode_equal_the_oracle and not skip_layers) or (every_dtype and llama)"


@pytest.mark.long
@pytest.mark.parametrize(("machine", "dtypes"), [("AMD", "[float32] or [bfloat16]"), ("old", "[float16]")])
def test_the_engine_is_right_under_other_machines_rounding(machine, dtypes):
    """The suite's core, and the demo model in one dtype or two."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not timed"]
    chosen = [str(HERE / "test_exactness.py"), __file__, "-k", f"{CORE} or (the_demo_model and ({dtypes}))"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = quiet | {"OMP_WAIT_POLICY": "PASSIVE"} | MACHINES[machine]
    run = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 15, run.stdout[-3000:]


@pytest.fixture
def many_threads():
    """Two, or as many as one of the machines above has."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(dtype, marks=pytest.mark.long) for dtype in ("float32", "float16"))]
)
def test_the_demo_model_is_accepted_and_computes_what_it_does(dtype, many_threads):
    """Its hidden states reach 24,800, so that its own rounding is coarse."""
    model, tokenizer = load_model("smollm2-135m", dtype=dtype)
    KVStreamCache(model, StreamingLLM(4, 12))
    ids = tokenizer(
        "In the beginning God created the heaven and the earth. And the earth was without", return_tensors="pt"
    )
    ids_1T = ids.input_ids
    with torch.inference_mode():
        own = torch.log_softmax(model(ids_1T).logits[0, :-1].double(), -1).gather(1, ids_1T[0, 1:, None])[:, 0]
    for nll in (replay(model, ids_1T, Full()), decode(model, ids_1T[:, :8], Full()).nll_nats):
        # Its weights are good: a wrong computation costs nats.
        assert (nll + own[: len(nll)]).abs().mean() < {"float32": 1e-3, "float16": 2e-2, "bfloat16": 2e-1}[dtype]
