"""Bad configurations and flags: one line with field, value and remedy, exit code 2, in two seconds, no model loaded.

Most run in this process, where whatever would start Ray or read weights fails the test; some as a user would.
"""

import json
import os
import pickle
import shutil
import sys
import time
from itertools import product

import pytest
import transformers
from driving import QUICK, ROOT, run

from kvstream import __main__ as command
from kvstream.grid.axes import Grid
from kvstream.policies import Full, RecentOnly, StreamingLLM
from kvstream.sweep import cluster, main

LIMIT_S = 2.0
HUGE = 10**30
GRID = Grid("quick", ("m",), (Full(), StreamingLLM(4, 4), RecentOnly(8)), "kjv", 1, (50,))


def never(*args, **options):
    raise AssertionError("a bad input must be refused before this is called")


@pytest.fixture
def ends(capfd):
    """Factory: an act that ends the program → its exit code and what it said."""

    def once(act):
        with pytest.raises(SystemExit) as ended:
            act()
        return ended.value.code, *capfd.readouterr()

    return once


def flags_for(model, text):
    return ["--models", str(model), "--text", str(text), "--out", "out", "--contexts", "none", "--lengths", "50"]


@pytest.fixture
def refused(world, tmp_path, monkeypatch, ends):
    """Factory: flags → the line that a sweep of the tiny world ends with."""
    monkeypatch.setattr(cluster, "connect", never)
    monkeypatch.setattr(cluster, "uses_ray", lambda: False)  # whatever other tests have started
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", never)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)

    def refuse(*flags, model=world / "model", text=world / "texts"):
        return checked(*ends(lambda: main.main(GRID, "Is it refused?", [*flags_for(model, text), *flags])))

    yield refuse
    assert not (tmp_path / "out").exists(), "nothing is written"


def checked(code, out, error, start="error: "):
    """The one line of an error, if all is as it should be."""
    assert (code, out) == (2, "")
    assert error.startswith(start), error
    assert error.count("\n") == 1, error
    assert error.strip().isprintable(), error
    assert "; " in error, f"no remedy: {error}"
    return error


# What needs more than the command line: that alone is read in tests/grid/test_flags.py


FLAGS = [
    (["--dtype", "tf32", "--device", "cpu"], ["dtype: 'tf32'", "--dtype float32"]),
    (["--dtype", "tf32", "--device", "cpu", "--dry-run"], ["dtype: 'tf32'", "--dtype float32"]),
    (["--compiled"], ["compiled: no latency cells", "give contexts"]),
    (
        ["--compiled", "--device", "cpu", "--contexts", "40"],
        ["compiled: only NVIDIA GPUs", "this is cpu", "use --no-compiled"],
    ),
    (["--skip-layers", "3"], ["skip_layers: 3", "from 0 to 2"]),
    (["--policies", "recent_only(8,skip_layers=(9,))"], ["skip_layers: 9", "from 0 to 2"]),
    (["--lengths", "501"], ["documents: 1 asked", "at least 501 tokens", "has 500", "shorter lengths"]),
    (["--documents", "4"], ["documents: 4 asked, only 3", "fewer documents"]),
    (["--bos", "on"], ["bos: 'on'", "no BOS token", "choose auto or off"]),
    (["--join-rows"], ["join_rows: ", "holds whole texts", "leave --join-rows out"]),
    (["--out", ""], ["out: ''", "give one"]),
    (["--out", "\x1b[2J"], ["out: '\\x1b[2J'", "give another"]),
    (["--out", "/dev/null"], ["out: cannot write to '/dev/null'", "give another --out"]),
    (["--out", f"{QUICK}/inside"], [f"out: cannot write to '{QUICK}/inside'", "give another --out"]),
]


@pytest.mark.parametrize(
    ("flags", "words"), FLAGS, ids=lambda value: " ".join(value)[:40].encode("unicode_escape").decode()
)
def test_a_bad_flag(refused, flags, words):
    line = refused(*flags)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("place", ["/proc/records", "x" * 300])
def test_a_place_that_cannot_be_written(refused, tmp_path, place):
    assert f"out: cannot write to {place!r}" in refused("--out", place)
    assert list(tmp_path.iterdir()) == []


# Models


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere", ["'nowhere' is not a model", "a local directory"]),
        ("a\x1b[2J", ["'a\\x1b[2J' is not a model", "rename it"]),
        ("shape:pythia-70m", ["random weights", "measure latency alone"]),
        ("/dev/null", ["'/dev/null' is not a directory", "give a Hub id"]),
    ],
)
def test_a_bad_model(refused, spec, words):
    line = refused(model=spec)
    assert all(word in line for word in words), line


