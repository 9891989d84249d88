"""Names are data: never a path, SQL, HTML or terminal commands, whatever a text, a model or a question is called.

One sweep over documents with hostile names, and one over some with harmless ones, each with its report.
"""

import csv
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import golden
import pyarrow.parquet as pq
import pytest
from driving import sweep_here

from kvstream.grid.axes import Grid
from kvstream.grid.terminal import visible
from kvstream.inputs import text_sources
from kvstream.policies import Full, RecentOnly
from kvstream.records.store import Records

FORGED = "x: PPL 1.00, 9 tokens/s\n[99/99, 0 s left] forged · full · y"
HOSTILE = [
    "../../../outside", "/outside", "..", ".", "~/outside", "C:\\outside", "nul\0byte", "it's", 'say "hi"',
    "back\\slash",
    "'; DROP TABLE tokens; --", '"; DROP TABLE main; --', "{{7*7}}", "${x}", "$(touch outside)", "`touch outside`",
    "%s%n", "</script><script>window.broken=1</script>", "<!--", "]]>", "&lt;b&gt;", "<img src=x onerror=alert(1)>",
    "javascript:alert(1)", "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "bell\x07back\x08\x7f", "carriage\rreturn", FORGED,
    "tab\tline\u2028para\u2029", "right\u202eleft", "zero\u200bwidth", "🦙 ж 漢", "é" * 300, "x" * 300, "[a]*?.parquet",
    "-rf", "--out", "nan", "NaN", "null", "None", "inf", "1e999", " ", " padded ", "0123456789abcdef.json",
    "[bold]rich[/bold]", "a,b;c", "| a | b |", "__proto__", "#", "=1+1", "row 3",
]  # fmt: skip
# How the report spells out what nobody would see; every other name is shown as it is.
SPELLED = {
    "nul\0byte": "nul␀byte",
    "\x1b[2J\x1b[31mred": "␛[2J␛[31mred",
    "\x1b]0;title\x07": "␛]0;title␇",
    "bell\x07back\x08\x7f": "bell␇back␈␡",
    "carriage\rreturn": "carriage␍return",
    FORGED: "x: PPL 1.00, 9 tokens/s␊[99/99, 0 s left] forged · full · y",
    "tab\tline\u2028para\u2029": "tab␉line⟨U+2028⟩para⟨U+2029⟩",
    "right\u202eleft": "right⟨U+202E⟩left",
    "zero\u200bwidth": "zero⟨U+200B⟩width",
}
HARMLESS = 12  # documents of the other sweep: enough for intervals, as those of the hostile one are
QUESTION = "Is <b>this</b></script><script>window.broken=1</script> '; DROP TABLE main; -- {{7*7}} ${x} | safe?"


class Page(HTMLParser):
    """The elements of a page in their order, each with its attributes and the text that is directly in it."""

    VOID, LINKS = ("meta", "link", "input", "wbr"), ("href", "src", "action", "formaction")

    def __init__(self, text):
        super().__init__()
        self.elements, self.handlers, self.open = [], [], []
        self.feed(text)
        assert not self.open, "all are closed"

    def handle_starttag(self, tag, attrs):
        self.handlers += [
            name for name, value in attrs if name.startswith("on") or (name in self.LINKS and "javascript:" in value)
        ]
        self.elements.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, "in the order in which they were opened"

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)

    def texts(self, tag, kind="", by="class"):
        """The texts of all elements with that tag and, if it is given, that class or other attribute."""
        found = [(attrs, parts) for name, attrs, parts in self.elements if name == tag]
        return ["".join(parts) for attrs, parts in found if not kind or kind in (attrs.get(by) or "").split()]

    def defined(self, term):
        """The text of the dd behind a dt."""
        [text] = [
            "".join(second[2]) for first, second in pairwise(self.elements) if first[0] == "dt" and first[2] == [term]
        ]
        return text

    @property
    def scripts(self):
        return [(attrs.get("type"), "".join(parts)) for tag, attrs, parts in self.elements if tag == "script"]


