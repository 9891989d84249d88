"""Windows run anew, beside the policies of a sweep: sampled rows, compared with the full cache's on the same tokens."""

import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from driving import here, labelled, sweep_here
from golden import quick_report
from report_oracle import page_of, rows_of

from kvstream import __main__ as command
from kvstream import load_model, recompute

WINDOW, EVERY, TOKENS = 24, 8, 200
FLAGS = (
    "--documents",
    "3",
    "--lengths",
    f"100,{TOKENS}",
    "--recompute",
    f"{WINDOW},12",
    "--recompute-every",
    str(EVERY),
)


@pytest.fixture(scope="module")
def swept(ray_here, world, tmp_path_factory):
    """Records of full, one policy and two windows, and their report."""
    folder = tmp_path_factory.mktemp("recomputed")
    done = sweep_here(labelled(world, folder / "records", "full,streaming_llm(4,20)", TOKENS, *FLAGS))
    assert done.returncode == 0, done.stdout + done.stderr
    told = quick_report("--records", folder / "records", "--out", folder / "report")
    assert (told.returncode, told.stderr) == (0, "")
    return folder, done.stdout


def losses(folder, policy):
    """By document and position: nll of each row."""
    found = {}
    for path in sorted((folder / "records").glob("????????????????.json")):
        record = json.loads(path.read_text())
        if record["fields"]["policy"] == policy:
            table = pq.read_table(folder / "records" / record["file"])
            rows = zip(table["position"].to_pylist(), table["nll_nats"].to_pylist())
            found[record["fields"]["document"]] = dict(rows)
    return found


def test_rows_are_those_of_recompute(swept, world):
    folder, said = swept
    assert "recompute(24,every=8)" in said
    model, tokenizer = load_model(str(world / "model"))
    found = losses(folder, "recompute(24,every=8)")
    assert len(found) == 3
    for document, rows in found.items():
        ids = torch.tensor(tokenizer((world / "texts" / f"{document}.txt").read_text()).input_ids[:TOKENS])
        expected = recompute(model, ids, WINDOW, every=EVERY)
        assert list(rows) == expected.position.tolist() == list(range(EVERY, TOKENS, EVERY))
        assert list(rows.values()) == pytest.approx(expected.nll_nats.tolist(), abs=1e-5)


def test_it_is_compared_with_full_on_the_same_tokens(swept):
    folder, _ = swept
    mine, full = losses(folder, "recompute(24,every=8)"), losses(folder, "full")
    for length in (100, TOKENS):
        pairs = [(nll, full[name][at]) for name, rows in mine.items() for at, nll in rows.items() if at < length]
        ours, theirs = (math.fsum(each) / len(pairs) for each in zip(*pairs))
        rows = rows_of(folder / "report", "perplexity")
        [row] = [row for row in rows if row["policy"] == "recompute(24,every=8)" and int(row["length"]) == length]
        assert float(row["ppl_change_percent"]) == pytest.approx(100 * (math.exp(ours - theirs) - 1), rel=1e-6)
        assert float(row["ppl_corpus"]) == pytest.approx(math.exp(ours), rel=1e-6)
        assert (row["paired_documents"], int(row["scored"])) == ("3", len(pairs))
        assert float(row["ppl_change_low_percent"]) <= float(row["ppl_change_percent"])


def test_it_stands_in_the_table_and_is_no_policy(swept):
    folder, _ = swept
    page = page_of(folder / "report")
    table = page.partition('id="results"')[2].partition("</table>")[0]
    assert "each token costs a forward pass of its window, 24 tokens; one of 8 measured" in table
    assert "0 … window − 1" in table
    summary = (folder / "report" / "summary.md").read_text(encoding="utf-8")
    assert "`recompute(24,every=8)` (one of 8 tokens)" in summary
    for name in ("cards", "tradeoff", "by_budget", "length", "along_the_text"):
        assert "recompute" not in str(rows_of(folder / "report", name)), name
        assert name == "cards" or "streaming_llm(4,20)" in str(rows_of(folder / "report", name)), name
    scored = 3 * (2 * (TOKENS - 1) + 2 * ((TOKENS - 1) // EVERY))
    assert f"{scored:,} scored tokens" in page


def test_it_is_verified_done_again_and_not_computed_twice(swept, world):
    folder, _ = swept
    records = folder / "records"
    verified = here(command.main, ["verify", str(records)])
    assert verified.returncode == 0
    assert "12 cells" in verified.stdout
    paths = sorted(records.glob("????????????????.json"))
    key = next(path.stem for path in paths if "every" in json.loads(path.read_text())["fields"])
    rerun = here(command.main, ["rerun", str(records), key])
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    again = sweep_here(labelled(world, records, "full,streaming_llm(4,20)", TOKENS, *FLAGS))
    assert "12 finished before, 0 to do" in again.stdout


def test_its_cost_is_told(world, tmp_path):
    told = sweep_here(labelled(world, tmp_path, "full", TOKENS, *FLAGS, "--recompute", "24", "--dry-run")).stdout
    windows = [line for line in told.splitlines() if "recompute" in line]
    assert len(windows) == 3
    # One window holds the first 24 tokens and tells three of the sample; the other 21 have 24 tokens each.
    assert all(line.endswith(f"  {24 + 21 * 24} tokens") for line in windows), windows
