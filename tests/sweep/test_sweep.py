"""Real Ray sweeps of a tiny model: complete, resumable after a kill, honest about failures, clear about bad input."""

import io
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WORDS
from driving import QUICK, ROOT, arguments, digest, kill_once_there_is, run

from kvstream import load_model, parse_policy, replay
from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid import planning as plan
from kvstream.grid.axes import Grid
from kvstream.grid.flags import parse_flags
from kvstream.policies import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.records.disk_space import written_bytes
from kvstream.sweep.cluster import Node, choose_device, divide, fit_for
from kvstream.sweep.main import main, question_of


@pytest.fixture(scope="module")
def swept(world):
    """The records of an uninterrupted sweep, and what it printed."""
    out = world / "records"
    return out, run(arguments(world, out))


def test_a_sweep_is_complete_and_its_rows_are_replays(swept, world):
    out, finished = swept
    assert finished.returncode == 0, finished.stderr
    plan = json.loads((out / "sweep.json").read_text())
    policies = 1 + 2 * 2 + 2 + 2 * 2  # full; 1 and 4 sinks, recent_only, two strategies, at two budgets each
    assert len(plan["cells"]) == len(set(plan["cells"])) == 3 * policies
    assert set(digest(out)) == set(plan["cells"])
    model, tokenizer = load_model(str(world / "model"))
    for key in plan["cells"]:
        record = json.loads((out / f"{key}.json").read_text())
        fields, table = record["fields"], pq.read_table(out / record["file"])
        assert record["rows"] == table.num_rows == 399
        assert table["position"].to_pylist() == list(range(1, 400))
        assert fields["lengths"] == [50, 400]
        text = (world / "texts" / f"{fields['document']}.txt").read_text()
        ids = torch.tensor(tokenizer(text).input_ids[:400])
        assert table["token"].to_pylist() == ids[1:].tolist()
        if fields["strategy"] != "random":  # whose seed is the document's own
            nll = replay(model, ids, parse_policy(fields["policy"]))
            assert np.abs(nll.numpy() - table["nll_nats"].to_numpy()).max() < 1e-5
        full = fields["policy_name"] == "full"
        assert fields["kv_bytes"] == 3 * (400 if full else fields["budget"]) * 64 * 2 * 4
        assert fields["kv_bytes_full"] == 3 * 400 * 64 * 2 * 4
        assert {"python", "torch", "ray", "cpu", "cores", "commit"} <= set(record["environment"])


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_second_run_reuses_everything_and_starts_no_ray(swept, world, device, monkeypatch):
    out, _ = swept
    monkeypatch.setattr("kvstream.sweep.cluster.device_here", lambda: "cpu")
    monkeypatch.setattr("kvstream.sweep.cluster.connect", lambda where: pytest.fail("Ray was asked for"))
    monkeypatch.setattr("kvstream.sweep.ray_address.answering", lambda: None)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    told = in_process(arguments(world, out, "--device", device)[2:])
    assert told == [
        f"quick: 33 cells, 33 finished before, 0 to do → {out}",
        f"report: python analysis/report.py --records {out}",
    ]
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


def in_process(flags):
    """What a sweep of the quick grid prints that ends with exit code 0, in lines."""
    quick = runpy.run_path(str(QUICK))
    with pytest.raises(SystemExit) as ended, redirect_stdout(io.StringIO()) as told:
        main(quick["GRID"], quick["__doc__"], flags)
    assert ended.value.code == 0
    return told.getvalue().splitlines()


def test_a_sweep_ends_with_the_command_that_looks_at_it(swept):
    out, finished = swept
    assert finished.stdout.splitlines()[-1] == f"report: python analysis/report.py --records {out}"


def test_records_carry_the_question_that_was_asked(swept, world):
    """Flags replaced axes, so the docstring speaks of other models and texts."""
    asked = json.loads((swept[0] / "sweep.json").read_text())["question"]
    assert asked == (
        f"What do 11 policies cost and gain on {world / 'model'}? "
        f"Perplexity over the first 50 and 400 tokens of 3 documents of {world / 'texts'}."
    )


