"""What the house promises: who may import whom, how large a thing may be, and that the documents name what is there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS

ROOT = Path(__file__).parent.parent
CODE = [path for folder in ("kvstream", "analysis") for path in sorted((ROOT / folder).rglob("*.py"))]
# Each folder may import those of the rows before it, and itself; folders of one row do not know each other.
FLOORS = {
    "kvstream": [{"policies"}, {"inputs", "engine"}, {"measure", "grid"}, {"records"}, {"sweep"}],
    "analysis": [{"read"}, {"numbers"}, {"charts", "words"}, {"page"}],
}
MAY = {  # where a folder may use another of its own row
    ("charts", "words"),  # a chart writes numbers as sentences do
}
RAY = {"cluster.py", "ray_pool.py"}
LONGEST_MODULE, LONGEST_CLASS, LONGEST_README = 260, 150, 120


def nodes(path: Path, *, at_import: bool = False):
    """All statements of a file, type-checking blocks aside; at_import: and what functions do."""
    waiting = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Full names that a file imports: modules, and what it takes from them."""
    found = set()
    for node in nodes(path, at_import=at_import):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_folders_are_those_of_the_house():
    for package, floors in FLOORS.items():
        there = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert there == set.union(*floors), package
    assert {path.name for path in (ROOT / "kvstream").glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.name for path in (ROOT / "analysis").glob("*.py")} == {"__init__.py", "report.py", "results.py"}


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_one_way(package):
    arrows = 0
    for height, floor in enumerate(FLOORS[package]):
        below = set().union(*FLOORS[package][:height])
        for folder in floor:
            for path in (ROOT / package / folder).rglob("*.py"):
                used = {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}
                allowed = below | {folder} | {other for one, other in MAY if one == folder}
                assert used <= allowed, f"{path.relative_to(ROOT)} uses {used - allowed}"
                arrows += len(used - {folder})
    assert arrows > 5  # else nothing was looked at


def test_only_two_files_know_ray():
    knowing = {path for path in CODE if "ray" in top(imports(path))}
    assert {path.name for path in knowing} == RAY
    assert {path.parent.name for path in knowing} == {"sweep"}


def test_the_report_stands_apart():
    for path in (ROOT / "analysis").rglob("*.py"):
        assert not top(imports(path)) & {"torch", "transformers", "ray", "kvstream"}, path.name


@pytest.mark.parametrize("folder", ["policies", "grid", "records"])
def test_no_torch_is_imported_where_none_is_needed(folder):
    files = sorted((ROOT / "kvstream" / folder).rglob("*.py"))
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules, 'ray' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_policies_know_nothing_but_arrays():
    for path in (ROOT / "kvstream" / "policies").rglob("*.py"):
        known = {"kvstream", "numpy"} | set(sys.stdlib_module_names)
        assert top(imports(path, at_import=True)) <= known, path.name


def test_nothing_is_too_long_to_read():
    for path in CODE:
        text = path.read_text()
        assert len(text.splitlines()) <= LONGEST_MODULE, path.relative_to(ROOT)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno + 1 <= LONGEST_CLASS, f"{path.relative_to(ROOT)}: {node.name}"


def test_tests_lie_in_folders_of_the_same_names():
    folders = {path.parent.name for path in (ROOT / "kvstream").glob("*/__init__.py")}
    for path in (ROOT / "tests").rglob("test_*.py"):
        first, *rest = path.relative_to(ROOT / "tests").parts
        assert not rest or first in folders or (first == "analysis" and (ROOT / "analysis" / rest[0]).is_dir()), path


def test_charts_name_no_channel_by_a_string():
    drawing = [path for path in (ROOT / "analysis").rglob("*.py") if "altair" in top(imports(path))]
    calls = [node for path in drawing for node in nodes(path) if isinstance(node, ast.Call)]
    calls = [node for node in calls if ast.unparse(node.func).endswith(".encode")]
    given = [one for call in calls for one in call.keywords if one.arg]
    assert len(given) > 20
    plain = ("alt.value(", "alt.condition(")  # dictionaries, which are looked up like strings
    objects = [one for one in given if isinstance(one.value, ast.Call | ast.Name)]
    assert [one for one in objects if not ast.unparse(one.value).startswith(plain)] == given


def test_sweeps_import_only_installed_packages():
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        assert top(imports(path)) <= {"kvstream"} | set(sys.stdlib_module_names), path.name
        for word in ("Hypothesis", "Cost", "python sweeps/"):
            assert word in ast.get_docstring(ast.parse(path.read_text())), f"{path.name} does not state: {word}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_finds_its_line_once(mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.new != mutation.old
    assert (ROOT / mutation.noticed_by[0]).is_file()


def test_nothing_is_left_for_later():
    for path in [*CODE, *(ROOT / "sweeps").glob("*.py")]:
        assert not re.search(r"TODO|FIXME|XXX|NotImplementedError", path.read_text()), path.name


def test_the_readme_is_an_introduction():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= LONGEST_README
    # Nobody needs a list of files to find a thing: only commands are named.
    assert set(re.findall(r"(?<![\w/])[\w/]+\.py", text)) <= {"sweeps/quick.py", "sweeps/full.py", "analysis/report.py"}


def test_every_link_of_a_document_leads_somewhere():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [(path, link) for path in documents for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())]
    assert len(links) > 10
    assert [(path.name, link) for path, link in links if not (path.parent / link).exists()] == []
    linked = {(path.parent / link).resolve() for path, link in links}
    assert {path for path in (ROOT / "docs").glob("*.md") if path not in linked} == set(), "a document no other names"


def test_the_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", text)
    assert len(named) > 15
    for name in named:
        found = [place for place in (ROOT, ROOT / "kvstream") if (place / name).exists()]
        assert found, f"docs/architecture.md names {name}"
