"""Bad configurations and flags: one line with field, value and remedy, exit code 2, in two seconds, no model loaded.

Most run in this process, where whatever would start Ray or read weights fails the test; some as a user would.
"""

import json
import pickle
import shutil
import sys
import time

import pytest
import transformers
from driving import QUICK, ROOT, run

from kvstream import __main__ as command
from kvstream.grid.axes import Grid, Repeats
from kvstream.policies import Full, RecentOnly, StreamingLLM, parse_policy
from kvstream.sweep import cluster, main

LIMIT_S = 2.0
HUGE = 10**30
GRID = Grid("quick", ("m",), (Full(), StreamingLLM(4, 4), RecentOnly(8)), "kjv", 1, (50,))


def never(*args, **options):
    raise AssertionError("a bad input must be refused before this is called")


def timed(act, beside=lambda: None):
    """What an act gives, and how long it took beyond what `beside` takes; in up to three tries, if one is in time.

    The first import of a library is not what is measured, nor is other work on the machine, which may end meanwhile.
    """
    for pause_s in (0, 0, 5):
        time.sleep(pause_s)
        start = time.monotonic()
        beside()
        middle = time.monotonic()
        given = act()
        seconds = (time.monotonic() - middle) - (middle - start)
        if seconds < LIMIT_S:
            break
    return *given, seconds


@pytest.fixture
def ends(capfd):
    """Factory: an act that ends the program → its exit code, what it said, how long it took."""

    def once(act):
        with pytest.raises(SystemExit) as ended:
            act()
        return ended.value.code, *capfd.readouterr()

    return lambda act: timed(lambda: once(act))


@pytest.fixture
def refused(world, tmp_path, monkeypatch, ends):
    """Factory: flags → the line that a sweep of the tiny world ends with."""
    monkeypatch.setattr(cluster, "connect", never)
    monkeypatch.setattr(cluster, "joined", lambda: False)  # whatever other tests have started
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", never)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)

    def refuse(*flags, model=world / "model", text=world / "texts"):
        given = ["--models", str(model), "--text", str(text), "--out", "out", "--contexts", "none", "--lengths", "50"]
        return checked(*ends(lambda: main.main(GRID, "Is it refused?", [*given, *flags])))

    yield refuse
    assert not (tmp_path / "out").exists(), "nothing is written"


def checked(code, out, error, seconds, start="error: "):
    """The one line of an error, if all is as it should be."""
    assert (code, out) == (2, "")
    assert error.startswith(start), error
    assert error.count("\n") == 1, error
    assert error.strip().isprintable(), error
    assert "; " in error, f"no remedy: {error}"
    assert seconds < LIMIT_S
    return error


# Flags


COUNTS = ("--budgets", "--start-sizes", "--skip-layers", "--lengths", "--contexts", "--batches", "--documents")
COUNTS += ("--prefills", "--rounds", "--steps", "--threads")
NO_COUNTS = (
    "-1",
    "",
    str(HUGE),
    "9" * 5000,
    "٣",
    "²",
    "٣,8",
    "1,,2",
    "8,",
    " 8",
    "8 ",
    "1.5",
    "1e3",
    "0x8",
    "1_000",
    "+8",
    "x",
)


@pytest.mark.parametrize(
    ("flag", "value"),
    [(COUNTS[0], value) for value in NO_COUNTS] + [(flag, value) for flag in COUNTS[1:] for value in NO_COUNTS[:3]],
    ids=lambda value: value[:9] or "empty",
)
def test_no_number(refused, flag, value):
    line = refused(f"{flag}={value}")
    assert flag in line
    assert repr(value[:9])[:-1] in line or repr(value.split(",")[0]) in line
    assert len(line) < 250


