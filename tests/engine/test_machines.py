"""Other processors' rounding, on this one: the demo model is accepted and the engine is exact whatever kernels run.

torch and MKL choose kernels by what the processor can; these settings have them choose what they would on another. Each
is read when torch is imported, so each runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvstream import Full, KVStreamCache, StreamingLLM, decode, load_model, replay

HERE = Path(__file__).parent
SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
]
# Of the exactness suite: each kind of eviction in the position mode in which every rank counts, against the oracle on
# partial rotation, and in each dtype on grouped queries.
CORE = (
    "((test_replay_and_decode_equal_the_oracle and neox and not serial) or (every_dtype and llama)) and not frozen "
    "and not skip_layers and not absolute and (full or streaming_llm or keep_low or random)"
)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: next("=".join(item) for item in setting.items()))
def test_the_engine_is_right_under_other_machines_rounding(setting):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--durations=0"]
    chosen = [f"{HERE}/test_exactness.py", f"{HERE}/test_machines.py", "-k", f"({CORE}) or the_demo_model"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = quiet | {"OMP_WAIT_POLICY": "PASSIVE"} | setting
    run = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_demo_model_is_accepted_and_computes_what_it_does(dtype):
    """Its hidden states reach 24,800, so that its own rounding is coarse."""
    model, tokenizer = load_model("smollm2-135m", dtype=dtype)
    KVStreamCache(model, StreamingLLM(4, 12))
    ids = tokenizer(
        "In the beginning God created the heaven and the earth. And the earth was without", return_tensors="pt"
    )
    ids_1T = ids.input_ids
    with torch.inference_mode():
        own = torch.log_softmax(model(ids_1T).logits[0, :-1].double(), -1).gather(1, ids_1T[0, 1:, None])[:, 0]
    for nll in (replay(model, ids_1T, Full()), decode(model, ids_1T, Full()).nll_nats):
        # Its weights are good: a wrong computation costs nats.
        assert (nll + own).abs().mean() < {"float32": 1e-3, "float16": 2e-2, "bfloat16": 2e-1}[dtype]
