"""Where numbers came from: versions, commit and hardware. Recorded with every cell, never part of its identity."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def environment() -> dict[str, str | int | None]:
    """Describe this process's machine and software, as flat JSON values."""
    packages = {name: _version(name) for name in ("kvstream", "torch", "transformers", "ray", "numpy")}
    return {
        "python": platform.python_version(),
        **packages,
        "commit": _commit(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": _gpu_model(),
    }


def _version(package: str) -> str | None:
    """Version of an installed package; None for one that is only on the path, as kvstream itself may be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout this package runs from, `+` appended if it was changed since; None outside one."""
    here = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return run.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed package may lie inside another project's checkout
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