FLAGS = [
    (["--budgets", "0"], ["budgets: 0", "at least 1"]),
    (["--budgets", "4", "--policies", "streaming_llm"], ["start_sizes: 4", "budget of 4", "larger budget"]),
    (["--budgets", "1"], ["start_sizes: 4", "budget of 1", "larger budget"]),
    (["--start-sizes", "9"], ["start_sizes: 9", "budget of 8", "fewer sinks"]),
    (["--skip-layers", "3"], ["skip_layers: 3", "from 0 to 2"]),
    (["--lengths", "1"], ["lengths: 1", "2 or more"]),
    (["--lengths", "0"], ["lengths: 0", "2 or more"]),
    (["--lengths", "None"], ["--lengths: 'None'", "digits"]),
    (["--lengths", "none,50"], ["--lengths: 'none'", "digits"]),
    (["--lengths", "501"], ["documents: 1 asked", "at least 501 tokens", "has 500", "shorter lengths"]),
    (["--lengths", "none"], ["lengths, contexts: both empty", "give lengths"]),
    (["--contexts", "0"], ["contexts: 0", "1 or more"]),
    (["--batches", "0"], ["batches: 0", "1 or more"]),
    (["--documents", "0"], ["documents: 0", "1 or more"]),
    (["--documents", "4"], ["documents: 4 asked, only 3", "fewer documents"]),
    (["--prefills", "0"], ["--prefills: '0'", "1 or more"]),
    (["--rounds", "0"], ["--rounds: '0'", "1 or more"]),
    (["--steps", "0"], ["--steps: '0'", "1 or more"]),
    (["--threads", "0"], ["--threads: '0'", "1 or more"]),
    (["--keep-ratios", "nan", "--policies", "fix_size_l2"], ["keep_ratio=nan", "from 0 to 1"]),
    (["--keep-ratios", "inf", "--policies", "fix_size_l2"], ["keep_ratio=inf", "from 0 to 1"]),
    (["--keep-ratios=-inf", "--policies", "fix_size_l2"], ["keep_ratio=-inf", "from 0 to 1"]),
    (["--keep-ratios", "1e400", "--policies", "fix_size_l2"], ["keep_ratio=inf", "from 0 to 1"]),
    (["--keep-ratios", "-0.1", "--policies", "fix_size_l2"], ["keep_ratio=-0.1", "from 0 to 1"]),
    (["--keep-ratios", "1.1", "--policies", "fix_size_l2"], ["keep_ratio=1.1", "from 0 to 1"]),
    (["--keep-ratios", "٠.٥"], ["--keep-ratios: '٠.٥'", "such as 0.7"]),
    (["--keep-ratios", " 0.5"], ["--keep-ratios: ' 0.5'", "such as 0.7"]),
    (["--keep-ratios", "1_0"], ["--keep-ratios: '1_0'", "such as 0.7"]),
    (["--keep-ratios", "half"], ["--keep-ratios: 'half'", "such as 0.7"]),
    (["--keep-ratios", "0.5,,"], ["--keep-ratios: '0.5,,'", "such as 0.5,0.7"]),
    (["--strategies", ""], ["--strategies: ''", "such as a,b"]),
    (["--strategies", "KEEP_LOW", "--policies", "fix_size_l2"], ["strategy='KEEP_LOW'", "keep_low"]),
    (["--positions", "absolute "], ["position='absolute '", "choose one of cache"]),
    (["--policies", ""], ["--policies: ''", "choose among full"]),
    (["--policies", "full,"], ["--policies: ''", "choose among full"]),
    (["--policies", "Full"], ["--policies: 'Full'", "choose among full"]),
    (["--policies", "h2o(4)"], ["'h2o(4)'", "unknown name 'h2o'", "choose one of full"]),
    (["--policies", "full(1)"], ["'full(1)'", "takes none"]),
    (["--policies", "streaming_llm(4"], ["'streaming_llm(4'", "write it as name(value"]),
    (["--policies", "streaming_llm(4,8))"], ["'streaming_llm(4,8))'", "write it as name(value"]),
    (["--policies", "streaming_llm(4,8)x"], ["'streaming_llm(4,8)x'", "write it as name(value"]),
    (["--policies", "streaming_llm(4)"], ["'streaming_llm(4)'", "takes start_size, recent_size"]),
    (["--policies", "streaming_llm(8,8,8)"], ["'streaming_llm(8,8,8)'", "takes start_size, recent_size"]),
    (["--policies", "streaming_llm(-1,8)"], ["start_size=-1", "at least 0"]),
    (["--policies", "streaming_llm(0,0)"], ["streaming_llm(0,0)", "at least 1"]),
    (["--policies", "streaming_llm(1e3,8)"], ["start_size=1000.0", "whole number"]),
    (["--policies", "recent_only(٣)"], ["recent_only(٣)", "write it as name(value"]),
    (["--policies", "recent_only(None)"], ["window_size=None", "whole number"]),
    (["--policies", "recent_only('8')"], ["window_size='8'", "whole number"]),
    (["--policies", "recent_only([8])"], ["window_size=[8]", "whole number"]),
    (["--policies", "recent_only(10**30)"], ["recent_only(10**30)", "write it as name(value"]),
    (["--policies", f"recent_only({HUGE})"], ["policies: recent_only", "budgets up to 2,147,483,647"]),
    (["--policies", "recent_only(8,skip_layers=0)"], ["skip_layers=0", "a tuple"]),
    (["--policies", "recent_only(8,skip_layers=(9,))"], ["skip_layers: 9", "from 0 to 2"]),
    (["--policies", "recent_only(8,position=middle)"], ["position='middle'", "choose one of cache"]),
    (["--policies", "recent_only(8,window_size=9)"], ["recent_only(8,window_size=9)", "takes window_size"]),
    (["--policies", "fix_size_l2(8,nan,random)"], ["keep_ratio='nan'", "from 0 to 1"]),
    (["--policies", "fix_size_l2(8,1e999,random)"], ["keep_ratio=inf", "from 0 to 1"]),
    (["--policies", "fix_size_l2(8,0.5,best)"], ["strategy='best'", "keep_low"]),
    (["--policies", f"fix_size_l2(8,0.5,random,seed={HUGE})"], [f"seed={HUGE}", "at most 9223372036854775807"]),
    (["--policies", "__import__('os').getcwd()"], ["__import__", "write it as name(value"]),
    (["--policies", "(" * 3000], ["((((", "write it as name(value"]),
    (["--policies", "recent_only(8)", "--budgets", "8"], ["--budgets", "name policies without values"]),
    (["--bos", "yes"], ["--bos", "'yes'", "choose from"]),
    (["--bos", "on"], ["bos: 'on'", "no BOS token", "choose auto or off"]),
    (["--join-rows"], ["join_rows: ", "holds whole texts", "leave --join-rows out"]),
    (["--device", "tpu"], ["--device", "'tpu'", "choose from"]),
    (["--device", "cuda:0"], ["--device", "'cuda:0'", "choose from"]),
    (["--dtype", "int8"], ["--dtype", "'int8'", "choose from"]),
    (["--dtype", ""], ["--dtype", "''", "choose from"]),
    (["--budget", "8"], ["unrecognized arguments: --budget", "--help"]),
    (["two\nlines"], ["unrecognized arguments: two lines", "--help"]),
    (["\x1b[2Jcleared"], ["unrecognized arguments: \\x1b[2Jcleared", "--help"]),
    (["--models"], ["--models", "expected one argument", "--help"]),
    (["--out", ""], ["out: ''", "give one"]),
    (["--out", "nul\0"], ["--out: 'nul\\x00'", "another name"]),
    (["--out", "/dev/null"], ["--out: '/dev/null'", "is a file", "another name"]),
    (["--out", str(QUICK)], [f"--out: '{QUICK}'", "is a file", "another name"]),
    (["--out", f"{QUICK}/inside"], [f"'{QUICK}/inside'", f"'{QUICK}' is a file", "another name"]),
    (["--out", "\x1b]0;title\a"], ["'\\x1b]0;title\\x07'", "another name"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"), FLAGS, ids=lambda value: " ".join(value)[:40].encode("unicode_escape").decode()
)
def test_a_bad_flag(refused, flags, words):
    line = refused(*flags)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("place", ["/proc/records", "/sys/records", "x" * 300])
def test_a_place_that_cannot_be_written(world, tmp_path, monkeypatch, ends, place):
    monkeypatch.setattr(cluster, "connect", never)
    monkeypatch.chdir(tmp_path)
    flags = ["--models", str(world / "model"), "--text", str(world / "texts"), "--out", place, "--lengths", "50"]
    line = checked(*ends(lambda: main.main(GRID, "", flags)))
    assert f"out: cannot write to {place!r}" in line
    assert list(tmp_path.iterdir()) == []


# Models


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere", ["'nowhere' is not a model", "a local directory"]),
        ("./nowhere", ["'./nowhere' is not a directory", "give a Hub id"]),
        ("a--b/c", ["'a--b/c' is not a model", "give a Hub id"]),
        ("a..b/c", ["'a..b/c' is not a model", "give a Hub id"]),
        ("a/b.git", ["'a/b.git' is not a model", "give a Hub id"]),
        ("a/b-", ["'a/b-' is not a model", "give a Hub id"]),
        (f"a/{'b' * 97}", ["is not a model", "give a Hub id"]),
        ("a/b@../../x", ["'a/b@../../x' is not a model", "give a Hub id"]),
        ("a/b@é", ["'a/b@é' is not a model", "give a Hub id"]),
        ("nul\0", ["'nul\\x00' is not a model", "give a Hub id"]),
        ("a\x1b[2J", ["'a\\x1b[2J' is not a model", "rename it"]),
        ("", ["--models: ''", "such as a,b"]),
        ("a,,b", ["--models: 'a,,b'", "such as a,b"]),
        ("shape:pythia-9b", ["'shape:pythia-9b' is not a model", "shape:pythia-70m"]),
        ("shape:pythia-70m", ["random weights", "measure latency alone"]),
        ("/dev/null", ["'/dev/null' is not a directory", "give a Hub id"]),
    ],
    ids=lambda value: value[:20].encode("unicode_escape").decode() if isinstance(value, str) else "",
)
def test_a_bad_model(refused, spec, words):
    line = refused(model=spec)
    assert all(word in line for word in words), line


