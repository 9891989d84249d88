"""Run in a copy of the repository to which docs/adding-a-policy.md's policy was added: does all follow from its fields?

python tests/policies/added.py MODEL TEXT      of the copy; with the copy and its tests/ in PYTHONPATH
"""

import contextlib
import io
import json
import os
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from oracle import Asked, oracle_trace

import kvstream
from analysis.charts import drawing
from analysis.report import main as report
from kvstream import Full, StreamingLLM, ValueNorm, parse_policy
from kvstream.grid import Grid, Repeats, expand
from kvstream.grid.planning import latency_cells, prepare, quality_cells
from kvstream.inputs.model_loading import load_model
from kvstream.measure import latency, quality
from kvstream.measure.contenders import Protocol
from kvstream.measure.environment import environment
from kvstream.records.store import Records
from kvstream.sweep.main import main as sweep

OTHERS = (Full(), StreamingLLM(2, 10))
MINE = expand(("value_norm",), (12,), start_sizes=(2,), exponents=(0.0, 1.5))
TOKENS = 60


def grid_of(model: str, text: str) -> Grid:
    policies = (*OTHERS, *MINE)
    lengths, contexts = (TOKENS // 2, TOKENS), (40,)
    return Grid("added", (model,), policies, text, 1, lengths, contexts, repeats=Repeats(2, 6, 2))


def labels_and_flags(grid: Grid) -> None:
    assert (ValueNorm(12, 2, 0.0), ValueNorm(12, 2, 1.5)) == MINE
    for policy in MINE:
        assert parse_policy(str(policy)) == policy
    flags = ["--policies", "full,value_norm", "--budgets", "12", "--start-sizes", "2", "--exponents", "0,1.5"]
    told, asked = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(asked), contextlib.suppress(SystemExit):
        sweep(grid, "Which?", ["--help"])
    assert re.search(r"--exponents X,X +how much a key's norm counts \(value_norm\)", asked.getvalue())
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        sweep(grid, "Which?", [*flags, "--contexts", "none", "--device", "cpu", "--out", "nowhere", "--dry-run"])
    cells = re.findall(r"^  (\w{16})  .* · (.*) · \w+  [\d,]+ tokens", told.getvalue(), re.MULTILINE)
    assert [label for _, label in cells] == ["full", *map(str, MINE)], told.getvalue()
    assert len({key for key, _ in cells}) == 3


def computed(grid: Grid) -> Records:
    """All cells of the grid; the rows of quality cells are the oracle's."""
    records, sources = Records("records/added"), prepare(grid)
    cells = [
        *quality_cells(grid, sources, "cpu", "float32"),
        *latency_cells(grid, sources, "cpu", "float32", 1),
    ]
    records.plan(grid, "Does it follow?", cells)
    model, _ = load_model(grid.models[0])
    wide = load_model(grid.models[0], dtype="float64")[0]
    for cell in cells[:-1]:
        ids_1T = cell.document.token_ids[None]
        given = {"cells": [cell.key], "documents": [cell.document.name], "device": "cpu"}
        [result] = quality.evaluate(model, ids_1T, cell.policy, **given)
        truth = oracle_trace(wide, torch.as_tensor(ids_1T), Asked(cell.policy)).nll_nats
        assert np.abs(result.rows["nll_nats"].to_numpy() - truth).max() < 1e-4, cell
        records.commit(cell.key, cell.fields | {"threads": 1}, [result.rows], result.seconds, environment())
    timed, protocol = cells[-1], Protocol(40, 1, 2, 6, 2)
    *_, measured = latency.evaluate(model, timed.policies, protocol, cell=timed.key, device="cpu")
    fields = timed.fields | {"threads": 1, "contenders": measured.contenders, "noise": measured.noise}
    records.commit(timed.key, fields, [measured.rows], measured.seconds, environment())
    return records


def recorded(records: Records) -> None:
    found = [
        records.read_json(name)["fields"] for name in records.storage.names() if re.fullmatch(r"\w{16}\.json", name)
    ]
    entries = [*found, *(each for fields in found for each in fields.get("contenders", ()))]
    for policy in MINE:
        held = [entry["policy_fields"] for entry in entries if entry.get("policy") == str(policy)]
        assert len(held) >= 2
        assert all(fields["exponent"] == policy.exponent for fields in held)


def reported() -> None:
    with patch.object(drawing, "begin", lambda *_: (0, [])):  # as SVG and PNG charts take most of a report's time
        assert report(["--records", "records/added", "--out", "report"]) == 0
    page = Path("report/index.html").read_text()
    text = re.sub(r"<wbr>|\s+", " ", page).replace(" ", "")
    for policy in MINE:
        assert str(policy) in text
        assert f"exponent={policy.exponent}" in text
    colours = {}
    for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL):
        gather(json.loads(block), colours)
    mine = {name: colour for name, colour in colours.items() if name.startswith("value_norm")}
    others = {colour for name, colour in colours.items() if name not in mine}
    assert len(mine) == len(MINE), colours
    assert len(set(mine.values())) == len(MINE), colours
    assert not others & set(mine.values()), colours


def gather(part: object, colours: dict[str, str]) -> None:
    """Find which colour each series has in a chart."""
    if isinstance(part, dict):
        scale = (part.get("color") or {}).get("scale") if isinstance(part.get("color"), dict) else None
        if isinstance(scale, dict) and "range" in scale:
            colours.update(zip(scale["domain"], scale["range"]))
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        gather(each, colours)


def tested() -> None:
    """The tests that ask all registered policies take it up, and none minds that it is there."""
    engine = ("evictions", "exactness", "memory_flat")
    files = ["tests/policies", "tests/grid/test_flags.py", *(f"tests/engine/test_{name}.py" for name in engine)]
    of_all = (
        "every_policy_that_scores",
        "is_registered",
        "label_reads_back",
        "is_bounded_unless",
        "flags_replace",
        "the_page_is",
    )
    chosen = " or ".join(("value_norm", *of_all))
    ran = []

    class Ran:
        def pytest_runtest_call(self, item):
            ran.append(item.nodeid)

    assert pytest.main(["-p", "no:xdist", "-p", "no:cacheprovider", *files, "-k", chosen], [Ran()]) == 0
    own = {name.partition("::")[0].rpartition("/")[2] for name in ran if "value_norm" in name}
    of_its_own = ("against_oracle", "layer_budgets", "policies", *engine)
    assert own >= {f"test_{name}.py" for name in of_its_own}, own


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent.parent)
    assert Path(kvstream.__file__).parent.parent == Path.cwd(), kvstream.__file__
    asked = grid_of(*sys.argv[1:])
    runpy.run_path("example.py")
    labels_and_flags(asked)
    recorded(computed(asked))
    reported()
    tested()
    print("all follows")
