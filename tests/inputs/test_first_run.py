"""docs/first_run.md, command by command, against a stand-in for the hub: Pythia's file lists and formats.

Weights are random and rows an eighth as wide, the tokenizer small, the books of another kind; cells are cut down.
"""

import csv
import json
import os
import re
import runpy
import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from driving import ROOT
from standins.hub import pg19, pythia, serving, tokenizer_files

from kvstream.inputs.models import PINNED
from kvstream.inputs.pythia_shapes import SHAPES
from kvstream.inputs.text_sources import PG19, read

DOCUMENT = (ROOT / "docs" / "first_run.md").read_text()
COMMANDS = re.findall(r"^ {4}((?:HF_HUB_OFFLINE=1 )?python .*)$", DOCUMENT, re.MULTILINE)
POLICIES = "full,streaming_llm(4,60),streaming_llm(4,60,position='absolute',skip_layers=(0,1))"
SHORT = ["--documents", "1", "--lengths", "200"]
FEW_WORKERS = ["--threads", str(min(2, os.cpu_count()))]  # each loads and checks all models; on two cores it is one
LESS = {  # than a sweep computes, or one with these records
    "full": [*SHORT, "--policies", POLICIES, "--contexts", "none"],
    "first": ["--lengths", "200", "--budgets", "64"],
    "seed": [*SHORT, "--contexts", "none"],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    texts = [text for _, text in read("kjv")][:12]
    tokenizer = tokenizer_files(texts[:2])
    models = zip(PINNED, SHAPES.values(), strict=True)
    repositories = {repo: pythia(folder / repo, hidden // 8, *more, tokenizer) for repo, (hidden, *more) in models}
    with serving(repositories | {PG19[0]: pg19(texts)}) as server:
        yield server


@pytest.mark.long
def test_each_command_does_what_it_says(hub, tmp_path):
    cache = dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"), str(tmp_path / "cache"))
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"} | cache

    def run(line):
        """Run a command of the document, cut down, with its records and reports in a folder of the test's."""
        words = shlex.split(line)
        offline = dict(word.split("=") for word in words if word.startswith("HF_"))
        script, *flags = words[len(offline) + 1 :]
        sweep = re.match(r"sweeps/(\w+)\.py", script)
        if sweep:
            own = flags[-1].partition("/")[2] if "--out" in flags else sweep[1]
            flags += [
                *LESS[own],
                "--device",
                "cpu",
                *FEW_WORKERS,
                *([] if "--out" in flags else ["--out", f"records/{own}"]),
            ]
        command = [sys.executable, str(ROOT / script), *flags]
        before = len(hub.asked)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | offline, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout, hub.asked[before:]

    dry, first, seed, seeds_report, full, report, again, kept = COMMANDS
    said, asked = run(dry)
    assert re.search(r"^full: \d+ cells, 0 finished, \d+ to do$", said, re.MULTILINE)
    assert not [path for path in asked if "safetensors" in path or path.endswith(".bin")]
    said, asked = run(first)
    assert len({path for path in asked if path.endswith("/model.safetensors")}) == 3
    assert not [path for path in hub.asked if path.endswith(".bin")], "nobody wants a pickle"
    for name in ("70m", "160m", "410m"):
        assert f"pythia-{name}-deduped · full · Book 0: PPL " in said
    said, asked = run(seed)
    assert asked == []
    run(seeds_report)
    told = pq.read_table(tmp_path / "report-seed/tables/published.parquet").to_pylist()
    told = [row for row in told if row["source"].startswith("seed")]
    assert len(told) == 16
    assert all("length: ours is 200 tokens" in row["reason"] for row in told if "change" not in row["metric"])
    assert not any("model: " in row["reason"] or "text: " in row["reason"] for row in told)
    said, asked = run(full)
    assert asked == []
    run(report)
    page = (tmp_path / "report-full" / "index.html").read_text()
    assert all(f"pythia-{name}-deduped" in page for name in ("70m", "160m", "410m"))
    said, asked = run(again)
    assert asked == []
    cells = len(json.loads((tmp_path / "records/full/sweep.json").read_text())["cells"])
    assert f"full: {cells} cells, {cells} finished before, 0 to do" in said
    assert kept.startswith("python analysis/results.py --keep seed records/seed --command ")


def test_its_numbers_are_the_grids_and_the_seeds():
    grid = runpy.run_path(str(ROOT / "sweeps" / "full.py"))["GRID"]
    a_model = len(grid.policies) * grid.documents + len(grid.contexts) * len(grid.batches)
    assert f"the number of cells, {len(grid.models) * a_model:,}," in DOCUMENT
    with (ROOT / "analysis" / "published" / "seed_main.csv").open() as file:
        [full] = [row for row in csv.DictReader(file) if row["method"] == "full"]
    assert f"the seed report had {full['ppl_mean_of_documents']} for 70M over ten books" in " ".join(DOCUMENT.split())