def test_one_model_under_two_names(refused, world, tmp_path):
    (tmp_path / "link").symlink_to(world / "model")
    line = refused(model=f"{world / 'model'},link")
    assert f"models: '{world / 'model'}' and 'link' are the same model; name it once" in line


GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64, "vocab_size": 97}
SIZES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 97,
}
SIZES |= {"max_position_embeddings": 256}
BERT, OPT = SIZES | {"model_type": "bert"}, SIZES | {"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 64}
MISTRAL = SIZES | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 16}
QWEN = SIZES | {"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16}
QWEN |= {"max_window_layers": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["has no config.json", "save_pretrained()"]),
        ("", ["unreadable config.json", "save the model again"]),
        ("{", ["unreadable config.json", "save the model again"]),
        ("\0" * 9, ["unreadable config.json", "save the model again"]),
        ("[" * 100_000, ["unreadable config.json", "save the model again"]),
        ("[]", ["not a JSON object", "save the model again"]),
        ("null", ["not a JSON object", "save the model again"]),
        ("{}", ["no language model that transformers can build", "GPT-NeoX"]),
        ({"num_hidden_layers": None}, ["num_hidden_layers = None", "GPT-NeoX"]),
        ({"num_hidden_layers": "3"}, ["num_hidden_layers = '3'", "GPT-NeoX"]),
        ({"num_hidden_layers": 3.0}, ["num_hidden_layers = 3.0", "GPT-NeoX"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers = 0", "GPT-NeoX"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers = 1000000000", "up to 1,000"]),
        ({"num_attention_heads": True}, ["num_attention_heads = True", "GPT-NeoX"]),
        ({"num_attention_heads": 5}, ["no language model that transformers can build", "number of attention heads"]),
        ({"num_attention_heads": 5, "num_key_value_heads": 5, "model_type": "qwen2"},
         ["hidden_size = 64 and 5 heads", "belongs to the weights"]),
        ({"num_key_value_heads": 3}, ["4 heads on 3", "belongs to the weights"]),
        ({"hidden_size": HUGE}, [f"hidden_size = {HUGE}", "up to 16,777,216"]),
        ({"vocab_size": -1}, ["vocab_size = -1", "GPT-NeoX"]),
        ({"vocab_size": []}, ["vocab_size = []", "GPT-NeoX"]),
        ({"vocab_size": 50}, ["another shape", "not (50, 64)", "belong together"]),
        ({"num_hidden_layers": 4}, ["lacks weights", "'gpt_neox.layers.3", "files whole"]),
        ({"max_position_embeddings": float("nan")}, ["max_position_embeddings = nan", "GPT-NeoX"]),
        ({"intermediate_size": HUGE}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"intermediate_size": "many"}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"model_type": "nonsense"}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"model_type": None}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"model_type": "../../x"}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"hidden_act": "nonsense"}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"rope_parameters": {"rope_type": "nonsense"}}, ["no language model that transformers can build", "GPT-NeoX"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
         ["rope_type='dynamic'", "choose a model whose rope_type"]),
        (json.dumps(GPT2), ["no rotary embedding", "kvstream needs a model"]),
        (json.dumps(BERT), ["no rotary embedding", "kvstream needs a model"]),
        (json.dumps(OPT), ["no rotary embedding", "kvstream needs a model"]),
        (json.dumps(SIZES | {"model_type": "t5"}), ["no language model that transformers can build", "GPT-NeoX"]),
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
        ("model.safetensors", ["no model.safetensors", "convert it"]),
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


