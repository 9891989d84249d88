"""A folder of model files: is it there, is it safe to load, and which bytes decide what it computes.

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
ADAPTER = "adapter_config.json"


def read_config(spec: str, folder: Path) -> dict[str, Any]:
    """config.json of a folder. `ValueError` if it is missing, broken, quantised, an adapter's, or asks to run code.

    Code: `auto_map` names some beside the model, which a class of transformers' own does without; an attention with a
    slash in its name is downloaded from the Hub.
    """
    if (folder / ADAPTER).exists():
        raise ValueError(_of_adapter(spec))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"models: {spec!r} has no config.json in {folder}; give a directory that save_pretrained() wrote"
        )
    config = _read_json(spec, folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        content = _read_json(spec, folder / name) if (folder / name).is_file() else {}
        if "auto_map" in content and not _is_native(name, content):
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


def _is_native(name: str, content: dict[str, Any]) -> bool:
    """Whether transformers itself has the class that the file called `name` speaks of.

    Only here is transformers asked, which takes its import: hardly any model comes to it.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if name == "config.json":
        return content.get("model_type") in list(CONFIG_MAPPING_NAMES)
    return content.get("tokenizer_class") in dir(transformers)


def weight_files(spec: str, folder: Path) -> list[Path]:
    """The safetensors transformers reads: one file, or an index's shards. Empty if there are none or one is missing."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    names = _read_json(spec, folder / INDEX).get("weight_map")
    shards = {str(name) for name in names.values()} if isinstance(names, dict) else set()
    if not shards or any(Path(name).name != name for name in shards):
        raise ValueError(
            f"models: {spec!r} has a broken {INDEX}: its weight_map must name files of the same directory; "
            "save the model again"
        )
    files = [folder / name for name in sorted(shards)]
    return files if all(file.is_file() for file in files) else []


def require_whole(spec: str, files: Iterable[Path]) -> None:
    """`ValueError` for a file of weights that is shorter or longer than its header says, as after a broken copy."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"models: {spec!r} has an unreadable {file.name} ({error}); copy or save it again"
            ) from None


def has_tokenizer(folder: Path) -> bool:
    """Whether a vocabulary lies in the folder: without one transformers silently makes up an empty tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def require_safetensors(spec: str, names: Iterable[str]) -> None:
    """`ValueError` unless safetensors are among the file names of a model; says so when only pickled weights are.

    Also for an adapter: transformers would load one by itself where peft is installed, and leave it out elsewhere.
    """
    names = list(names)
    if ADAPTER in names:
        raise ValueError(_of_adapter(spec))
    if SINGLE in names or INDEX in names:
        return
    pickled = ", ".join(sorted(name for name in names if name.endswith(PICKLED))[:3])
    if pickled:
        raise ValueError(
            f"models: {spec!r} has only pickled weights ({pickled}), which can run code when read; convert it with "
            "https://huggingface.co/spaces/safetensors/convert"
        )
    raise ValueError(f"models: {spec!r} has no weights (no {SINGLE}); give what save_pretrained() wrote, whole")


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


def _of_adapter(spec: str) -> str:
    return (
        f"models: {spec!r} holds an adapter such as LoRA ({ADAPTER}), which kvstream does not apply; merge it with "
        "PeftModel.from_pretrained(base, adapter).merge_and_unload() and give the directory where save_pretrained() "
        "puts the result"
    )


def _read_json(spec: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        why: object = "not a JSON object"
    except (OSError, ValueError, RecursionError) as error:
        why = error
    raise ValueError(f"models: {spec!r} has an unreadable {file.name} ({why}); save the model again")
