"""Which code decides numbers, and its digest: part of every cell's key, so that other code makes other cells.

Of this package's modules those count that compute what rows hold. Those that look for files, describe a machine, or
only refuse what cannot be computed, decide nothing: `tests/grid/test_changes.py` lists them with the reason.
"""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# Folders and modules: a change in one of them makes every cell a new one.
_ALL = ("policies", "engine", "inputs/demo_model", "inputs/pythia_shapes", "inputs/weights", "sweep/worker")
QUALITY = (*_ALL, "inputs/documents", "measure/quality", "measure/scores", "sweep/jobs")
_TIMED = ("compiling", "contenders", "latency", "machine_noise", "peak_memory")
LATENCY = (*_ALL, *(f"measure/{name}" for name in _TIMED))


def code_digest(modules: Iterable[str]) -> str:
    """Digest of the source of `modules`, files or folders of the package, as it was when this process first asked."""
    return _digest(tuple(modules))


@cache  # the key of each of ten thousand cells asks
def _digest(modules: tuple[str, ...]) -> str:
    digests = _source_digests()
    names = [name for name in digests for module in modules if name == module or name.startswith(f"{module}/")]
    return hashlib.sha256("".join(digests[name] for name in names).encode()).hexdigest()


@cache
def _source_digests() -> dict[str, str]:
    """The sha256 of each module of the package, by its name."""
    package = Path(__file__).parent.parent
    files = {str(path.relative_to(package).with_suffix("")): path for path in sorted(package.rglob("*.py"))}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
