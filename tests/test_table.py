"""Every test that docs/faults.md lists exists, and is listed once."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def listed() -> list[tuple[str, str]]:
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    return [pair for row in rows for pair in re.findall(r"`(\w+\.py)::(test_\w+)`", row)]


def test_every_test_in_the_table_exists():
    files = {path.name: functions_in(path) for path in (ROOT / "tests").rglob("test_*.py")}
    assert [pair for pair in listed() if pair[1] not in files.get(pair[0], ())] == []
    assert len(listed()) == len(set(listed()))


def test_every_row_says_what_the_user_sees():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    for row in rows[1:]:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 3, row
        assert all(cells), row


def long_in(path: Path) -> set[str]:
    """The tests of a file that `make test-faults` runs: marked so themselves, or all of them."""
    tree = ast.parse(path.read_text())
    marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    whole = any(mark.startswith("pytestmark = ") and "mark.long" in mark for mark in marks)
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name for node in tests if whole or "mark.long" in " ".join(map(ast.unparse, node.decorator_list))}


def test_the_long_ones_are_marked_so():
    long = {path.name: long_in(path) for path in (ROOT / "tests").rglob("test_*.py")}
    for row in (ROOT / "docs" / "faults.md").read_text().splitlines():
        for file, name in re.findall(r"`(\w+\.py)::(test_\w+)`", row):
            assert ("¹" in row) == (name in long[file]), row
