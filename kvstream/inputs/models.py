"""From a model's name to a model: what it is, whether it may be loaded, and the loading.

Names: `owner/name@revision` (Hub; `pythia-70m-deduped` and its two sisters for short) · a local directory ·
`smollm2-135m` (embedded demo) · `shape:pythia-70m|160m|410m` (random weights: latency and memory, no quality). Knows no
policies, no Ray. Weights come from safetensors only and code that lies beside a model never runs.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kvstream.inputs import checkpoint, demo_model, hub, pythia_shapes

# The commits at the head of `main`. 410m's we do not know with certainty: it follows `main`; records name the commit.
PINNED = {
    "EleutherAI/pythia-70m-deduped": "e93a9faa9c77e5d09219f6c868bfc7a1bd65593c",
    "EleutherAI/pythia-160m-deduped": "582159a2dfe3e712a8d47ae83dec95ae3bde8e7e",
    "EleutherAI/pythia-410m-deduped": "main",
}
ALIASES = {name.split("/")[1]: name for name in PINNED}
KINDS = (
    f"a Hub id (owner/name@revision), {', '.join(ALIASES)}, a local directory, {demo_model.NAME}, "
    f"{', '.join(pythia_shapes.SHAPES)}"
)


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is loaded.

    spec: the name it was asked for by. revision: the Hub commit in hex, else None. identity: decides the result; equal
    identities are equal weights and shape, on any machine. note: what a report must say beside the numbers.
    trained_context: the longest sequence it was trained on, in tokens. Sizes are 0 where config.json leaves them to the
    model's class, until `as_built` asks that. has_quality: False where weights are random. folder: where its files lie
    here, None for shapes.
    """

    spec: str
    kind: Literal["hub", "local", "demo", "shape"]
    revision: str | None
    identity: str
    note: str | None
    trained_context: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    has_quality: bool
    folder: Path | None

    @property
    def flops_per_token(self) -> float:
        """Roughly what one token costs beside attention: two operations per weight of the layers and of the head."""
        return 2.0 * (12 * self.num_layers * self.hidden_size**2 + self.vocab_size * self.hidden_size)


def resolve(spec: str) -> ModelInfo:
    """Check a model's name and files without torch and without weights, and say what it is.

    A Hub id without a revision means `PINNED`, else `main`; `revision` is the commit it stands for. What is cached asks
    the network nothing. `ValueError` with field, value and remedy for an unknown name, a missing directory, an unusable
    config.json, weights that are not safetensors, remote code, a missing demo package, and a Hub that does not deliver
    within ten seconds.
    """
    if not spec.isprintable():
        raise ValueError(f"models: {spec!r} is not a model; give {KINDS}, or rename it in characters that can be shown")
    if spec in pythia_shapes.SHAPES:
        identity, config = f"{spec} seed {pythia_shapes.SEED}", checkpoint.completed(pythia_shapes.config_of(spec))
        return _info(spec, "shape", identity, config, note="random weights, no quality", has_quality=False)
    if spec == demo_model.NAME:
        digest, config = checkpoint.sha256(demo_model.gguf_file()), checkpoint.completed(demo_model.CONFIG)
        return _info(
            spec, "demo", f"gguf sha256:{digest}", config, note=demo_model.NOTE, folder=demo_model.converted(digest)
        )
    # os.path answers False to names no folder can have; pathlib raises.
    if spec not in ALIASES and os.path.isdir(os.path.expanduser(spec)):
        folder = Path(spec).expanduser()
        config = checkpoint.read_config(spec, folder)
        _require_weights(spec, folder)
        return _info(spec, "local", checkpoint.identity(spec, folder), config, folder=folder.resolve())
    parts = hub.split_id(ALIASES.get(spec, spec))
    if parts is None:
        what = "is not a directory" if spec[:1] in {".", "/", "~"} else "is not a model"
        raise ValueError(f"models: {spec!r} {what}; give {KINDS}")
    repo, revision = parts
    folder = _fetch(spec, repo, revision or PINNED.get(repo, "main"), weights=False)
    config = checkpoint.read_config(spec, folder)
    return _info(spec, "hub", f"{repo}@{folder.name}", config, revision=folder.name, folder=folder)


