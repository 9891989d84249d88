"""Names are data: never a path, SQL, HTML or terminal commands, whatever a text, a model or a question is called.

One sweep over documents with hostile names, and one over as many with harmless ones, each with its report.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import golden
import pyarrow.parquet as pq
import pytest
from driving import ROOT, run

from analysis.visible import visible as as_shown
from kvstream import sources
from kvstream.grid import visible
from kvstream.records import Records

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
    """Every file under a folder with its digest, but for what lies under `aside`."""
    found = {}
    for path in folder.rglob("*"):
        if not any(path.is_relative_to(other) for other in aside):
            content = path.read_bytes() if path.is_file() else b""
            found[os.fsencode(path)] = hashlib.sha256(content).hexdigest()
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
    home = base / "home"
    home.mkdir()
    shells = {"cwd": place, "env": os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(base / "cache")}}
    before = tree(base)
    script = SWEEPS.format(documents=len(HOSTILE))
    given = [str(what[kind]) for kind in outs for what in (models, texts, outs, asked)]
    done = run([sys.executable, "-c", script, *given], **shells)
    reports = {kind: place / f"report {out.name}" for kind, out in outs.items()}
    told = {
        kind: run(
            [sys.executable, str(ROOT / "analysis" / "report.py"), "--records", str(out), "--out", str(reports[kind])],
            **shells,
        )
        for kind, out in outs.items()
    }
    after = tree(base, base / "cache", home / ".ray", *outs.values(), *reports.values())
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
    assert swept["after"] == swept["before"], "around the folders given, in the user's home, where it was started"
    assert not list(Path("/").glob("outside*"))
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
    assert len([name for name in HOSTILE if as_shown(name) in shown]) >= 30, "as many as the page lists"


def test_the_tables_hold_the_names_as_they_are(swept):
    with (swept["reports"]["hostile"] / "tables" / "documents.csv").open(newline="") as file:
        assert {row["document"] for row in csv.DictReader(file)} == set(HOSTILE)


def test_the_folder_of_the_report_holds_the_same_files(swept):
    names = {
        kind: sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        for kind, folder in swept["reports"].items()
    }
    assert names["hostile"] == names["harmless"]


# Names of everything else


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Pages of records in which models, notes and texts, or policies, are called so, and of as many harmless ones."""
    base, pages = tmp_path_factory.mktemp("labels"), {}
    for kind, names in (("hostile", HOSTILE), ("harmless", [f"harmless {n}" for n in range(len(HOSTILE))])):
        policies = [golden.P(label, "recent_only", 0.5, 8 + place, 0) for place, label in enumerate(names)]
        nasty = [names[place] for place, name in enumerate(HOSTILE) if set(name) & set("<>'$`\x1b\u202e🦙")][:8]
        models = [(model, nasty[-1 - place], 512) for place, model in enumerate(nasty)]
        for what, plan in {
            "policies": golden.Plan((golden.FULL, *policies), (("m", None, 512),), ("d",), 90, (90,)),
            "models": golden.Plan((golden.FULL, policies[0]), tuple(models), ("d",), 90, (90,), text=nasty[0]),
        }.items():
            folder = golden.write(plan, base / what / kind)
            done = golden.quick_report("--records", folder, "--out", base / what / f"report {kind}")
            assert done.returncode == 0, done.stderr
            assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n"))
            pages[what, kind] = Page((base / what / f"report {kind}" / "index.html").read_text())
    return pages


@pytest.mark.parametrize("what", ["policies", "models"])
def test_models_notes_texts_and_policies_are_shown_and_never_obeyed(labelled, what):
    hostile, harmless = labelled[what, "hostile"], labelled[what, "harmless"]
    assert [kind for kind, _ in hostile.scripts] == [kind for kind, _ in harmless.scripts]
    assert hostile.handlers == harmless.handlers == []
    shown, expected = "".join(hostile.text), "".join(harmless.text)
    count = len(set(re.findall(r"harmless \d+", expected)))
    assert count > {"policies": 15, "models": 8}[what], "of many policies the page shows some"
    assert len([name for name in HOSTILE if as_shown(name) in shown]) >= count


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name])
def test_a_folder_to_write_to(tmp_path, monkeypatch, name):
    """It is made where it was asked for, or refused; nothing else appears."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused = made = None
    try:
        records = Records(name)
        with records.locked():
            records.write_json("sweep.json", {"cells": []})
        made = (tmp_path / "here" / name).resolve()
    except ValueError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("out: ")
        assert visible(refused) == refused, "its own message can be shown"
        assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
    else:
        assert {path.resolve() for path in tmp_path.rglob("sweep.json") if path.is_file()} == {made / "sweep.json"}


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
