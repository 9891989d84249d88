"""docs/adding-a-policy.md is right, and complete: in a copy of the package its two steps are all that it takes."""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "adding-a-policy.md").read_text()
FILE, LINE, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def copied(folder):
    """A copy of the package and its tests with the example added: its file and its line, and nothing else touched."""
    # With their __pycache__, so that kernels need not be compiled again.
    for name in ("kvstream", "analysis", "sweeps", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.png", "*.svg", "*.parquet"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "example.py").write_text(USE)
    (folder / "kvstream" / "policies" / "value_norm.py").write_text(FILE)
    registry = folder / "kvstream" / "policies" / "__init__.py"
    before = registry.read_text()
    last = re.findall(r"^from kvstream\.policies\.\w+ import \w+ as \w+\n", before, re.MULTILINE)[-1]
    registry.write_text(before.replace(last, last + LINE))
    return folder


def test_all_follows_from_the_fields(start, tmp_path, world):
    folder = copied(tmp_path)
    added = folder / "tests" / "policies" / "added.py"
    command = [sys.executable, str(added), str(world / "model"), str(world / "texts" / "one.txt")]
    done = start(command, PYTHONPATH=f"{folder}:{folder / 'tests'}")
    assert done.ended() == 0, done.out()[-4000:] + done.err()[-4000:]
    assert done.out().endswith("all follows\n")


def test_the_package_knows_nothing_of_the_example():
    for path in [*ROOT.glob("kvstream/**/*.py"), *ROOT.glob("analysis/**/*.py"), *ROOT.glob("analysis/**/*.sql")]:
        assert "value_norm" not in path.read_text(), path
