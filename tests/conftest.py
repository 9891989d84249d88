"""How tests are run, and what they share; models are in tiny.py.

Here nothing imports torch at once: of several processes of pytest the first only hands tests out.
"""

import logging
import os
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
from apart import CELLS, apart, gated
from driving import digest
from nursery import nest

from kvstream.grid import terminal

NO_TRITON = find_spec("triton") is None


# What asks for a Ray, but for long tests, which are handed out one by one.
SHARED = re.compile(r"(?<!mark\.long\n)^def \w+\(.*\b(ray_here|start)\b *[,)]", re.MULTILINE)
COMPUTES = ("engine", "policies", "inputs")  # folders of tests for which the engine's functions are compiled
LONGEST = ("test_exactness", "test_against_oracle", "test_browser", "test_calls", "test_report", "test_evictions")
LONG = ("test_each_command_does", "test_ten_million", "test_kills_at_random", "test_ray_up", "test_a_driver_that_is")


@lru_cache
def group_of(path):
    """What one of the processes runs: a file, or all files that use a Ray of the tests', or the nursery, together."""
    return "ray" if SHARED.search(Path(path).read_text()) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(str(config.rootpath / nodeid.partition("::")[0]))

        def _assign_work_unit(self, node):
            if node is not self.nodes[0]:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    return ByGroup(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config, items):
    """Have what takes longest begin first, else one of several processes ends with that alone.

    Of those of `make test` one takes files from the front and the others from the back. The engine's are at the front,
    so that its functions are compiled by one alone.
    """
    if "not long" not in config.option.markexpr:
        items.sort(key=lambda item: next((at for at, name in enumerate(LONG) if name in item.name), len(LONG)))
        return
    rank = {name: at for at, name in enumerate(LONGEST)}

    def place(item):
        at = rank.get(item.path.stem, len(LONGEST))
        in_front = item.path.parent.name in COMPUTES and group_of(str(item.path)) != "ray"
        return at if in_front else 2 * len(LONGEST) + (1 if group_of(str(item.path)) == "ray" else -at)

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_model():
    """Factory: (family, dtype, vocab=97) → model."""
    from tiny import build_model

    return build_model


@pytest.fixture(scope="session")
def tiny_neox():
    """Factory: dtype → GPT-NeoX, 4 of 16 dimensions rotary, parallel residual."""
    from tiny import FLOAT32, build_model

    return lambda dtype=FLOAT32: build_model("neox", dtype)


@pytest.fixture(scope="session")
def tiny_llama():
    """Factory: dtype → Llama, 4 query heads on 2 kv heads."""
    from tiny import FLOAT32, build_model

    return lambda dtype=FLOAT32: build_model("llama", dtype)


@pytest.fixture(scope="session")
def tokens():
    """Factory: (T, seed) → T token ids, (T,)."""
    from tiny import draw_tokens

    return draw_tokens


@pytest.fixture(scope="session")
def trace_of():
    """(family, ids, policy) → what the oracle finds with float64 weights, kept in `oracle_results.npz` or computed."""
    from exactness_cases import spec_of
    from oracle_store import Store
    from tiny import VOCAB, build_model

    store = Store(build_model)
    yield lambda family, ids, policy, vocab=VOCAB: store.trace(family, tuple(ids.tolist()), spec_of(policy), vocab)
    if "KVSTREAM_STORE_ORACLE" in os.environ:
        store.save()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a tiny model and three texts of 500 words."""
    from tiny import write_world

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def ray_here():
    """A Ray of this test process, which sweeps in the process use; gives its workers' session.

    It counts two CPUs, and two GPUs that are not there.
    """
    import ray

    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        own = {"address": "local", "num_cpus": 2, "num_gpus": 2, "include_dashboard": False, "_temp_dir": folder}
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
