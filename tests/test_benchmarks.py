"""What the benchmarks compute from what they time: operations, intervals, the README's table. Times nothing."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import build_model

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import divergence
import gpu
import gpu_tables
import measuring
import mission
import replay
import tables

from kvstream import Full, RecentOnly, StreamingLLM
from kvstream.grid.flags import parse_flags

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BETWEEN = {"ratio": 0.8444, "low": 0.8, "high": 0.9}


@pytest.fixture
def report():
    share = {"part": "peak", "model": "70m", "policy": "recent_only(256)", "tokens_per_s": 1234.5, **BETWEEN}
    faster = {"model": "70m", "policy": "full", "ratio": 20.06, "low": 19.0, "high": 21.0}
    grid = {"policies": 9, "documents": 2, "tokens": 2048, "replayed_s": 25.4, "token_by_token_s": 512.3}
    return {
        "command": "make bench-replay",
        "file": "benchmarks/replay.json",
        "machine": {"cpu": "Some CPU", "cores": 2, "threads": 2, "torch": "2.8", "steal": 0.0, "others": None},
        "results": [
            {"part": "memory", "model": "70m", "policy": "p", "tokens": 8192, "peak_bytes": 200_400_000},
            {"part": "growth", "ratio": 1.0042, "low": 1.0, "high": 1.01},
            {"part": "peak of products", "model": "70m", "peak_gflops": 149.7},
            {**share, "tokens": 2048},
            {**share, "tokens": 4096},
            {"part": "dynamic", "context": 3840, **faster},
            {"part": "peer", **faster, "model": "410m"},
            {"part": "grid", **grid, **faster},
        ],
    }


@pytest.mark.parametrize("policy", [Full(), RecentOnly(5), StreamingLLM(2, 7, skip_layers=(1,))], ids=str)
def test_operations_are_those_of_the_products_and_of_visible_keys(policy):
    model, tokens = build_model("neox", torch.float32), 20
    size, layers, vocabulary = model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size
    inner = model.config.intermediate_size
    linear = 2 * tokens * (layers * (4 * size**2 + 2 * size * inner) + size * vocabulary)
    visible = sum(policy.kept(layer, token) + 1 for layer in range(layers) for token in range(tokens))
    assert replay.flops(model, policy, tokens) == linear + 4 * size * visible


def test_a_ratio_is_the_median_over_rounds_and_its_interval_holds_it(monkeypatch, capsys):
    monkeypatch.setattr(measuring, "results", kept := [])
    rounds = {"slow": np.array([2.0, 4.0, 9.0]), "fast": np.array([1.0, 2.0, 3.0])}
    middle, low, high = measuring.ratio(rounds, "slow", "fast", "target ≥ 1", part="x")
    assert (middle, low, high) == (2.0, 2.0, 3.0)
    assert kept == [{"above": "slow", "below": "fast", "ratio": 2.0, "low": 2.0, "high": 3.0, "target": "target ≥ 1",
                     "part": "x"}]  # fmt: skip
    assert "slow / fast: 2.000 [2.000, 3.000]" in capsys.readouterr().out


def test_everyone_takes_one_turn_a_round(monkeypatch):
    monkeypatch.setattr(measuring.gc, "collect", lambda: None)  # slow where many modules are imported
    calls = []
    turns = [lambda name=name: calls.append(name) or {name: len(calls)} for name in "abc"]
    found = measuring.interleaved(turns, 4)
    assert sorted(calls) == sorted("abc" * 4)
    assert all({*calls[start : start + 3]} == {*"abc"} for start in range(0, 12, 3))
    assert {label: len(values) for label, values in found.items()} == dict.fromkeys("abc", 4)


def test_a_replay_is_timed_at_every_length_and_with_a_full_budget():
    model = build_model("neox", torch.float32)
    found = replay.replaying(model, RecentOnly(600), (512, 1536), False)()
    assert set(found) == {"recent_only(600) @512", "recent_only(600) @1536", "recent_only(600) replayed"}
    assert all(seconds > 0 for seconds in found.values())
    assert set(replay.replaying(model, Full(), (512,), False)()) == {"full @512"}


def test_the_readmes_block_is_written_from_the_report(report, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.rewrite(path, json.loads(json.dumps(report)))
    text = path.read_text()
    assert text.startswith(f"before\n{tables.BEGIN}\n| Replay under | 70m, 4,096 tokens | of 150 GFLOP/s |\n")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "old" not in text
    for said in (
        "| `recent_only(256)` | 1,234 tokens/s | 84 % [80, 90] |",
        "| Replay, times faster than | 70m | 410m |",
        "| DynamicCache at 3,840 tokens, `full` | 20.1 × [19.0, 21.0] | – |",
        "| attention-sinks 0.4.0, `full` | – | 20.1 × [19.0, 21.0] |",
        "25 s, 20.1 × [19.0, 21.0] faster than token by token, which is estimated at 512 s",
        "200 MB",
        "1.004 × [1.000, 1.010]",
        "Some CPU, 2 cores",
        "From `make bench-replay`, then `python tests/benchmarks/replay.py --from benchmarks/replay.json",
    ):
        assert said in text, said
    report["machine"] |= {"steal": 0.05, "others": 0.4}
    told = "Meanwhile: 5.0 % of processor time stolen, other processes used 0.4 cores."
    assert told in "\n".join(tables.block_of(report))
    report["machine"] |= {"steal": None, "others": None}
    assert "Meanwhile" not in "\n".join(tables.block_of(report))


def test_a_readme_without_markers_is_left_alone(report, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="must hold one"):
        tables.rewrite(path, report)
    assert path.read_text() == "nothing"


def test_the_page_of_benchmarks_has_a_place_for_the_table():
    text = PAGE.read_text()
    assert text.count(tables.BEGIN) == text.count(tables.END) == 1


def test_the_command_is_the_one_that_measures_the_same_again():
    flags = replay.parser()
    assert replay.command(flags.parse_args([]), flags.parse_args([])) == "make bench-replay"
    given = ["--only", "peak", "--models", "70m", "--lengths", "2048,4096"]
    asked = replay.command(flags.parse_args(given), flags.parse_args([]))
    assert asked == f"python tests/benchmarks/replay.py {' '.join(given)}"
    for wrong in ("1000", "512", "few"):
        with pytest.raises(SystemExit):
            flags.parse_args(["--lengths", wrong])


def test_of_several_reports_the_later_has_a_part(report):
    later = {
        "command": "other", "file": "b.json",
        "results": [{"part": "growth", "ratio": 1.5, "low": 1.4, "high": 1.6}, {"label": "x", "median_s": 1.0}],
    }  # fmt: skip
    both = replay.merged([report, later])
    assert [entry["ratio"] for entry in both["results"] if entry.get("part") == "growth"] == [1.5]
    assert both["command"] == f"{report['command']} and other"
    assert len(both["results"]) == len(report["results"]) + 1
    assert replay.merged([report]) == report


def test_the_gpu_table_is_written_from_its_report(tmp_path, capsys, monkeypatch):
    labels = [gpu_tables.PLAIN, *map(str, gpu_tables.POLICIES)]
    case = {"model": "70m", "dtype": "bfloat16", "texts": 8, "tokens_per_s": dict.fromkeys(labels, 1234.6)}
    case["of_plain"] = dict.fromkeys(labels, 1.5)
    report = {"card": "Some GPU", "torch": "2.11", "rounds": 9, "cases": [case, {**case, "texts": 1}]}
    labels = [gpu_tables.PLAIN, *map(str, gpu_tables.SCANNED)]
    report["scanned"] = [{**case, "tokens_per_s": dict.fromkeys(labels, 9.0), "of_plain": dict.fromkeys(labels, 0.5)}]
    about = {"model": "70m", "dtype": "bfloat16", "texts": 1, "context": 1100, "compiled": False}
    model = build_model("neox", torch.float32)
    report["decoding"] = [found := gpu.decode(model, about, rounds=1, prefills=1, steps=1)]
    report["decoding"] += [found | {"compiled": True}, found | {"model": "410m", "context": 8192, "texts": 8}]
    report["exactness"] = gpu.exactness("cpu", tokens=90)
    assert all(0 < apart["mean"] <= apart["most"] < 2e-5 for apart in report["exactness"].values())
    assert sorted(found["step_ms"]) == sorted(gpu_tables.CONTENDERS)
    assert sorted(found["ttft_ms"]) == sorted(gpu_tables.CONTENDERS[:4])
    assert found["step_of_full"]["full"] == found["ttft_of_full"]["full"] == 1.0
    assert (sorted(found["step_of_full"]), sorted(found["ttft_of_full"])) == (
        sorted(gpu_tables.CONTENDERS), sorted(gpu_tables.CONTENDERS[:4]),
    )  # fmt: skip
    assert sorted(found["launched"]) == sorted(gpu_tables.CONTENDERS)
    assert found["step_of_dynamic"][gpu.DYNAMIC] == found["ttft_of_dynamic"][gpu.DYNAMIC] == 1.0
    assert sorted(found["step_of_twin"]) == sorted(map(str, gpu_tables.DECODED))
    report["far"] = gpu.far(model, (1100, 1300), rounds=2)
    page, old = tmp_path / "page.md", "<!-- {0}:begin -->\nold\n<!-- {0}:end -->\n"
    page.write_text("".join(map(old.format, gpu_tables.BLOCKS)))
    gpu_tables.rewrite(page, report)
    text = page.read_text()
    assert f"| 70m, bfloat16, 8 texts side by side | 1,235 |{' 1,235 · 1.50 |' * 5}\n" in text
    assert "| 70m, bfloat16, one text |" in text
    assert f"| 70m, bfloat16, 8 texts side by side | 9 |{' 9 · 0.50 |' * 4}\n" in text
    assert text.count("Some GPU, torch 2.11") == 2
    assert "| 70m, bfloat16, one text, 1,100 tokens | " in text
    assert "| 70m, bfloat16, one text, 1,100 tokens, compiled | " in text
    assert "`streaming_llm(4,1020)`, 70m, bfloat16, 8 texts | 1,235 | ≥ 1,000,000 | missed |" in text
    rows = gpu_tables.with_targets(report | {"mission": {"cells": 840, "seconds": 400.4}})["targets"]
    targets = {row["what"]: row for row in rows}
    assert len(targets) == len(rows) == 13
    [most] = [row for what, row in targets.items() if what.startswith("losses in float32")]
    assert (most["target"], most["reached"]) == ("≤ 2e-05", True)
    assert not targets["seconds, 840 quality cells, start-up included"]["reached"]
    over = "a step under `streaming_llm(4,1020)` ÷ without eviction, 70m, bfloat16, one text, 1,100 tokens"
    assert {over, f"{over}, compiled"} <= targets.keys()
    assert "A step under `streaming_llm(4,1020)`, 410m, bfloat16, after 1,300 tokens (" in text
    assert "old" not in text
    assert "The mission's grid was not run on a GPU yet" in text
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken = mission.about(300.4, 840, []) | {"torch": "2.11", "commit": "abc"}
    gpu_tables.rewrite(page, report | {"mission": taken})
    assert "2 × Some GPU, torch 2.11, commit abc: 840 quality cells in 300 s. From `python" in page.read_text()
    for name in gpu_tables.BLOCKS:
        assert [PAGE.read_text().count(f"<!-- {name}:{end} -->") for end in ("begin", "end")] == [1, 1]
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must hold one"):
        gpu_tables.rewrite(page, report)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    capsys.readouterr()
    gpu.main()
    assert capsys.readouterr().out == "bench-gpu: no CUDA device here, nothing was measured\n"
    assert mission.main([]) == 0
    assert capsys.readouterr().out == "mission: no CUDA device here, nothing was measured\n"
    monkeypatch.setattr(sys, "argv", ["divergence.py", "--device", "cuda"])
    divergence.main()
    assert capsys.readouterr().out == "divergence: no CUDA device here, nothing was measured\n"


def test_the_missions_grid_has_840_cells(tmp_path):
    _, script, *flags = mission.command(tmp_path, [])
    grid, _ = parse_flags(runpy.run_path(script)["GRID"], "", flags)
    assert len(grid.policies) * grid.documents * len(grid.models) == 840
    assert not grid.contexts
    assert max(grid.lengths) == 8192