def test_one_model_under_two_names(refused, world, tmp_path):
    (tmp_path / "link").symlink_to(world / "model")
    line = refused(model=f"{world / 'model'},link")
    assert f"models: '{world / 'model'}' and 'link' are the same model; name it once" in line


SIZES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 97,
}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64, "vocab_size": 97}
MISTRAL = SIZES | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 16}
QWEN = SIZES | {"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16}
QWEN |= {"max_window_layers": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["has no config.json", "save_pretrained()"]),
        ("[" * 100_000, ["unreadable config.json", "save the model again"]),
        ("null", ["not a JSON object", "save the model again"]),
        ("{}", ["no language model that transformers can build", "GPT-NeoX"]),
        ({"num_hidden_layers": None}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"num_attention_heads": 5}, ["no language model that transformers can build", "number of attention heads"]),
        ({"vocab_size": -1}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"model_type": "../../x"}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"hidden_act": "nonsense"}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
         ["rope_type='dynamic'", "choose a model whose rope_type"]),
        (json.dumps(GPT2), ["no rotary embedding", "kvstream needs a model"]),
        (json.dumps(MISTRAL), ["sliding_window 16", "full attention"]),
        (json.dumps(QWEN), ["layer_types 'sliding_attention'", "full attention"]),
    ],
    ids=lambda value: str(value)[:30].encode("unicode_escape").decode() if not isinstance(value, list) else "",
)  # fmt: skip
def test_a_bad_config(refused, world, tmp_path, content, words):
    folder = shutil.copytree(world / "model", tmp_path / "model")
    config = folder / "config.json"
    if content is None:
        config.unlink()
    elif isinstance(content, dict):
        config.write_text(json.dumps(json.loads(config.read_text()) | content))
    else:
        config.write_text(content)
    line = refused(model=folder)
    assert "models: " in line
    assert repr(str(folder)) in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model.safetensors", ["no weights (no model.safetensors)", "save_pretrained()"]),
        ("tokenizer.json", ["no tokenizer", "save one into"]),
        ("*", ["has no config.json", "save_pretrained()"]),
    ],
)
def test_a_model_without(refused, world, tmp_path, missing, words):
    folder = shutil.copytree(world / "model", tmp_path / "model")
    for file in folder.glob(missing):
        file.unlink()
    line = refused(model=folder)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("change", [-100, 100])
def test_weights_that_were_cut_off(refused, world, tmp_path, change):
    folder = shutil.copytree(world / "model", tmp_path / "model")
    os.truncate(weights := folder / "model.safetensors", weights.stat().st_size + change)
    assert "has an unreadable model.safetensors" in refused(model=folder)


def test_a_tokenizer_of_another_model(refused, world, tmp_path):
    folder = shutil.copytree(world / "model", tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word: number + 5 for word, number in tokenizer["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused(model=folder)
    assert "gives token" in line
    assert "the model knows 97; give a directory whose tokenizer and weights belong together" in line


GARBAGE = [b"", b"\xff\xfe\x00{", "folder", "loop"]
FILES = [*product(["tokenizer.json", "config.json"], GARBAGE), *product(["tokenizer_config.json"], GARBAGE[:2])]


def spoilt(folder, file, content):
    """A copied model, one of whose files is this instead."""
    (folder / file).unlink()
    if content == "folder":
        (folder / file).mkdir()
    elif content == "loop":
        (folder / file).symlink_to(file)
    else:
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(("file", "content"), FILES)
def test_a_file_of_a_model_that_is_garbage(refused, world, tmp_path, file, content):
    folder = spoilt(shutil.copytree(world / "model", tmp_path / "model"), file, content)
    assert f"models: {str(folder)!r}" in refused(model=folder)


@pytest.mark.parametrize("content", GARBAGE[2:])
def test_a_tokenizer_config_that_is_no_file_is_none(world, tmp_path, monkeypatch, ends, content):
    """Which a model may lack; its tokenizer is then what transformers takes it for, here one without a word."""
    folder = spoilt(shutil.copytree(world / "model", tmp_path / "model"), "tokenizer_config.json", content)
    monkeypatch.chdir(tmp_path)
    flags = [*flags_for(folder, world / "texts"), "--device", "cpu", "--dry-run"]
    found = ends(lambda: main.main(GRID, "Is it taken?", flags))
    config = folder / "tokenizer_config.json"
    config.unlink() if config.is_symlink() else config.rmdir()
    assert found == ends(lambda: main.main(GRID, "Is it taken?", flags))
    assert "the longest of the others has 0" in found[2]


# Texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"\n\n", ["is empty", "with documents in it"]),
        ("binary.txt", bytes(range(256)), ["is binary", "UTF-8"]),
        ("short.txt", b"w1 w2 w3", ["documents: 1 asked, only 0", "has 3", "shorter lengths"]),
        ("column.jsonl", b'{"body": "w1"}\n', ["column 'text'", "there are 'body'"]),
        ("pickled.parquet", pickle.dumps({"text": "w1"}), ["cannot be read", "a whole .parquet file"]),
        ("text.pdf", b"%PDF-1.4", ["no known kind", ".txt, .jsonl, .parquet"]),
        ("lines.jsonl", b'{"text": "w1 w2"}\n' * 9, ["only 0", "has 2", "join rows", "--join-rows"]),
    ],
)
def test_a_bad_text(refused, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    line = refused(text=tmp_path / name)
    assert str(tmp_path) in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ["text: ''", "give kjv"]),
        ("/dev/zero", ["text: '/dev/zero'", "give kjv"]),
        ("\x1b[2J.txt", ["text: '\\x1b[2J.txt'", "give kjv"]),
        ("pg19@../x", ["@../x'", "hub:owner/name"]),
        ("hub:../../x", ["text: 'hub:../../x'", "hub:owner/name"]),
    ],
)
def test_a_text_that_is_not_there(refused, spec, words):
    line = refused(text=spec)
    assert all(word in line for word in words), line


