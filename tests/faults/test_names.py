"""Names are data: never a path, SQL, HTML or terminal commands, whatever a text, a model or a question is called.

One sweep over documents with hostile names, and one over as many with harmless ones, each with its report.
"""

import csv
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from driving import ROOT, run

from kvstream import sources
from kvstream.grid import visible

FORGED = "x: PPL 1.00, 9 tokens/s\n[99/99, 0 s left] forged · full · y"
HOSTILE = [
    "../../../outside", "/outside", "..", ".", "~/outside", "C:\\outside", "nul\0byte", "it's", 'say "hi"',
    "back\\slash",
    "'; DROP TABLE tokens; --", '"; DROP TABLE main; --', "{{7*7}}", "${x}", "$(touch outside)", "`touch outside`",
    "%s%n",
    "</script><script>window.broken=1</script>", "<!--", "]]>", "&lt;b&gt;", "<img src=x onerror=alert(1)>",
    "javascript:alert(1)", "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "bell\x07back\x08\x7f", "carriage\rreturn", FORGED,
    "tab\tline\u2028para\u2029", "right\u202eleft", "zero\u200bwidth", "🦙 ж 漢", "é" * 300, "x" * 300, "[a]*?.parquet",
    "-rf", "--out", "nan", "NaN", "null", "None", "inf", "1e999", " ", " padded ", "0123456789abcdef.json",
    "[bold]rich[/bold]",
    "a,b;c", "| a | b |", "__proto__", "#", "=1+1", "row 3",
]  # fmt: skip
QUESTION = "Is <b>this</b></script><script>window.broken=1</script> '; DROP TABLE main; -- {{7*7}} ${x} | safe?"
SWEEPS = """
import sys
from kvstream.grid import Grid
from kvstream.policies import Full, RecentOnly
from kvstream.sweep import main

for model, text, out, question in zip(*[iter(sys.argv[1:])] * 4):
    grid = Grid("names", (model,), (Full(), RecentOnly(4)), text, {documents}, (10,))
    try:
        main(grid, question, ["--out", out, "--device", "cpu"])
    except SystemExit as ended:
        print("ENDED", ended.code, flush=True)
"""