def shown(name):
    """A name as the page shows it."""
    return SPELLED.get(name, name)


def listed(names):
    """Names as the page shows them, in the order in which it lists them."""
    return [shown(name) for name in sorted(names)]


def tree(folder, *aside):
    """Every file under a folder with its digest, but for what lies under `aside`."""
    found = {}
    for path in folder.rglob("*"):
        if not any(path.is_relative_to(other) for other in aside):
            content = path.read_bytes() if path.is_file() else b""
            found[os.fsencode(path)] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="module")
def swept(ray_here, world, tmp_path_factory):
    """Where everything lies, what the sweeps printed, and their reports."""
    base = tmp_path_factory.mktemp("names")
    place = base / "one" / "two" / "three"
    place.mkdir(parents=True)
    texts = {}
    documents = {"harmless": [f"document {number}" for number in range(HARMLESS)], "hostile": HOSTILE}
    for kind, names in documents.items():
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
    before, done = tree(base), {}
    reports = {kind: place / f"report {out.name}" for kind, out in outs.items()}
    with pytest.MonkeyPatch.context() as shell:
        shell.chdir(place)
        shell.setenv("HOME", str(home))
        shell.setenv("XDG_CACHE_HOME", str(base / "cache"))
        for kind, out in outs.items():
            grid = Grid(
                "names", (str(models[kind]),), (Full(), RecentOnly(4)), str(texts[kind]), len(documents[kind]), (10,)
            )
            done[kind] = sweep_here(["--out", str(out), "--device", "cpu"], grid, asked[kind])
            told = golden.quick_report("--records", out, "--out", reports[kind])
            assert (told.returncode, told.stderr) == (0, "")
            assert all(line.isprintable() for line in told.stdout.split("\n"))
    after = tree(base, base / "cache", home / ".ray", *outs.values(), *reports.values())
    return {"done": done, "outs": outs, "models": models, "reports": reports, "before": before, "after": after}


def test_every_cell_finishes_and_keeps_its_name(swept):
    assert [(done.returncode, done.stderr) for done in swept["done"].values()] == [(0, "")] * 2
    found = []
    for path in swept["outs"]["hostile"].glob("????????????????.json"):
        record = json.loads(path.read_text())
        table = pq.read_table(path.parent / record["file"])
        assert table["document"].unique().to_pylist() == [record["fields"]["document"]]
        found.append(record["fields"]["document"])
    assert sorted(found) == sorted([*HOSTILE, *HOSTILE])


def test_nothing_is_written_elsewhere(swept):
    assert swept["after"] == swept["before"], "around the folders given, in the user's home, where it was started"
    assert not list(Path("/").glob("outside*"))
    for kind in swept["outs"]:
        for path in swept["outs"][kind].iterdir():
            assert re.fullmatch(r"[0-9a-f]{16}(\.json|\.[0-9a-f]{16}\.parquet)|sweep\.json|\.lock", path.name)


def test_the_terminal_shows_lines_and_nothing_else(swept):
    out = swept["done"]["harmless"].stdout + swept["done"]["hostile"].stdout
    assert all(line.isprintable() for line in out.split("\n"))
    cells = [line for line in out.split("\n") if line.startswith("[")]
    assert len(cells) == 2 * (HARMLESS + len(HOSTILE))
    counted = [
        re.match(r"\[(\d+)/(\d+), [^\]]* left\] .* · .* · .*: PPL [\d.]+(, KL [\d.]+)?, [\d,]+ tokens/s$", line)
        for line in cells
    ]
    assert all(counted)
    assert [int(match[1]) for match in counted] == [*range(1, 2 * HARMLESS + 1), *range(1, 2 * len(HOSTILE) + 1)]
    assert f" · {visible(FORGED)}: PPL" in out
    assert visible(FORGED) == FORGED.replace("\n", "\\n")


