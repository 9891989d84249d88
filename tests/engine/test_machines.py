"""Other processors' rounding, on this one: the demo model is accepted and the engine is exact whatever kernels run.

torch and MKL choose kernels by what the processor can; these settings have them choose what they would on another. Each
is read when torch is imported, so each runs in a process of its own.
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
SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
]
DTYPES = ["float32", "bfloat16", "float16"]
# Of the exactness suite: each kind of policy in the position mode in which every rank counts, against the oracle with
# float64 and float32 weights, and every dtype on grouped queries.
CORE = "((test_replay_and_decode_equal_the_oracle or (every_dtype and llama)) and not frozen and not absolute"
CORE += " and not skip_layers)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "dtype"),
    zip(SETTINGS, DTYPES * 2),
    ids=lambda value: "=".join(next(iter(value.items()))) if isinstance(value, dict) else value,
)
def test_the_engine_is_right_under_other_machines_rounding(setting, dtype):
    """Each setting with the demo model in one dtype."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    demo = f"{__file__}::{test_the_demo_model_is_accepted_and_computes_what_it_does.__name__}[{dtype}]"
    chosen = [str(HERE / "test_exactness.py"), demo, "-k", f"{CORE} or the_demo_model"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = quiet | {"OMP_WAIT_POLICY": "PASSIVE"} | setting
    run = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 10, run.stdout[-3000:]


@pytest.mark.parametrize("dtype", DTYPES)
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