class Page(HTMLParser):
    """The elements of a page, its text, and what its data blocks hold."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.handlers, self.text, self.open = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.handlers += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), []))

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1][1].append(data)
        else:
            self.text.append(data)


def tree(folder, *aside):
    """Every file under a folder, with what a change would change, but for what lies under `aside`."""
    found = {}
    for path in folder.rglob("*"):
        if not any(path.is_relative_to(other) for other in aside):
            status = path.lstat()
            found[os.fsencode(path)] = status.st_size if path.is_file() else None
    return found


@pytest.fixture(scope="module")
def swept(world, tmp_path_factory):
    """Where everything lies, what the sweeps printed, and their reports."""
    base = tmp_path_factory.mktemp("names")
    place = base / "one" / "two" / "three"
    place.mkdir(parents=True)
    texts = {}
    for kind, names in (("harmless", [f"document {number}" for number in range(len(HOSTILE))]), ("hostile", HOSTILE)):
        texts[kind] = place / f"{kind}.jsonl"
        rows = [{"name": name, "text": f"w1 w2 w3 {name} w4 w5 w6 w7 w8 w9 w10".replace("\0", "")} for name in names]
        texts[kind].write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = {
        "harmless": place / "model",
        "hostile": place / "mo'del \"; DROP TABLE main; -- {{7*7}} ${x} [a]*<b>&amp;",
    }
    for model in models.values():
        shutil.copytree(world / "model", model)
    outs = {"harmless": place / "records", "hostile": place / "o'ut \"; DROP -- {{7*7}} [a]*<b>&amp; 🦙"}
    asked = {"harmless": "Is this safe?", "hostile": QUESTION}
    before = tree(base)
    script = SWEEPS.format(documents=len(HOSTILE))
    given = [str(what[kind]) for kind in outs for what in (models, texts, outs, asked)]
    done = run([sys.executable, "-c", script, *given])
    reports = {kind: place / f"report {out.name}" for kind, out in outs.items()}
    told = {
        kind: run(
            [sys.executable, str(ROOT / "analysis" / "report.py"), "--records", str(out), "--out", str(reports[kind])]
        )
        for kind, out in outs.items()
    }
    after = tree(base, *outs.values(), *reports.values())
    return {"done": done, "outs": outs, "reports": reports, "told": told, "before": before, "after": after}


def test_every_cell_finishes_and_keeps_its_name(swept):
    assert swept["done"].stdout.count("ENDED 0") == 2, swept["done"].stderr[-2000:]
    found = []
    for path in swept["outs"]["hostile"].glob("????????????????.json"):
        record = json.loads(path.read_text())
        table = pq.read_table(path.with_suffix(".parquet"))
        assert table["document"].unique().to_pylist() == [record["fields"]["document"]]
        found.append(record["fields"]["document"])
    assert sorted(found) == sorted([*HOSTILE, *HOSTILE])


def test_nothing_is_written_elsewhere(swept):
    assert swept["after"] == swept["before"]
    for kind in swept["outs"]:
        for path in swept["outs"][kind].iterdir():
            assert re.fullmatch(r"[0-9a-f]{16}\.(json|parquet)|sweep\.json|\.lock", path.name)


def test_the_terminal_shows_lines_and_nothing_else(swept):
    out = swept["done"].stdout
    assert all(line.isprintable() for line in out.split("\n"))
    cells = [line for line in out.split("\n") if line.startswith("[")]
    assert len(cells) == 4 * len(HOSTILE)
    counted = [
        re.match(r"\[(\d+)/(\d+), [^\]]* left\] .* · .* · .*: PPL [\d.]+, [\d,]+ tokens/s$", line) for line in cells
    ]
    assert all(counted)
    assert [int(match[1]) for match in counted] == [*range(1, 2 * len(HOSTILE) + 1)] * 2
    assert f" · {visible(FORGED)}: PPL" in out
    assert visible(FORGED) == FORGED.replace("\n", "\\n")


def test_the_report_says_what_it_wrote_and_nothing_else(swept):
    for told in swept["told"].values():
        assert told.returncode == 0, told.stderr
        assert told.stderr == ""
        assert all(line.isprintable() for line in told.stdout.split("\n"))


def test_the_page_has_no_element_more(swept):
    pages = {kind: Page((folder / "index.html").read_text()) for kind, folder in swept["reports"].items()}
    assert len(pages["hostile"].scripts) == len(pages["harmless"].scripts) > 0
    assert [kind for kind, _ in pages["hostile"].scripts] == [kind for kind, _ in pages["harmless"].scripts]
    assert pages["hostile"].handlers == pages["harmless"].handlers == []
    for kind, data in pages["hostile"].scripts:
        if kind == "application/json":
            json.loads("".join(data))
        else:
            assert "window.broken" not in "".join(data)
    shown = "".join(pages["hostile"].text)
    assert QUESTION in shown, "the question is shown as it is"
    assert "{{7*7}}" in shown, "no template ran it"
    assert "mo'del" in shown


def test_the_tables_hold_the_names_as_they_are(swept):
    with (swept["reports"]["hostile"] / "tables" / "documents.csv").open(newline="") as file:
        assert {row["document"] for row in csv.DictReader(file)} == set(HOSTILE)


def test_the_folder_of_the_report_holds_the_same_files(swept):
    names = {
        kind: sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        for kind, folder in swept["reports"].items()
    }
    assert names["hostile"] == names["harmless"]


# Names of files


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name and "\0" not in name and len(name) < 100])
def test_a_files_name(tmp_path, name):
    file = tmp_path / f"{name}.txt"
    file.write_text("w1")
    assert list(sources.read(str(tmp_path))) == [(file.stem, "w1")]


def test_a_files_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("w1")
    assert list(sources.read(str(tmp_path))) == [("caf\\xe9", "w1")]
