"""Losses that are no numbers, and texts too short to give any: counted, shown, and in no mean."""

import json
import math
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import WORDS
from driving import ROOT, arguments, run
from safetensors.torch import load_file, save_file

from kvstream.chunks import CHUNK_SIZE


@pytest.fixture(scope="module")
def broken(world, tmp_path_factory):
    """A model whose embedding of one word is NaN, and a text with that word at token 600 and another without it."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(world / "model", folder / "model")
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    weights["gpt_neox.embed_in.weight"][7] = math.nan
    save_file(weights, file, {"format": "pt"})
    (folder / "texts").mkdir()
    healthy = 20 * [word for word in WORDS if word != "w7"]
    (folder / "texts" / "sick.txt").write_text(" ".join([*healthy[:600], "w7", *healthy[:60]]))
    (folder / "texts" / "well.txt").write_text(" ".join([*healthy[:600], "w8", *healthy[:60]]))
    return folder


@pytest.mark.long
def test_losses_that_are_no_numbers_are_counted_and_in_no_mean(broken, tmp_path):
    out = tmp_path / "records"
    axes = ["--policies", "full,recent_only(8)", "--lengths", "660", "--documents", "2"]
    command = arguments(broken, out, *axes)
    command[command.index("--budgets") : command.index("--budgets") + 2] = []
    swept = run(command)
    assert swept.returncode == 0, swept.stderr
    sick = [line for line in swept.stdout.splitlines() if "sick: PPL" in line]
    assert all(" tokens, " in line and "NaN or infinite loss for " in line for line in sick)
    assert len(sick) == 2, swept.stdout + swept.stderr
    assert not any("NaN" in line for line in swept.stdout.splitlines() if "well" in line)
    means = {}
    for record in sorted(out.glob("????????????????.json")):
        fields = json.loads(record.read_text())["fields"]
        nll = pq.read_table(out / f"{record.stem}.parquet")["nll_nats"].to_numpy()
        assert len(nll) == 659
        if fields["document"] == "sick":
            # A chunk's products meet the NaN at once, so it also reaches tokens of its own chunk before it.
            assert np.isfinite(nll[: CHUNK_SIZE - 1]).all()
            assert np.isnan(nll[600])
        finite = nll[np.isfinite(nll)].astype(float)
        means.setdefault(fields["policy"], []).extend(finite)
    report = [sys.executable, str(ROOT / "analysis" / "report.py"), "--records", str(out)]
    assert run([*report, "--out", str(tmp_path / "report")]).returncode == 0
    table = pq.read_table(tmp_path / "report" / "tables" / "main.parquet").to_pylist()
    for row in table:
        if row["longest"]:
            assert row["ppl_corpus"] == pytest.approx(np.exp(np.mean(means[row["policy"]])), rel=1e-6)
            assert row["invalid"] == 2 * 659 - len(means[row["policy"]]) > 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "NaN or infinite" in page


def test_documents_that_are_too_short_are_passed_over_and_said(world, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, words in (("a-long", 60), ("b-short", 5), ("c-empty", 0), ("d-one", 1), ("e-long", 50)):
        (texts / f"{name}.txt").write_text(" ".join(WORDS[:words]))
    command = arguments(
        world, tmp_path / "out", "--text", str(texts), "--lengths", "50", "--documents", "2", "--dry-run"
    )
    planned = run(command)
    assert planned.returncode == 0, planned.stderr
    assert "a-long" in planned.stdout
    assert "e-long" in planned.stdout
    assert "b-short" in planned.stderr, "passed over, and said"
    refused = run([*command[:-2], "3", "--dry-run"])
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: documents: 3 asked, only 2")