def test_a_tokenizer_of_another_model(refused, world, tmp_path):
    folder = shutil.copytree(world / "model", tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word: number + 5 for word, number in tokenizer["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused(model=folder)
    assert "gives token" in line
    assert "the model knows 97; give a directory whose tokenizer and weights belong together" in line


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"\x93\x00garbage" * 9, b"\xff\xfe\x00{", b'{"version": 1}'])
def test_a_file_of_a_model_that_is_garbage(refused, world, tmp_path, file, content):
    folder = shutil.copytree(world / "model", tmp_path / "model")
    (folder / file).write_bytes(content)
    line = refused(model=folder)
    assert f"models: {str(folder)!r}" in line


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_of_a_model_that_is_a_folder_or_leads_nowhere(refused, world, tmp_path, file):
    for name in ("folder", "loop"):
        folder = shutil.copytree(world / "model", tmp_path / name)
        (folder / file).unlink()
        (folder / file).mkdir() if name == "folder" else (folder / file).symlink_to(file)
        assert f"models: {str(folder)!r}" in refused(model=folder)


# Texts


def parquet_of(value):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(value), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["is empty", "with documents in it"]),
        ("empty.jsonl", b"\n\n", ["is empty", "with documents in it"]),
        ("rows.parquet", parquet_of({"text": []}), ["is empty", "with documents in it"]),
        ("binary.txt", bytes(range(256)), ["is binary", "UTF-8"]),
        ("nul.txt", b"w1 \0 w2", ["NUL", "UTF-8"]),
        ("latin.txt", b"caf\xe9 " * 99, ["not UTF-8", "UTF-8 text"]),
        ("short.txt", b"w1 w2 w3", ["documents: 1 asked, only 0", "has 3", "shorter lengths"]),
        ("blank.txt", b" \n" * 99, ["documents: 1 asked, only 0", "has 0", "shorter lengths"]),
        ("column.jsonl", b'{"body": "w1"}\n', ["column 'text'", "there are 'body'"]),
        ("number.jsonl", b'{"text": 8}\n', ["column 'text'", "holds int, not text"]),
        ("list.jsonl", b'{"text": ["w1"]}\n', ["column 'text'", "holds list, not text"]),
        ("broken.jsonl", b'{"text": ', ["cannot be read", "a whole .jsonl file"]),
        ("array.jsonl", b"[1, 2]\n", ["array.jsonl'", "; "]),
        ("broken.parquet", b"PAR1 and no more", ["cannot be read", "a whole .parquet file"]),
        ("column.parquet", parquet_of({"body": ["w1"]}), ["column 'text'", "there are 'body'"]),
        ("pickled.parquet", pickle.dumps({"text": "w1"}), ["cannot be read", "a whole .parquet file"]),
        ("pickled.jsonl", pickle.dumps({"text": "w1"}), ["pickled.jsonl'", "; "]),
        ("text.pdf", b"%PDF-1.4", ["no known kind", ".txt, .jsonl, .parquet"]),
        ("model.safetensors", b"", ["no known kind", ".txt, .jsonl, .parquet"]),
        ("lines.jsonl", b'{"text": "w1 w2"}\n' * 9, ["only 0", "has 2", "join rows", "--join-rows"]),
    ],
)  # fmt: skip
def test_a_bad_text(refused, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    line = refused(text=tmp_path / name)
    assert str(tmp_path) in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ["text: ''", "give kjv"]),
        ("nowhere.txt", ["text: 'nowhere.txt'", "give kjv"]),
        ("*.txt", ["text: '*.txt'", "give kjv"]),
        ("/proc", ["text: '/proc'", "give kjv"]),
        ("/dev/zero", ["text: '/dev/zero'", "give kjv"]),
        ("nul\0.txt", ["text: 'nul\\x00.txt'", "give kjv"]),
        ("\x1b[2J.txt", ["text: '\\x1b[2J.txt'", "give kjv"]),
        ("KJV", ["text: 'KJV'", "give kjv"]),
        ("pg19@", ["text: 'pg19@'", "commit"]),
        ("pg19@../x", ["text: 'pg19@../x'", "commit"]),
        ("hub:a", ["text: 'hub:a'", "hub:owner/name"]),
        ("hub:a--b/c", ["text: 'hub:a--b/c'", "hub:owner/name"]),
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
    (tmp_path / "gone.txt").symlink_to(tmp_path / "absent")
    for name in ("loop.txt", "folder.txt", "gone.txt"):
        assert f"text: '{tmp_path / name}'" in refused(text=tmp_path / name)