def no_element_more(hostile, harmless):
    """Neither a script nor any other kind of element is in one page and not in the other."""
    assert [kind for kind, _ in hostile.scripts] == [kind for kind, _ in harmless.scripts] != []
    assert hostile.handlers == harmless.handlers == []
    tags = [{tag for tag, _, _ in page.elements} - {"wbr"} for page in (hostile, harmless)]  # wbr: after a comma
    assert tags[0] == tags[1]


def test_the_page_has_no_element_more(swept):
    pages = {kind: Page((folder / "index.html").read_text()) for kind, folder in swept["reports"].items()}
    no_element_more(**pages)
    for kind, data in pages["hostile"].scripts:
        if kind == "application/json":
            json.loads(data)
        else:
            assert "window.broken" not in data


def test_the_page_shows_names_as_they_are(swept):
    page = Page((swept["reports"]["hostile"] / "index.html").read_text())
    model, out = str(swept["models"]["hostile"]), str(swept["outs"]["hostile"])
    [asked] = page.texts("p", "question")
    assert model in asked
    assert model in page.texts("li")
    assert page.defined(model).startswith("Trained to 256 tokens")
    assert out in page.texts("a"), "the link to the records, which lie beside the report"
    assert page.defined("Documents") == ", ".join(listed(HOSTILE)[:30]) + ", ….", "as many as the page lists"


def test_the_tables_hold_the_names_as_they_are(swept):
    with (swept["reports"]["hostile"] / "tables" / "documents.csv").open(newline="") as file:
        assert {row["document"] for row in csv.DictReader(file)} == set(HOSTILE)


# Names of everything else


def plans(names):
    """Records in which everything is called so, once each: what they are about, and how they come about."""
    policies = tuple(golden.P(name, "recent_only", 0.5, 8 + place, 0) for place, name in enumerate(names))
    pair = (golden.FULL, policies[0])
    return {
        "policies": golden.Plan((golden.FULL, *policies), (("m", None, 512),), ("d",), 90, (90,)),
        "models": golden.Plan((golden.FULL,), noted(names[::4]), ("d",), 90, (90,), text=names[0]),
        "failures": golden.Plan(pair, (("m", None, 512),), ("d", *names), 90, (90,), failed=2 * len(names)),
    }


def noted(names):
    """Models called so, with each other's names for notes."""
    return tuple((name, note, 512) for name, note in zip(names, reversed(names)))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Pages of such records, and of records with as many harmless names."""
    pages = {}
    for kind, names in (("hostile", HOSTILE), ("harmless", [f"harmless {n}" for n in range(len(HOSTILE))])):
        for what, plan in plans(names).items():
            base = tmp_path_factory.mktemp("labels")
            done = golden.quick_report("--records", golden.write(plan, base / "records"), "--out", base / "report")
            assert done.returncode == 0, done.stderr
            assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n"))
            pages[what, kind] = Page((base / "report" / "index.html").read_text())
    return pages


@pytest.mark.parametrize("what", plans(HOSTILE))
def test_names_of_everything_are_never_obeyed(labelled, what):
    no_element_more(labelled[what, "hostile"], labelled[what, "harmless"])


def test_policies_are_shown_as_they_are_called(labelled):
    page = labelled["policies", "hostile"]
    names, budgets = page.texts("td", "name"), page.texts("td", "budget", by="data-column")
    assert len(names) == len(budgets) == 1 + len(HOSTILE)
    expected = {shown(name): str(8 + place) for place, name in enumerate(HOSTILE)}
    assert dict(zip(names, budgets)) == {"full": "–"} | expected
    drawn = []
    for data in (data for kind, data in page.scripts if kind == "application/json"):
        json.loads(data, object_hook=lambda row: drawn.append(row.get("policy")))
    assert {name for name in drawn if isinstance(name, str)} == {"full", *map(shown, HOSTILE)}, "in tooltips"


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
    place = file if name.startswith(".") else tmp_path  # a folder's hidden files are passed over
    assert list(text_sources.read(str(place))) == [(file.stem, "w1")]


def test_a_files_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("w1")
    assert list(text_sources.read(str(tmp_path))) == [("caf\\xe9", "w1")]
