"""A folder of model files: is it whole, is it safe to load, and which bytes decide what it computes.

Reads JSON and hashes files; imports no torch, executes nothing. Only safetensors count as weights: the other formats
are pickles, and unpickling runs whatever its author wrote (https://huggingface.co/docs/hub/security-pickle).
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST, MOST_LAYERS = 2**24, 1000  # no model comes near; beyond, its shape alone would fill the memory


def read_config(spec: str, folder: Path) -> dict[str, Any]:
    """config.json of a folder. `ValueError` if it is missing or broken, quantised, or asks to run code.

    Code: `auto_map` names some beside the model, an attention with a slash in its name is downloaded from the Hub.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"models: {spec!r} has no config.json in {folder}; give a directory that save_pretrained() wrote"
        )
    config = _read_json(spec, folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in _read_json(spec, folder / name):
            raise ValueError(
                f"models: {spec!r} asks to run its own code (auto_map in {name}), which kvstream never does; "
                "use a model of an architecture that transformers itself contains"
            )
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(config.get(name)):
            raise ValueError(
                f"models: {spec!r} asks to run code from the Hub ({name} = {config[name]!r} in config.json), which "
                "kvstream never does; remove that line"
            )
    if config.get("quantization_config"):
        raise ValueError(
            f"models: {spec!r} has quantised weights (quantization_config in config.json), which kvstream does not "
            "read; give the model in float32, float16 or bfloat16"
        )
    return config


def shape(spec: str, config: dict[str, Any]) -> dict[str, int]:
    """The sizes in a configuration, by their names in `models.ModelInfo`; `ValueError` if one is not there."""

    def number(*names: str, most: int = MOST) -> int:
        value = next((config[name] for name in names if config.get(name) is not None), None)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(
                f"models: {spec!r} has {names[0]} = {value!r} in config.json, not a positive integer up to {most:,}; "
                "give a GPT-NeoX or Llama-family model"
            )
        return value

    heads, kv_heads = number("num_attention_heads"), number("num_key_value_heads", "num_attention_heads")
    if heads % kv_heads or (not config.get("head_dim") and number("hidden_size") % heads):
        raise ValueError(
            f"models: {spec!r} has hidden_size = {number('hidden_size')} and {heads} heads on {kv_heads} "
            "in config.json, which do not divide; give the configuration that belongs to the weights"
        )
    return {
        "trained_context": number("max_position_embeddings"),
        "hidden_size": number("hidden_size"),
        "num_layers": number("num_hidden_layers", most=MOST_LAYERS),
        "num_kv_heads": kv_heads,
        "head_dim": number("head_dim") if config.get("head_dim") else number("hidden_size") // heads,
        "vocab_size": number("vocab_size"),
    }


def weight_files(spec: str, folder: Path) -> list[Path]:
    """The safetensors transformers reads: one file, or an index's shards. Empty if there are none or one is missing."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    names = _read_json(spec, folder / INDEX).get("weight_map")
    shards = sorted(set(names.values())) if isinstance(names, dict) else []
    if not shards or any(not isinstance(name, str) or Path(name).name != name for name in shards):
        raise ValueError(
            f"models: {spec!r} has a broken {INDEX}: its weight_map must name files of the same directory; "
            "save the model again"
        )
    return [folder / name for name in shards] if all((folder / name).is_file() for name in shards) else []


def require_whole(spec: str, files: Iterable[Path]) -> None:
    """`ValueError` unless each safetensors file is as long as its header says; reads the headers alone."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            safe_open(file, "np")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"models: {spec!r} cannot be loaded, {file.name} is broken ({error}); are its files whole?"
            ) from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a vocabulary lies in the folder: without one transformers silently makes up an empty tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def require_safetensors(spec: str, names: Iterable[str]) -> None:
    """`ValueError` unless safetensors are among the file names of a model; says so when only pickled weights are."""
    names = list(names)
    if SINGLE in names or INDEX in names:
        return
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    what = (
        f"only pickled weights ({', '.join(pickled[:3])}), which can run code when read"
        if pickled
        else "no model.safetensors"
    )
    raise ValueError(f"models: {spec!r} has {what}; convert it with https://huggingface.co/spaces/safetensors/convert")


def identity(spec: str, folder: Path) -> str:
    """What decides a local model's results: one digest over config.json and the weights, wherever the folder lies.

    The tokenizer is not in it: records carry the digest of the token ids themselves.
    """
    lines = [f"{file.name} {sha256(file)}\n" for file in (folder / "config.json", *weight_files(spec, folder))]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256(file: Path) -> str:
    """The digest of a file's bytes, remembered in this process while its size and modification time stand."""
    status = file.stat()
    return _sha256(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(spec: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"models: {spec!r} has an unreadable {file.name} ({error}); save the model again") from error
    if not isinstance(content, dict):
        raise ValueError(f"models: {spec!r} has a {file.name} that is not a JSON object; save the model again")
    return content