# Grids and labels built in Python


GIVEN = {"name": "g", "models": ("m",), "policies": (Full(),), "lengths": (50,)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": None}, ["name: None", "letters"]),
        ({"name": ""}, ["name: ''", "letters"]),
        ({"name": "../../x"}, ["name: '../../x'", "letters"]),
        ({"name": "a\nb"}, ["name: 'a\\nb'", "letters"]),
        ({"models": "m"}, ["models: 'm'", "give a tuple"]),
        ({"models": None}, ["models: None", "give a tuple"]),
        ({"models": ()}, ["models: empty", "at least one"]),
        ({"models": (8,)}, ["models: 8", "names of models"]),
        ({"models": ([],)}, ["models: []", "names of models"]),
        ({"policies": Full()}, ["policies: Full()", "give a tuple"]),
        ({"policies": ("full",)}, ["policies: 'full'", "StreamingLLM(4, 252)"]),
        ({"policies": (Full,)}, ["policies: <class", "StreamingLLM(4, 252)"]),
        ({"policies": (RecentOnly(HUGE),)}, [f"policies: recent_only({HUGE})", "up to 2,147,483,647"]),
        ({"latency_policies": ("full",)}, ["latency_policies: 'full'", "StreamingLLM(4, 252)"]),
        ({"text": "b\udcff.txt"}, [r"text: 'b\udcff.txt'", "is not UTF-8; rename it"]),
        ({"models": ("m\udcff",)}, [r"models: 'm\udcff'", "is not UTF-8; rename it"]),
        ({"lengths": 50}, ["lengths: 50", "give a tuple"]),
        ({"lengths": ("50",)}, ["lengths: '50'", "whole numbers"]),
        ({"lengths": (50.0,)}, ["lengths: 50.0", "whole numbers"]),
        ({"lengths": (True,)}, ["lengths: True", "whole numbers"]),
        ({"lengths": (HUGE,)}, [f"lengths: {HUGE}", "up to 2,147,483,647"]),
        ({"contexts": (float("nan"),)}, ["contexts: nan", "whole numbers"]),
        ({"batches": (None,)}, ["batches: None", "whole numbers"]),
        ({"documents": True}, ["documents: True", "whole numbers"]),
        ({"documents": HUGE}, [f"documents: {HUGE}", "up to 2,147,483,647"]),
        ({"text": None}, ["text: None", "name of a text"]),
        ({"bos": True}, ["bos: True", "choose one of auto"]),
        ({"join_rows": "yes"}, ["join_rows: 'yes'", "True or False"]),
        ({"repeats": 5}, ["repeats: 5", "Repeats("]),
    ],
    ids=str,
)
def test_a_bad_grid(fields, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Grid(**GIVEN | fields)
    assert all(word in str(caught.value) for word in (*words, "; ")), str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, True, HUGE])
