"""What the code promises about itself: who imports what, and that the README says what is there."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import golden

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "kvstream").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it, type-checking blocks aside."""
    found = set()
    skipped = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped.update(id(child) for child in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_only_two_modules_import_ray():
    assert [path.name for path in MODULES if "ray" in top(imports(path))] == ["cluster.py", "fleet.py"]


def test_the_report_stands_apart():
    for path in sorted((ROOT / "analysis").glob("*.py")):
        assert not top(imports(path)) & {"torch", "transformers", "ray", "kvstream"}, path.name


def test_charts_name_no_channel_by_a_string():
    drawing = [path for path in (ROOT / "analysis").glob("*.py") if "altair" in imports(path)]
    calls = [node for path in drawing for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node for node in calls if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".encode")]
    given = [one for call in calls for one in call.keywords if one.arg]
    assert len(given) > 50
    plain = ("alt.value(", "alt.condition(")  # dictionaries, which are looked up like strings
    objects = [one for one in given if isinstance(one.value, ast.Call | ast.Name)]
    assert [one for one in objects if not ast.unparse(one.value).startswith(plain)] == given


def test_policies_know_neither_models_nor_ray():
    for path in sorted((ROOT / "kvstream" / "policies").glob("*.py")):
        assert not top(imports(path)) & {"torch", "transformers", "ray", "datasets"}, path.name


def test_nothing_points_back_up():
    engine = (
        "attention bounded cache chunks contest decoding layer memory noise probe replaying rope sinks wrappers calls"
    )
    floors = [
        set(f"{engine} address checkpoint environment guardian hub interrupt lastword progress shapes weights".split()),
        {"demo", "grid", "models", "records", "sources", "storage", "text"},
        {"jobs", "latency", "quality"},
        {"command", "parts", "plan", "room", "tasks", "verifying"},
        {"cluster", "ledger", "pacing"},
        {"fleet", "watch"},
        {"sweep"},
    ]
    there = {path.stem for path in (ROOT / "kvstream").glob("*.py")} - {"__init__", "__main__"}
    assert set.union(*floors) == there
    for place, floor in enumerate(floors):
        above = {f"kvstream.{name}" for upper in floors[place + 1 :] for name in upper}
        for name in floor:
            assert not above & imports(ROOT / "kvstream" / f"{name}.py"), name


def test_sweeps_import_only_installed_packages():
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        assert top(imports(path)) <= {"kvstream"} | set(sys.stdlib_module_names), path.name
        tree = ast.parse(path.read_text())
        for word in ("Hypothesis", "Cost", "python sweeps/"):
            assert word in ast.get_docstring(tree), f"{path.name} does not state: {word}"


def test_a_flag_error_does_not_wait_for_torch():
    modules = "kvstream.sweep.main, kvstream.grid.cells, kvstream"
    code = f"import sys, {modules}; print('torch' in sys.modules, 'ray' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_the_readmes_tree_shows_every_file_and_no_other():
    readme = (ROOT / "README.md").read_text()
    tree = readme.partition("## What is where\n")[2].partition("\n## ")[0]
    files = [path for folder in ("kvstream", "analysis", "sweeps", "tests") for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        if path.name != "__init__.py":
            assert re.search(rf"\b{re.escape(path.stem)}(\.py)?\b", tree), f"README's tree lacks {path}"
    for name in re.findall(r"\b(\w+)\.py\b|\b(test_\w+)", tree):
        assert any(path.stem in name for path in files), f"README's tree names {name}"


def test_nothing_is_left_for_later():
    for path in [*MODULES, *(ROOT / "analysis").glob("*.py"), *(ROOT / "sweeps").glob("*.py")]:
        assert not re.search(r"TODO|FIXME|XXX|NotImplementedError", path.read_text()), path.name


def test_the_readmes_way_to_read_records_works(tmp_path):
    golden.write(replace(golden.QUICK, tokens=300, lengths=(300,)), tmp_path / "records" / "quick")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [example] = [text for text in examples if "duckdb" in text]
    ran = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(golden.QUICK.policies) * len(golden.QUICK.documents)
    assert all(1 < float(line.split()[-1]) < 1000 for line in lines)
