"""Nobody's code is run: neither pickles nor Python beside a model or a text, nor what a configuration points at.

A payload is a pickle, a module or a template that creates a file, the canary, when it is run, or a setting that points
at such code. First shown to create it are pickle, module and template, and `auto_map` of a configuration and of a
tokenizer where remote code is trusted. No other setting is: its code would lie on the Hub, or nothing should run it.
"""

import json
import os
import pickle
import runpy
import shutil
import struct
import sys
import time

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from driving import run

from kvstream.grid import planning
from kvstream.grid.axes import Grid
from kvstream.inputs import text_sources
from kvstream.inputs.model_loading import load_model
from kvstream.policies import RecentOnly


class Canary:
    """A pickle that creates a file when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


TEMPLATE = "{{ cycler.__init__.__globals__.os.system('touch canary') }}"


def evil(canary):
    """A module that creates a file when it is imported, and has every class that it could be asked for."""
    names = ("EvilConfig", "EvilTokenizer", "EvilModel", "text", "json", "parquet")
    return f"open({str(canary)!r}, 'w').close()\n" + "".join(f"class {name}: pass\n" for name in names)


def edit(file, **fields):
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | fields))


def pickled(folder, canary):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))


def disguised(folder, canary):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(canary)))


def with_config(**fields):
    return lambda folder, canary: edit(folder / "config.json", **fields)


def with_tokenizer(**fields):
    return lambda folder, canary: edit(folder / "tokenizer_config.json", **fields)


def gigabytes_of_header(folder, canary):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 8 << 30) + b"{}")


def gigabytes_of_weights(folder, canary):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2 << 30], "data_offsets": [0, 8 << 30]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


REFUSED = {
    "pickled weights": (pickled, "only pickled weights (pytorch_model.bin)"),
    "auto_map": (
        with_config(model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"}),
        "own code (auto_map in config.json)",
    ),
    "auto_map of a tokenizer": (
        with_tokenizer(tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]}),
        "own code (auto_map in tokenizer_config.json)",
    ),
    "an adapter beside it": (
        lambda folder, canary: edit(folder / "adapter_config.json", base_model_name_or_path="o/evil"),
        "an adapter such as LoRA",
    ),
    "attention from the hub": (with_config(attn_implementation="o/kernel"), "code from the Hub (attn_implementation"),
    "attention from the hub, privately": (with_config(_attn_implementation="o/kernel:evil"), "code from the Hub"),
    "attention that is none": (with_config(attn_implementation="evil"), "transformers can build"),
    "quantised weights": (with_config(quantization_config={"quant_method": "evil"}), "quantised weights"),
    "a type of its own": (with_config(model_type="evil"), "transformers can build"),
    "a dtype that is none": (with_config(dtype="__import__('os').system('touch canary')"), "transformers can build"),
}


def changed(world, tmp_path, change):
    """A model changed for evil, and where its canary would be."""
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(world / "model", folder)
    for name in ("evil.py", "tokenization_evil.py", "modeling_evil.py", "configuration_evil.py"):
        (folder / name).write_text(evil(canary))
    change(folder, canary)
    return folder, canary


def grid_of(model, text):
    return Grid("g", (str(model),), (RecentOnly(8),), str(text), 1, (20,))


def unpickled(canary):
    pickle.loads(pickle.dumps(Canary(canary)))


def loaded(canary):
    weights = canary.with_name("pytorch_model.bin")
    weights.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(RuntimeError, match="corrupt"):
        torch.load(weights, weights_only=False)


def imported(canary):
    module = canary.with_name("evil.py")
    module.write_text(evil(canary))
    runpy.run_path(str(module))


def rendered(canary):
    jinja2.Template(TEMPLATE).render()


@pytest.mark.parametrize("let", [unpickled, loaded, imported, rendered])
def test_the_canaries_sing(tmp_path, monkeypatch, let):
    monkeypatch.chdir(tmp_path)
    let(tmp_path / "canary")
    assert (tmp_path / "canary").exists()


def test_the_canaries_of_auto_map_sing(world, tmp_path):
    """In a process of its own, as transformers writes such code into its cache."""
    code, canaries = "", []
    for what, reader in (("auto_map", "AutoConfig"), ("auto_map of a tokenizer", "AutoTokenizer")):
        (tmp_path / reader).mkdir()
        folder, canary = changed(world, tmp_path / reader, REFUSED[what][0])
        code += f"from transformers import {reader} as R\ntry: R.from_pretrained({str(folder)!r}, "
        code += "trust_remote_code=True, local_files_only=True)\nexcept Exception: pass\n"
        canaries.append(canary)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    run([sys.executable, "-c", code], env=environment)
    assert all(canary.exists() for canary in canaries)


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_is_refused(world, tmp_path, monkeypatch, what):
    change, words = REFUSED[what]
    folder, canary = changed(world, tmp_path, change)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"^models: ") as caught:
        planning.prepare(grid_of(folder, world / "texts"))
    assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"^models: "):
        load_model(str(folder))
    assert not canary.exists()


HARMLESS = {
    "an unknown tokenizer": with_tokenizer(tokenizer_class="EvilTokenizer"),
    "a template": with_tokenizer(chat_template=TEMPLATE),
    "architectures": with_config(architectures=["evil.EvilModel"]),
    "a dtype that is none, under its older name": with_config(torch_dtype="__import__('os').system('touch canary')"),
    "a name elsewhere": with_config(_name_or_path="o/evil"),
    "a custom pipeline": with_config(custom_pipelines={"text-generation": {"impl": "evil.EvilModel"}}),
    "code for an architecture that transformers contains": with_config(
        auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    ),
    "code for a tokenizer that transformers contains": with_tokenizer(
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    ),
    "a generation": lambda folder, canary: (
        (folder / "custom_generate").mkdir() or (folder / "custom_generate" / "generate.py").write_text(evil(canary))
    ),
    "a pickle beside it": lambda folder, canary: (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps(Canary(canary))
    ),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_a_model_is_refused_or_loaded_without(world, tmp_path, monkeypatch, what):
    folder, canary = changed(world, tmp_path, HARMLESS[what])
    monkeypatch.chdir(tmp_path)
    planning.prepare(grid_of(folder, world / "texts"))
    model, tokenizer = load_model(str(folder))
    assert all(type(each).__module__.startswith("transformers.") for each in (model, tokenizer))
    plain, words = load_model(str(world / "model"))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))
    assert tokenizer.get_vocab() == words.get_vocab()
    assert not canary.exists()


BROKEN = {
    "a pickle": disguised,
    "a header of gigabytes": gigabytes_of_header,
    "weights of gigabytes that are not there": gigabytes_of_weights,
}


@pytest.mark.parametrize("what", BROKEN)
def test_weights_that_are_none_are_refused(world, tmp_path, what):
    folder, canary = changed(world, tmp_path, BROKEN[what])
    clock = time.monotonic()
    with pytest.raises(ValueError, match=r"^models: .* has an unreadable model.safetensors .*; copy or save it again"):
        load_model(str(folder))
    assert time.monotonic() - clock < 5, "gigabytes that are claimed are not fetched"
    assert not canary.exists()


# Texts


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.txt"])
def test_a_text_that_is_a_pickle(tmp_path, name):
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ValueError, match=r"^text: .*; "):
        list(text_sources.read(str(tmp_path / name)))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["text", "json", "parquet"])
def test_a_loading_script_beside_texts_is_not_run(tmp_path, monkeypatch, name):
    """Nor a module that is called as what reads them."""
    canary = tmp_path / "canary"
    for place in (tmp_path / name, tmp_path):
        place.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text(evil(canary))
        (place / "dataset_infos.json").write_text("{}")
    if name == "parquet":
        pq.write_table(pa.table({"text": ["w1 w2"]}), tmp_path / "rows.parquet")
    elif name == "json":
        (tmp_path / "rows.jsonl").write_text('{"text": "w1 w2"}\n')
    else:
        (tmp_path / "rows.txt").write_text("w1 w2")
    monkeypatch.chdir(tmp_path)
    assert [text for _, text in text_sources.read(str(tmp_path))] == ["w1 w2"]
    assert not canary.exists()