def test_bad_repeats(value):
    with pytest.raises(ValueError, match=r"^rounds: .* is not valid; give whole numbers"):
        Repeats(rounds=value)


@pytest.mark.parametrize("label", [None, 8, b"full", ["full"], Full()])
def test_a_label_that_is_no_text(label):
    with pytest.raises(ValueError, match=r"^policy=.* cannot be read; write it as name\(value"):
        parse_policy(label)


# The other commands


@pytest.mark.parametrize("act", [["verify"], ["rerun"]], ids=" ".join)
@pytest.mark.parametrize("folder", ["nowhere", "file", "empty", "nul\0", "", "torn", "listed"])
def test_a_folder_without_a_sweep(act, folder, tmp_path, monkeypatch, ends):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, content in (("torn", '{"cells": ['), ("listed", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.json").write_text(content)
    line = checked(*ends(lambda: command.main([*act, folder, *["0" * 16][: act == ["rerun"]]])))
    assert repr(folder) in line


@pytest.mark.parametrize(
    "cell", ["", "x", "../../etc/passwd", "0" * 15, "0" * 16, "0" * 17, "G" * 16, "nul\0", "*", "٣" * 16]
)
def test_a_bad_cell_name(cell, tmp_path, ends):
    line = checked(*ends(lambda: command.main(["rerun", str(tmp_path), cell])))
    assert f"cell: {cell!r}" in line
    assert "16 hex digits" in line


@pytest.mark.parametrize(
    "arguments", [[], ["mend"], ["verify"], ["rerun", "x"], ["verify", "x", "y"], ["--x"]], ids=str
)
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


def quick(*flags):
    return [str(QUICK), "--contexts", "none", *flags]


def process(*arguments):
    """How a process ends that is given these arguments."""
    done = run([sys.executable, *arguments])
    return done.returncode, done.stdout, done.stderr


PROCESSES = [
    (quick("--policies", "streaming_llm(4"), "'streaming_llm(4'"),
    (quick("--threads", "4096"), "threads: 4096 asked, the largest node has "),
    (quick("--models", "nowhere"), "models: 'nowhere'"),
    (quick("--models", "WORLD", "--documents", "99"), "documents: 99 asked, only 66"),
    (["-m", "kvstream", "verify", "nowhere"], "'nowhere'"),
    (["-m", "kvstream", "rerun", "nowhere", "x"], "cell: 'x'"),
    ([str(ROOT / "analysis" / "report.py"), "--records", "nowhere"], "'nowhere'"),
]  # fmt: skip


@pytest.mark.timed
@pytest.mark.parametrize(("arguments", "words"), PROCESSES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_process_says_so_in_two_seconds(world, arguments, words):
    arguments = [str(world / "model") if argument == "WORLD" else argument for argument in arguments]
    start = "report: " if "report.py" in arguments[0] else "error: "
    assert words in checked(*timed(lambda: process(*arguments)), start)


IMPORTS = "import torch; from transformers import AutoConfig, AutoTokenizer, AutoModelForCausalLM, GPTNeoXForCausalLM"


@pytest.mark.timed
def test_what_needs_transformers_takes_two_seconds_beside_its_import(world, tmp_path):
    """Those of its errors that wait for it: here that a model is of another kind."""
    folder = shutil.copytree(world / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    flags = ["--models", str(folder), "--text", str(world / "texts"), "--lengths", "50", "--documents", "1"]
    ended = timed(lambda: process(*quick(*flags)), beside=lambda: process("-c", IMPORTS))
    assert f"models: '{folder}'" in checked(*ended)