def test_texts_that_are_all_too_short(refused, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("w1 " * (10 + number))
    line = refused(text=tmp_path)
    assert "only 0" in line
    assert "at least 50 tokens, the longest of the others has 12" in line


def test_a_text_that_leads_nowhere(refused, tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "folder.txt").mkdir()
    for name in ("loop.txt", "folder.txt"):
        assert f"text: '{tmp_path / name}'" in refused(text=tmp_path / name)


# The other commands


@pytest.mark.parametrize("act", [["verify"], ["rerun"]], ids=" ".join)
@pytest.mark.parametrize("folder", ["nowhere", "file", "empty", "nul\0", "", "torn"])
def test_a_folder_without_a_sweep(act, folder, tmp_path, monkeypatch, ends):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "sweep.json").write_text('{"cells": [')
    line = checked(*ends(lambda: command.main([*act, folder, *["0" * 16][: act == ["rerun"]]])))
    assert repr(folder) in line


@pytest.mark.parametrize("cell", ["", "../../etc/passwd", "0" * 15, "0" * 16, "G" * 16, "nul\0", "٣" * 16])
def test_a_bad_cell_name(cell, tmp_path, ends):
    line = checked(*ends(lambda: command.main(["rerun", str(tmp_path), cell])))
    assert f"cell: {cell!r}" in line
    assert "16 hex digits" in line


@pytest.mark.parametrize("arguments", [[], ["mend"], ["rerun", "x"], ["verify", "x", "y"], ["--x"]], ids=str)
def test_bad_arguments(arguments, ends):
    checked(*ends(lambda: command.main(arguments)))


@pytest.mark.parametrize("folder", ["nowhere", "file", "empty", "nul\0", "torn"])
def test_a_report_on_nothing(folder, tmp_path, monkeypatch, ends):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / f"{'0' * 16}.json").write_text("{")
    from analysis import report

    line = checked(*ends(lambda: sys.exit(report.main(["--records", folder]))), "report: ")
    assert "--records: " in line
    assert not (tmp_path / "report").exists()


# As a user would: whole processes, imports and all


QUICKLY = [str(QUICK), "--contexts", "none"]
PROCESSES = [
    ([*QUICKLY, "--policies", "streaming_llm(4"], "'streaming_llm(4'"),
    ([*QUICKLY, "--models", "nowhere"], "models: 'nowhere'"),
    (["-m", "kvstream", "verify", "nowhere"], "'nowhere'"),
    (["-m", "kvstream", "rerun", "nowhere", "x"], "cell: 'x'"),
    ([str(ROOT / "analysis" / "report.py"), "--records", "nowhere"], "'nowhere'"),
]


@pytest.mark.timed
@pytest.mark.parametrize(("arguments", "words"), PROCESSES, ids=lambda value: str(value)[-20:])
def test_a_process_says_so_in_two_seconds(arguments, words):
    """In one of three tries, as other work on the machine takes time, too."""
    for pause_s in (0, 0, 5):
        time.sleep(pause_s)
        start = time.monotonic()
        done = run([sys.executable, *arguments])
        seconds = time.monotonic() - start
        if seconds < LIMIT_S:
            break
    start = "report: " if "report.py" in arguments[0] else "error: "
    assert words in checked(done.returncode, done.stdout, done.stderr, start)
    assert seconds < LIMIT_S