@pytest.mark.parametrize(
    ("changes", "question"),
    [
        ({"policies": (RecentOnly(8),)},
         "What does recent_only(8) cost and gain on m? "
         "Perplexity over the first 64 and 128 tokens of 2 documents of kjv."),
        ({"models": ("a", "b", "c"), "documents": 1, "lengths": (4096,), "contexts": (512, 2048)},
         "What do 3 policies cost and gain on a, b and c? Perplexity over the first 4,096 tokens of 1 document of kjv. "
         "Latency after 512 and 2,048 tokens."),
        ({"lengths": (), "contexts": (64,), "batches": (1, 4)},
         "What do 3 policies cost and gain on m? Latency after 64 tokens, 1 and 4 texts at once."),
    ],
)  # fmt: skip
def test_a_grid_without_words_of_its_own_is_put_into_words(changes, question):
    assert question_of(replace(GRID, **changes)) == question


def test_a_kvstream_that_is_not_installed_measures_all_the_same(world, tmp_path):
    """It is only on the path, of the driver and of the workers: as if no package of that name were installed."""
    (tmp_path / "sitecustomize.py").write_text(NOT_INSTALLED)
    out = tmp_path / "records"
    few = ["--policies", "full", "--documents", "1", "--lengths", "50"]
    result = run(arguments(world, out, *few), env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert result.returncode == 0, result.stderr
    [record] = [json.loads(path.read_text()) for path in out.glob("????????????????.json")]
    assert record["environment"]["kvstream"] is None
    assert record["environment"]["torch"] == torch.__version__


NOT_INSTALLED = """
from importlib import metadata

real = metadata.version

def version(name):
    if name == "kvstream":
        raise metadata.PackageNotFoundError(name)
    return real(name)

metadata.version = version
"""


def test_another_grid_reuses_the_cells_they_share_and_a_damaged_one_is_recomputed(swept, world, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(swept[0], out)
    expected = digest(out)
    victim = next(path for path in sorted(out.glob("*.parquet")))
    victim.write_bytes(victim.read_bytes()[:-1])
    smaller = run(arguments(world, out, "--policies", "streaming_llm,recent_only", "--budgets", "8,32,64"))
    assert smaller.returncode == 0, smaller.stderr
    shared = 3 * 6 - (parse_label(out, victim.name[:16]) in {"streaming_llm", "recent_only"})
    assert f"27 cells, {shared} finished before" in smaller.stdout
    assert run(arguments(world, out)).returncode == 0
    assert {key: value for key, value in digest(out).items() if key in expected} == expected


@pytest.mark.parametrize(
    ("device", "dtype", "words"), [("cuda", "float32", "no node"), ("mps", "float64", "Apple silicon")]
)
def test_a_device_that_is_not_there_is_refused(device, dtype, words):
    with pytest.raises(ValueError, match=words):
        choose_device(device, dtype, nodes([2]))
    assert choose_device("auto", "float32", nodes([2])) == "cpu"


def test_gpus_that_torch_cannot_use_are_refused_before_a_model_loads(tmp_path):
    """Ray counts what it is told to; torch is asked where the GPU is said to be."""
    script = (
        "import ray; ray.init(num_cpus=1, num_gpus=1, log_to_driver=False, include_dashboard=False)\n"
        "import sys; sys.path.insert(0, 'sweeps'); from kvstream.sweep.main import main; import latency\n"
        f"main(latency.GRID, latency.__doc__, ['--device', 'cuda', '--out', {str(tmp_path / 'records')!r}])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 2, result.stderr
    assert "device: 'cuda' asked, and Ray counts GPUs, but torch finds none there" in result.stderr
    assert "Traceback" not in result.stderr


def parse_label(out, key):
    return json.loads((out / f"{key}.json").read_text())["fields"]["policy_name"]


def test_a_killed_driver_and_a_rerun_give_the_same_rows(swept, world):
    out = world / "killed"
    kill_once_there_is(out, "????????????????.json", arguments(world, out))
    finished = len(list(out.glob("????????????????.json")))
    assert 0 < finished < 33, "the kill came in the middle"
    again = run(arguments(world, out))
    assert again.returncode == 0, again.stderr
    assert f"{finished} finished before" in again.stdout
    assert digest(out) == digest(swept[0])


def long_text(world, out, *more):
    texts = world / "long"
    if not texts.is_dir():
        texts.mkdir()
        (texts / "long.txt").write_text(" ".join(random.Random(9).choices(WORDS, k=2 * PART_TOKENS + 5000)))
    axes = ["--policies", "streaming_llm(4,60)", "--lengths", f"1000,{2 * PART_TOKENS + 5000}", "--documents", "1"]
    where = ["--models", str(world / "model"), "--text", str(texts), "--out", str(out), "--device", "cpu"]
    return [sys.executable, str(QUICK), *where, *axes, "--contexts", "none", *more]


def test_a_long_text_goes_on_from_its_last_part(world):
    whole, cut = world / "whole", world / "cut"
    assert run(long_text(world, whole)).returncode == 0
    kill_once_there_is(cut, "*.parts.json", long_text(world, cut))
    [parts] = [json.loads(path.read_text()) for path in cut.glob("*.parts.json")]
    reached = parts["parts"][-1]["tokens"]
    assert reached in (PART_TOKENS, 2 * PART_TOKENS)
    again = run(long_text(world, cut))
    assert again.returncode == 0, again.stderr
    assert f"goes on after {reached:,} of {2 * PART_TOKENS + 5000:,} tokens" in again.stdout
    assert digest(cut) == digest(whole)
    assert not list(cut.glob("*.part*")) + list(cut.glob("*.state"))


@pytest.mark.parametrize("length", [1025, 1700])
def test_policies_that_share_first_tokens_have_the_rows_of_each_alone(world, tmp_path, length):
    out = tmp_path / "records"
    labels = ["full", "streaming_llm(4,1020)", "recent_only(700)", "fix_size_l2(64,0.5,keep_low)"]
    result = run(long_text(world, out, "--policies", ",".join(labels), "--lengths", str(length)))
    assert result.returncode == 0, result.stderr
    model, tokenizer = load_model(str(world / "model"))
    ids = torch.tensor(tokenizer((world / "long" / "long.txt").read_text()[: 9 * length]).input_ids[:length])
    records = [json.loads(path.read_text()) for path in out.glob("????????????????.json")]
    assert sorted(record["fields"]["policy"] for record in records) == sorted(labels)
    for record in records:
        table = pq.read_table(out / record["file"])
        assert table["position"].to_pylist() == list(range(1, length))
        assert table["token"].to_pylist() == ids[1:].tolist()
        nll = replay(model, ids, parse_policy(record["fields"]["policy"]))
        assert np.abs(nll.numpy() - table["nll_nats"].to_numpy()).max() < 1e-5


def test_the_number_of_threads_is_measured_and_taken(world, tmp_path):
    out = tmp_path / "records"
    flags = long_text(world, out, "--policies", "full,streaming_llm(4,60)", "--lengths", "1700")[2:]
    script = (
        "import ray; ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)\n"
        "import sys; sys.path.insert(0, 'sweeps'); from kvstream import pacing, sweep; import quick\n"
        f"pacing.WORTH_PACING_S = 0; sweep.main(quick.GRID, quick.__doc__, {flags!r})"
    )
    result = run([sys.executable, "-c", script])
    assert result.returncode == 0, result.stderr
    [told] = re.findall(r"tokens/s by threads per cell: 1: ([\d,]+), 2: ([\d,]+); taking ([12])", result.stdout)
    rates = [int(rate.replace(",", "")) for rate in told[:2]]
    assert rates[int(told[2]) - 1] == max(rates) > 0
    records = [json.loads(path.read_text()) for path in out.glob("????????????????.json")]
    assert [record["fields"]["threads"] for record in records] == [int(told[2])] * 2


FAILING = """
import os, pathlib
from dataclasses import dataclass
from kvstream import FixSizeL2, Full, RecentOnly, grid
from kvstream.grid.axes import Grid
from kvstream.sweep.main import main

grid._policy = lambda axis, policy: None  # a sweep refuses policies of others, whose code is in no cell's key
@dataclass(frozen=True)
class DeadlyOnce(FixSizeL2):
    def token_scores(self, *keys_and_values):
        marker = pathlib.Path("{marker}")
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        return super().token_scores(*keys_and_values)

@dataclass(frozen=True)
class Deadly(FixSizeL2):
    def token_scores(self, *keys_and_values):
        os.kill(os.getpid(), 9)

@dataclass(frozen=True)
class Faulty(FixSizeL2):
    def token_scores(self, *keys_and_values):
        raise RuntimeError("broken on purpose\\nsecond line")

FAILING = tuple(policy(budget, 0.5, "keep_low") for policy, budget in ((DeadlyOnce, 8), (Deadly, 9), (Faulty, 10)))
GRID = Grid("failing", ("{model}",), (Full(), *FAILING, RecentOnly(8)), "{texts}", 1, (300,))
main(GRID, "Does one bad cell stop the others?\\n\\nNo.")
"""


def test_cells_that_fail_are_recorded_and_the_rest_finish(world, tmp_path):
    """One kills its process once, one always, one raises; the first is tried again and finishes."""
    script, out = tmp_path / "failing.py", tmp_path / "records"
    names = {"marker": tmp_path / "marker", "model": world / "model", "texts": world / "texts"}
    script.write_text(FAILING.format(**names))
    result = run([sys.executable, str(script), "--out", str(out), "--device", "cpu"])
    assert result.returncode == 1
    assert "2 of 5 cells are not finished" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert (tmp_path / "marker").exists()
    assert len(digest(out)) == 3
    failures = [json.loads(path.read_text()) for path in out.glob("*.failed.json")]
    told = sorted((failure["fields"]["budget"], failure["attempts"], failure["error"]) for failure in failures)
    killed = "RuntimeError: the process that computed it was killed or crashed, or its machine was lost"
    assert [(budget, attempts) for budget, attempts, _ in told] == [(9, 2), (10, 1)]
    assert told[0][2].splitlines()[0] == killed
    assert told[1][2] == "RuntimeError: broken on purpose\nsecond line"
    assert json.loads((out / "sweep.json").read_text())["question"] == "Does one bad cell stop the others?"


CHECKING = """
import os, pathlib, sys
import ray

FOLDER = pathlib.Path({folder!r})

def asked_before_cells():
    "Tell which models are asked whether kvstream computes what they do; one is none of these, one's worker dies once."
    from kvstream import probe
    real = probe.check

    def check(model, ids_T=None):
        if not getattr(model, probe.CHECKED, ()):
            kind = "parallel" if model.config.use_parallel_residual else "serial"
            with open(FOLDER / "asked", "a") as file:
                file.write(f"{{kind}} {{'none' if ids_T is None else len(ids_T)}}\\n")
            if kind == "serial":
                raise ValueError("model=Serial computes something else\\n(by 3 nats); choose another")
            if {dies} and not (FOLDER / "died").exists():
                (FOLDER / "died").touch()
                os.kill(os.getpid(), 9)
        real(model, ids_T)

    probe.check = check

ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False,
         runtime_env={{"worker_process_setup_hook": asked_before_cells}})
sys.path.insert(0, "sweeps")
import quick
from kvstream.sweep.main import main
main(quick.GRID, quick.__doc__, {flags!r})
"""
LATENCY_ONCE = ["--contexts", "8", "--prefills", "1", "--rounds", "1", "--steps", "1"]


def checking(world, folder, *more, dies=False):
    """A sweep of the quick grid whose workers write down which models are checked, and what it wrote down."""
    flags = arguments(world, folder / "records", "--policies", "full,recent_only", "--budgets", "8", *more)[2:]
    result = run([sys.executable, "-c", CHECKING.format(folder=str(folder), flags=flags, dies=dies)])
    return result, (folder / "asked").read_text().splitlines()


def test_a_model_is_asked_once_before_its_cells_and_one_that_is_refused_costs_no_others(world, tmp_path, tiny_model):
    """The worker that asks the other one dies once, and that is asked again."""
    shutil.copytree(world / "model", tmp_path / "serial")
    tiny_model("neox_serial", torch.float32).save_pretrained(tmp_path / "serial")
    models = f"{tmp_path / 'serial'},{world / 'model'}"
    result, asked = checking(world, tmp_path, "--models", models, *LATENCY_ONCE, dies=True)
    assert result.returncode == 1, result.stderr
    assert asked == ["serial 400", "parallel 400", "parallel 400"]
    lines = result.stdout.splitlines()
    assert "FAILED" not in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    reason = "model=Serial computes something else (by 3 nats); choose another"
    [told] = [line for line in lines if "Serial" in line]
    assert re.fullmatch(
        rf"\[6/14, unknown time left\] not run: no cell of {tmp_path / 'serial'}: {re.escape(reason)}", told
    )
    assert lines.index(told) < min(number for number, line in enumerate(lines) if "PPL" in line)
    assert "7 of 14 cells are not finished" in result.stderr
    failed = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.failed.json")]
    assert sorted(each["fields"]["kind"] for each in failed) == ["latency", *["quality"] * 6]
    assert {each["fields"]["model"] for each in failed} == {str(tmp_path / "serial")}
    assert {each["error"] for each in failed} == {f"ValueError: {reason.replace(' (', chr(10) + '(')}"}
    assert len(digest(tmp_path / "records")) == 7


def test_where_only_latency_is_asked_a_model_is_checked_without_a_text(world, tmp_path):
    result, asked = checking(world, tmp_path, "--lengths", "none", *LATENCY_ONCE)
    assert result.returncode == 0, result.stderr
    assert asked == ["parallel none"]


def test_where_no_model_is_usable_there_is_nothing_to_report(world, tmp_path, tiny_model):
    shutil.copytree(world / "model", tmp_path / "serial")
    tiny_model("neox_serial", torch.float32).save_pretrained(tmp_path / "serial")
    result, _ = checking(world, tmp_path, "--models", str(tmp_path / "serial"))
    assert result.returncode == 1, result.stderr
    assert "[6/6, unknown time left] not run: no cell of" in result.stdout.splitlines()[-1]


def test_a_cell_that_no_machine_can_hold_is_not_run_and_the_others_are(world, tmp_path):
    out = tmp_path / "records"
    flags = long_text(world, out, "--policies", "full,streaming_llm(4,60)")[2:]
    script = (
        "import ray; ray.init(num_cpus=1, _memory=3e8, log_to_driver=False, include_dashboard=False)\n"
        "import sys; sys.path.insert(0, 'sweeps'); from kvstream.sweep.main import main; import quick\n"
        f"main(quick.GRID, quick.__doc__, {flags!r})"
    )
    result = run([sys.executable, "-c", script])
    assert result.returncode == 1, result.stderr
    assert f"not run: lengths: {2 * PART_TOKENS + 5000} tokens of" in result.stderr
    assert "give shorter lengths, or a policy that bounds the cache" in result.stderr
    [finished] = [json.loads(path.read_text()) for path in out.glob("????????????????.json")]
    assert finished["fields"]["policy"] == "streaming_llm(4,60)"
    [failed] = [json.loads(path.read_text()) for path in out.glob("*.failed.json")]
    assert failed["attempts"] == 0


def test_latency_cells_wait_until_all_quality_cells_are_done(world, tmp_path):
    out = tmp_path / "records"
    flags = ["--policies", "streaming_llm", "--budgets", "8", "--start-sizes", "2", "--contexts", "24"]
    command = [*arguments(world, out, *flags), "--rounds", "3", "--prefills", "1"]
    result = run(command)
    assert result.returncode == 0, result.stderr
    records = [json.loads(path.read_text()) for path in out.glob("????????????????.json")]
    assert sorted(record["fields"]["kind"] for record in records) == ["latency", *["quality"] * 3]
    ends = {record["cell"]: datetime.fromisoformat(record["written_at"]).timestamp() for record in records}
    [timed] = [record for record in records if record["fields"]["kind"] == "latency"]
    assert ends[timed["cell"]] + 1 - timed["seconds"] >= max(end for cell, end in ends.items() if cell != timed["cell"])
    grid, _ = parse_flags(runpy.run_path(str(QUICK))["GRID"], "", command[2:])
    [cell] = plan.latency_cells(grid, plan.prepare(grid), "cpu", "float32", None)
    written = sum(path.stat().st_size for path in out.glob(f"{cell.key}.*"))
    assert 0.9 * written <= written_bytes([cell], 1, block=1) <= 2 * written, "the room it takes is known before"


def test_a_dry_run_prints_cells_and_cost_and_writes_nothing(world, tmp_path):
    result = run(arguments(world, tmp_path / "none", "--dry-run"))
    assert result.returncode == 0, result.stderr
    assert "quick: 33 cells, 0 finished, 33 to do" in result.stdout
    assert "cost: 13,200 tokens" in result.stdout
    assert not (tmp_path / "none").exists()


GRID = Grid("g", ("m",), (Full(), StreamingLLM(4, 252), FixSizeL2(256, 0.7, "keep_low")), "kjv", 2, (64, 128))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], GRID.policies),
        (["--budgets", "8"], (Full(), StreamingLLM(4, 4), FixSizeL2(8, 0.7, "keep_low"))),
        (["--policies", "recent_only"], (RecentOnly(256),)),
        (["--policies", "full,streaming_llm", "--start-sizes", "0,2"],
         (Full(), StreamingLLM(0, 256), StreamingLLM(2, 254))),
        (["--policies", "streaming_llm(1,7),full"], (Full(), StreamingLLM(1, 7))),
        (["--policies", "recent_only", "--positions", "cache,frozen", "--skip-layers", "0,1"],
         (RecentOnly(256, skip_layers=(0, 1)), RecentOnly(256, position="frozen", skip_layers=(0, 1)))),
        (["--strategies", "random", "--keep-ratios", "0.5,0.9", "--policies", "fix_size_l2"],
         (FixSizeL2(256, 0.5, "random"), FixSizeL2(256, 0.9, "random"))),
    ],
)  # fmt: skip
def test_flags_replace_axes(flags, expected):
    assert parse_flags(GRID, "", flags)[0].policies == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budgets", "0"], ["budget", "at least 1"]),
        (["--budgets", "8,"], ["--budgets", "comma list"]),
        (["--budgets", "-8"], ["--budgets"]),
        (["--budgets", "eight"], ["--budgets", "'eight'", "digits"]),
        (["--budgets", "4", "--start-sizes", "8"], ["start_sizes: 8", "budget of 4"]),
        (["--policies", "h2o"], ["--policies", "'h2o'", "choose among full"]),
        (["--policies", ""], ["--policies"]),
        (["--policies", "streaming_llm(1)"], ["--policies", "takes start_size"]),
        (["--policies", "streaming_llm(1,2"], ["--policies", "cannot be read"]),
        (["--strategies", "keep_all"], ["strategy='keep_all'", "keep_low"]),
        (["--keep-ratios", "2"], ["keep_ratio=2.0", "from 0 to 1"]),
        (["--keep-ratios", "nan"], ["keep_ratio=nan", "from 0 to 1"]),
        (["--positions", "middle"], ["position='middle'", "cache, absolute, frozen"]),
        (["--lengths", "1"], ["lengths: 1", "2 or more"]),
        (["--contexts", "0"], ["contexts: 0", "1 or more"]),
        (["--batches", "0"], ["batches: 0", "1 or more"]),
        (["--rounds", "0"], ["--rounds", "1 or more"]),
        (["--policies", "recent_only(8)", "--budgets", "16"], ["--budgets", "nothing to vary"]),
        (["--documents", "0"], ["documents: 0", "1 or more"]),
        (["--documents", "two"], ["--documents", "digits"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
        (["--threads", "0"], ["--threads", "1 or more"]),
        (["--budget", "8"], ["unrecognized arguments: --budget"]),
        (["--models"], ["--models", "expected"]),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(GRID, "", flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "shape:pythia-70m"], ["models: 'shape:pythia-70m'", "random weights"]),
        (["--models", "./nowhere"], ["models: './nowhere'", "not a directory"]),
        (["--text", "nowhere.txt"], ["text: 'nowhere.txt'"]),
        (["--documents", "4"], ["documents: 4 asked, only 3"]),
        (["--lengths", "501"], ["at least 501 tokens", "has 500"]),
        (["--skip-layers", "3"], ["skip_layers: 3", "0 to 2"]),
    ],
)
def test_what_cannot_run_is_said_before_a_model_loads(world, tmp_path, flags, words):
    result = run(arguments(world, tmp_path / "none", *flags))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("per_node", "threads", "cells", "expected"),
    [
        ([2], None, 18, (1, 2)),
        ([8], None, 2, (4, 2)),
        ([64], None, 1, (64, 1)),  # a long cell first measures whether fewer would do
        ([2, 6], 4, 9, (4, 1)),
        ([4], 4, 9, (4, 1)),
    ],
)
def test_cores_are_divided_so_that_all_are_busy(per_node, threads, cells, expected):
    slots = divide("cpu", nodes(per_node), threads, cells)
    assert (slots.threads, slots.count) == expected