def load_model(spec: str, *, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """The model in eval mode, without gradients, and its tokenizer (None for shapes). Errors as in `resolve`.

    dtype: float32, float16, bfloat16 or float64. device: `cpu`, `cuda`, `cuda:1`, `mps`.
    """
    from kvstream.inputs import weights

    kind = weights.parse_dtype(dtype)
    weights.check_device(device, dtype)
    info = resolve(spec)
    with _quiet():
        model = pythia_shapes.build(spec, kind) if info.kind == "shape" else _from_folder(info, kind)
    return model.to(device).requires_grad_(False).eval(), load_tokenizer(info)


def as_built(info: ModelInfo) -> ModelInfo:
    """The same with all sizes, as the model has them that transformers builds from its config.json; reads no weights.

    `ValueError` for a model that kvstream cannot serve, as far as its shape tells.
    """
    if info.kind in {"shape", "demo"}:
        return info
    from transformers import AutoConfig

    from kvstream.engine.rope import Rope
    from kvstream.inputs import weights

    assert info.folder is not None
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(info.folder, trust_remote_code=False, local_files_only=True)
            model: Any = weights.skeleton(config)
        if rotary := getattr(model.base_model, "rotary_emb", None):
            model.base_model.rotary_emb = type(rotary)(config=model.config)  # frequencies, where the skeleton has none
    except Exception as error:
        raise ValueError(
            f"models: {info.spec!r} is no language model that transformers can build from its config.json ({error}); "
            "give a GPT-NeoX or Llama-family model"
        ) from error
    kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    if kinds or getattr(config, "sliding_window", None):
        what = (
            f"layer_types {', '.join(map(repr, sorted(kinds)))}" if kinds else f"sliding_window {config.sliding_window}"
        )
        raise ValueError(
            f"models: {info.spec!r} does not attend to everything ({what} in config.json), and kvstream's policies "
            "presume that; give a model with full attention such as Pythia, Llama or Qwen2"
        )
    try:
        Rope(model)
    except ValueError as error:
        raise ValueError(f"models: {info.spec!r} cannot be served: {error}") from None
    _require_fitting(info, model)
    return replace(info, **_built_sizes(info, model))


def _require_fitting(info: ModelInfo, model: Any) -> None:
    """`ValueError` if weights that lie here are not those of the model, as far as the names in their headers tell.

    transformers renames some as it loads. What may be of another name there is left to it.
    """
    assert info.folder is not None
    there = checkpoint.tensor_shapes(checkpoint.weight_files(info.spec, info.folder))
    wanted = dict(model.named_parameters(remove_duplicate=False))
    common = there.keys() & wanted.keys()
    for name in sorted(common):
        if math.prod(there[name]) != wanted[name].numel():  # it turns some round, too
            raise ValueError(
                f"models: {info.spec!r} has weights of another shape than its config.json says, {name!r} is "
                f"{there[name]}, not {tuple(wanted[name].shape)}; give weights and configuration that belong together"
            )
    held = {id(wanted[name]) for name in common}  # of tied ones, one is enough
    in_layers = {_of_any_layer(name) for name in common}
    for name, parameter in wanted.items():
        if id(parameter) not in held and _of_any_layer(name) in in_layers:
            raise ValueError(
                f"models: {info.spec!r} lacks weights that its config.json needs, {name!r} first; are its files whole?"
            )


def _of_any_layer(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _built_sizes(info: ModelInfo, model: Any) -> dict[str, Any]:
    """The sizes of a model on the meta device, defaults of its class included; what it caches is asked of itself."""
    config = model.config.get_text_config()
    said = checkpoint.completed({name: getattr(config, name, None) for name in checkpoint.SIZES})
    sizes = checkpoint.shape(info.spec, said)
    heads, hidden = said["num_attention_heads"], said["hidden_size"]
    if not info.head_dim and sizes["head_dim"] == hidden // heads and hidden % heads:
        raise ValueError(
            f"models: {info.spec!r} has hidden_size = {hidden} and {heads} heads in config.json, which do not divide; "
            "give the configuration that belongs to the weights"
        )
    if not (cached := _cached_sizes(model)):
        return sizes
    if len(kinds := {*cached}) > 1 or (kind := kinds.pop())[1] != kind[2]:
        raise ValueError(
            f"models: {info.spec!r} caches keys and values of different sizes (heads, keys, values: {cached}), and "
            "kvstream counts memory by one; give a model such as Pythia, Llama or Qwen2"
        )
    return sizes | {"num_kv_heads": kind[0], "head_dim": kind[1]}


def _cached_sizes(model: Any) -> list[tuple[int, int, int]]:
    """Of each layer kv-heads, the size of a key and of a value: what a token leaves in a cache, without computing.

    Not every class runs without weights; then the layers before that, or none.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    token = torch.zeros((1, 1), dtype=torch.int64, device="meta")
    # Experts on the meta device want bfloat16.
    with torch.inference_mode(), contextlib.suppress(Exception):
        model.to(device="meta", dtype=torch.bfloat16)(input_ids=token, past_key_values=cache, use_cache=True)
    filled: list[Any] = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return [(each.keys.shape[1], each.keys.shape[3], each.values.shape[3]) for each in filled]


def load_tokenizer(info: ModelInfo) -> Any:
    """The tokenizer of a resolved model, without its weights; None for shapes."""
    if info.folder is None:
        return None
    from transformers import AutoTokenizer

    with _quiet():
        if info.kind == "demo" and not info.folder.is_dir():
            return demo_model.read_tokenizer(demo_model.gguf_file())
        if not checkpoint.has_tokenizer(info.folder):
            listed = ", ".join(checkpoint.TOKENIZERS)
            raise ValueError(f"models: {info.spec!r} has no tokenizer (none of {listed}); save one into {info.folder}")
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(info.folder, trust_remote_code=False, local_files_only=True)
            # Of the wrong class, as without its tokenizer_config.json, one can load and find nothing in any text.
            middle = len(tokenizer) // 2
            some = tokenizer.convert_ids_to_tokens(list(range(middle, min(middle + 20, len(tokenizer)))))
            if not tokenizer(" ".join(map(str, some)), add_special_tokens=False)["input_ids"]:
                raise ValueError("it finds no token in words of its own vocabulary")
            return tokenizer
        except Exception as error:
            raise ValueError(
                f"models: {info.spec!r} has no usable tokenizer ({error}); save one into {info.folder}"
            ) from error


def _info(
    spec: str,
    kind: Literal["hub", "local", "demo", "shape"],
    identity: str,
    config: dict[str, Any],
    *,
    revision: str | None = None,
    note: str | None = None,
    has_quality: bool = True,
    folder: Path | None = None,
) -> ModelInfo:
    sizes = checkpoint.shape(spec, config)
    return ModelInfo(spec, kind, revision, identity, note, has_quality=has_quality, folder=folder, **sizes)


def _require_weights(spec: str, folder: Path) -> None:
    checkpoint.require_safetensors(spec, [file.name for file in folder.iterdir()])
    files = checkpoint.weight_files(spec, folder)
    if not files:
        raise ValueError(f"models: {spec!r} lacks files that its {checkpoint.INDEX} names; copy the whole directory")
    checkpoint.require_whole(spec, files)


def _fetch(spec: str, repo: str, revision: str, *, weights: bool) -> Path:
    """The snapshot of a Hub model; without `weights` only configuration and tokenizer, and within ten seconds."""

    def enough(folder: Path) -> bool:
        whole = (folder / "config.json").is_file() and bool(checkpoint.weight_files(spec, folder))
        return whole and checkpoint.has_tokenizer(folder)

    def wanted(name: str) -> bool:
        return "/" not in name and name.endswith((".json", ".txt", ".model") + ((".safetensors",) if weights else ()))

    return hub.fetch(
        repo,
        revision,
        kind="model",
        wanted=wanted,
        enough=enough,
        check=lambda names: checkpoint.require_safetensors(spec, names),
        field="models",
        remedy=f"run offline with --models {demo_model.NAME} --text kjv, or give local directories",
        quick=not weights,
    )


def _from_folder(info: ModelInfo, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    assert info.folder is not None
    folder = info.folder
    if info.kind == "demo":
        file = demo_model.gguf_file()
        folder = demo_model.convert(file, checkpoint.sha256(file))
    elif info.kind == "hub":
        folder = _fetch(info.spec, info.identity.split("@")[0], folder.name, weights=True)
    has_own_code = "auto_map" in checkpoint.read_config(info.spec, folder)
    try:
        loader: Any = AutoModelForCausalLM  # the stubs do not know output_loading_info
        model, report = loader.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ValueError(
            f"models: {info.spec!r} cannot be loaded from {folder} ({error}); are its files whole?"
        ) from error
    # transformers fills what is missing with random numbers and only logs it.
    if gaps := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(
            f"models: {info.spec!r} lacks weights that its config.json needs, {gaps[0]!r} first; are its files whole?"
        )
    if has_own_code and (others := sorted(name for name in report["unexpected_keys"] if "inv_freq" not in name)):
        raise ValueError(
            f"models: {info.spec!r} has weights that only its own code reads (auto_map in config.json), {others[0]!r} "
            "first, and kvstream never runs that; use a model of an architecture that transformers itself contains"
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers in the meantime: what matters is an error of ours."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
