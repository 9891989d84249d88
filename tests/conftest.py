"""Tiny random models and token sequences, seeded, without a network.

Weights are drawn wide enough that attention is far from uniform and an evicted key changes the loss visibly; biases
and norm weights are drawn too, so that one forgotten shows. Both dtypes of a model hold the same float32 numbers.
Models are built once and shared: no test may change one.
"""

import logging
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import pytest

# Triton reads this when it is first imported, which torch may do.
if not glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
import torch
from apart import CELLS, apart, gated
from driving import digest
from exactness_cases import spec_of
from nursery import nest
from oracle_store import Store
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from kvstream.grid import terminal

NO_TRITON = find_spec("triton") is None
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # threads of two processes on the same cores would mostly wait for one another

VOCAB = 97
WORDS = [f"w{number}" for number in range(96)]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


SHARED = re.compile(r"^def \w+\(.*\b(ray_here|start)\b", re.MULTILINE)
LONGEST = ("test_exactness", "test_browser", "test_calls", "test_machines", "test_report")


def pytest_terminal_summary(terminalreporter):
    """Say what could not be run on this machine, in a line."""
    if NO_TRITON and any("test_cuda_kernels" in report.nodeid for report in terminalreporter.getreports("skipped")):
        terminalreporter.line("Triton is not installed, so the CUDA kernels were not tested: pip install triton")


@lru_cache
def group_of(path):
    """What one of two processes runs: a file, or all files that use a Ray of the tests', or the nursery, together."""
    return "ray" if SHARED.search(Path(path).read_text()) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(str(config.rootpath / nodeid.partition("::")[0]))

    return ByGroup(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    """Begin with the groups that take longest, else one of two processes ends with one of them alone."""
    first = {name: place for place, name in enumerate(LONGEST, 1)}
    items.sort(key=lambda item: 0 if group_of(str(item.path)) == "ray" else first.get(item.path.stem, 9))


@lru_cache
def build_model(family: str, dtype: torch.dtype, vocab: int = VOCAB):
    """`neox`, `neox_serial` (no parallel residual), `neox_tied`, `llama` (4 query heads, 2 kv heads) or `qwen2`."""
    if dtype != torch.float32:
        return build_model.__wrapped__(family, torch.float32, vocab).to(dtype)
    if family in ("llama", "qwen2"):
        config_class, model_class = (
            (LlamaConfig, LlamaForCausalLM) if family == "llama" else (Qwen2Config, Qwen2ForCausalLM)
        )
        model = model_class(config_class(**SHAPE, vocab_size=vocab, num_key_value_heads=2))
    else:
        parallel, tied = family != "neox_serial", family == "neox_tied"
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **SHAPE,
                vocab_size=vocab,
                rotary_pct=0.25,
                use_parallel_residual=parallel,
                tie_word_embeddings=tied,
            )
        )
    generator = torch.Generator().manual_seed(2309)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            is_gain = "norm" in name and name.endswith("weight")
            weight.copy_(1.0 + 0.2 * drawn if is_gain else 0.15 * drawn)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model():
    """Factory: (family, dtype, vocab=97) → model."""
    return build_model


@pytest.fixture(scope="session")
def tiny_neox():
    """Factory: dtype → GPT-NeoX, 4 of 16 dimensions rotary, parallel residual."""
    return lambda dtype=torch.float32: build_model("neox", dtype)


@pytest.fixture(scope="session")
def tiny_llama():
    """Factory: dtype → Llama, 4 query heads on 2 kv heads."""
    return lambda dtype=torch.float32: build_model("llama", dtype)


@pytest.fixture(scope="session")
def tokens():
    """Factory: (T, seed) → T token ids, (T,).

    They are distinct up to the vocabulary's size, since equal tokens have equal key norms in layer 0 and one test
    alone is about ties; `distinct=False` draws freely.
    """

    def draw(length: int, seed: int = 0, *, distinct: bool = True, vocab: int = VOCAB) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if distinct and length <= vocab:
            return torch.randperm(vocab, generator=generator)[:length]
        return torch.randint(vocab, (length,), generator=generator)

    return draw


@pytest.fixture(scope="session")
def trace_of():
    """(family, ids, policy) → what the oracle finds with float64 weights, kept in `oracle_results.npz` or computed."""
    store = Store(build_model)
    yield lambda family, ids, policy, vocab=VOCAB: store.trace(family, tuple(ids.tolist()), spec_of(policy), vocab)
    if "KVSTREAM_STORE_ORACLE" in os.environ:
        store.save()


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_model):
    """A folder with a tiny model and three texts of 500 words."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model("neox", torch.float32).save_pretrained(folder / "model")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*WORDS, "?"])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "model")
    (folder / "texts").mkdir()
    for seed, name in enumerate(("one", "two", "three")):
        text = " ".join(random.Random(seed).choices(WORDS, k=500))
        (folder / "texts" / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def ray_here():
    """A Ray of this test process, with two CPUs, which sweeps in the process use; gives its workers' session."""
    import ray

    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        own = {"address": "local", "num_cpus": 2, "include_dashboard": False, "_temp_dir": folder}
        with pytest.MonkeyPatch.context() as patch:
            stub, session = nest(folder)
            patch.setattr(sys, "executable", stub)
            ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
        yield session
        ray.shutdown()


@pytest.fixture
def start():
    """A way to start commands in sessions of their own that share a Ray folder: `start(command, **environment)`."""
    with apart() as start:
        yield start


@pytest.fixture(scope="session")
def whole(world, tmp_path_factory):
    """Digests of a gated sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    command = gated(world, folder)
    (folder / "gate").unlink()
    with apart() as start:
        sweep = start(command)
        assert sweep.ended() == 0, sweep.err()
        sweep.leaves_nothing()
    result = digest(folder / "records")
    assert len(result) == CELLS
    return result


@pytest.fixture(autouse=True)
def _nothing_is_open() -> Iterator[None]:
    """A bucket that one test opens must not end the next: `leave` ends the process where there is one."""
    yield
    terminal.opened.clear()
