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
    import torch

    packages: dict[str, str | None] = {}
    for name in ("kvstream", "torch", "transformers", "ray", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:  # it is only on the path, as kvstream itself may be
            packages[name] = None
    return {
        "python": platform.python_version(),
        **packages,
        "commit": _commit(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    """Commit of the checkout this package runs from, `+` appended if it was changed since; None outside one."""
    here = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed package may lie in another project's checkout
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