def test_more_threads_than_a_node_has_are_refused():
    with pytest.raises(ValueError, match=r"threads: 3 asked, the largest node has 2 CPUs"):
        fit_for("cpu", nodes([2, 2]), 3)
    assert [node.cores for node in fit_for("cpu", nodes([2, 4, 8]), 3)] == [4, 8]


def test_a_cell_takes_no_more_cores_than_a_node_that_can_hold_it_has():
    machines = [Node("small", 8, 0, 1e9), Node("large", 2, 0, 1e12)]
    assert divide("cpu", machines, None, 1, needed=1e8).threads == 8
    assert divide("cpu", machines, None, 1, needed=1e11).threads == 2


def nodes(cores):
    return [Node(str(place), count, 0, 1e9) for place, count in enumerate(cores)]


def test_the_full_sweep_is_the_missions_grid():
    grid = runpy.run_path(str(ROOT / "sweeps" / "full.py"))["GRID"]
    assert grid.models == tuple(f"pythia-{size}-deduped" for size in ("70m", "160m", "410m"))
    assert (grid.text, grid.documents, grid.lengths[-1]) == ("pg19", 10, 8192)
    kinds = Counter((policy.name, policy.regions.budget) for policy in grid.policies if policy.regions)
    each = {"streaming_llm": 5, "recent_only": 1, "fix_size_l2": 3}
    assert kinds == {(name, budget): count for name, count in each.items() for budget in (256, 512, 1024)}
    sinks = {policy.start_size for policy in grid.policies if policy.name == "streaming_llm"}
    assert (sinks, Full() in grid.policies) == ({0, 1, 2, 4, 8}, True)
