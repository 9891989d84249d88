"""Compiles the CUDA backend's kernels for a card that is not here, as replay would launch them there; run as a script.

    python tests/engine/kernel_compiler.py 90 bfloat16 64      compute capability × 10, dtype, head size

Triton's compiler needs no GPU: a driver that says which card it is stands in, and launches stop once they are compiled.
What kernels would have written is zeros, so nothing is said about results: those are the interpreter's to check. Prints
a line per kernel: its name, registers a thread, bytes of stack a thread, bytes of shared memory, warps, and which
of its parts are switched on. A chunk that would be left to the reference is an error.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from transformers import AutoModelForCausalLM, LlamaConfig
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from kvstream import H2O, TOVA, FixSizeL2, Full, KeyDiff, KVStreamCache, L2Compress, SinkL2, SnapKV, StreamingLLM
from kvstream.engine import layer, model_check, scoring
from kvstream.engine.backends import backend_for
from kvstream.engine.backends.cuda import backend, tiles
from kvstream.engine.backends.reference import Reference
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.replay import replay_windows, windows
from kvstream.engine.scanned_layer import ScannedLayer

# https://docs.nvidia.com/cuda/cuda-c-programming-guide/ (shared memory per thread block, at most)
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
POLICIES = [
    Full(),
    StreamingLLM(4, 252),
    SinkL2(256, 128, 4),
    FixSizeL2(256, 0.5, "random"),
    FixSizeL2(256, 0.5, "keep_low", position="absolute"),
    KeyDiff(256, 128, 4),
    L2Compress(0.5, 256),
    H2O(256, 128, 4),
    H2O(40, 20, 4, normalise="age", position="absolute"),
    TOVA(3000),
    SnapKV(256),
]


class Card:
    """A driver of Triton's whose card can only be compiled for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack that each thread takes, as NVIDIA's own tool says."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    assert found, said.stdout
    return int(found[1]), int(found[2])


def stand_in(capability: int) -> None:
    """Have launches compile, tensors that kernels would fill begin as zeros, and all but float64 go to the kernels."""
    compiled, run, limit = set(), JITFunction.run, SHARED_BYTES[capability]

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.metadata.shared > limit:
            raise OutOfResources(kernel.metadata.shared, limit, "shared memory")
        if kernel.hash not in compiled:
            compiled.add(kernel.hash)
            registers, stack = usage(kernel.asm["cubin"])
            parts = sorted(name for name, value in kwargs.items() if value is True)
            meta = kernel.metadata
            print(self.__name__, registers, stack, meta.shared, meta.num_warps, *parts, flush=True)
        return kernel

    def left_over(self, layer, *_):
        raise AssertionError(f"no kernel takes {layer.policy}")

    class Properties:
        shared_memory_per_block_optin = limit

    driver.set_active(Card(capability))
    JITFunction.run = compile_only
    torch.Tensor.new_empty = lambda self, *shape, **more: self.new_zeros(*shape, **more)
    torch.empty_like = torch.zeros_like
    torch.cuda.get_device_properties = lambda *_: Properties
    torch.cuda.get_device_name = lambda *_: str(capability)
    tiles.timed = lambda work, device: 1.0  # all tiles are compiled before they are timed
    tiles.processors = lambda device: 1
    tiles.note = lambda line: None
    model_check.check = lambda *_: None  # it would find that zeros are no outputs
    for name in ("causal", "bounded", "scan", "shed"):
        setattr(Reference, name, left_over)
    for module in (layer, scoring):
        module.backend_for = lambda device, dtype: (
            backend_for(device, dtype) if dtype == torch.float64 else backend.Cuda(device)
        )


def main(capability: int, dtype: str, head_size: int) -> None:
    """Replay two texts under each policy, in two chunks and a token, and have tokens leave as after a recorded step."""
    stand_in(capability)
    config = LlamaConfig(
        vocab_size=50_304, hidden_size=4 * head_size, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=1, intermediate_size=64, head_dim=head_size,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
    ids_BT = torch.randint(0, 1000, (2, 2 * CHUNK_SIZE + 2), generator=torch.Generator().manual_seed(1))
    for policy in POLICIES:
        cache = KVStreamCache(model, policy)
        for _ in replay_windows(model, windows([ids_BT], CHUNK_SIZE), cache):
            pass
        for each in cache.own_layers():
            if isinstance(each, ScannedLayer):
                each.backend.shed(each, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
