"""From a model's name to the model and its tokenizer, and what it will be, before its weights are read.

Weights come from safetensors only, and code that lies beside a model never runs. What may be loaded at all,
`kvstream.inputs.models` decides. Knows no policies, no Ray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvstream.inputs import checkpoint, demo_model, pythia_shapes
from kvstream.inputs.models import ModelInfo, fetch_model, resolve, sizes_of

if TYPE_CHECKING:
    import os

    import torch

SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size")


def as_built(info: ModelInfo, require_servable: Callable[[Any], object]) -> ModelInfo:
    """The same with all sizes, as the model has them that transformers builds from its config.json; reads no weights.

    require_servable: gets that model, without weights, and raises `ValueError` where kvstream cannot serve it.
    """
    if info.kind in {"shape", "demo"}:
        return info
    from transformers import AutoConfig

    from kvstream.inputs import weights

    assert info.folder is not None
    try:
        with quiet():
            config = AutoConfig.from_pretrained(info.folder, trust_remote_code=False, local_files_only=True)
            model: Any = weights.skeleton(config)
        if rotary := getattr(model.base_model, "rotary_emb", None):
            model.base_model.rotary_emb = type(rotary)(config=model.config)  # frequencies, where the skeleton has none
        own = model.config.get_text_config()
        sizes = sizes_of({name: getattr(own, name, None) for name in (*SIZES, "max_position_embeddings")})
        sizes["built_weights"] = sum(weight.numel() for weight in model.parameters())
    except Exception as error:
        raise ValueError(
            f"models: {info.spec!r} is no language model that transformers can build from its config.json ({error}); "
            "give a GPT-NeoX or Llama-family model"
        ) from error
    kinds = sorted({*(getattr(config, "layer_types", None) or ())} - {"full_attention"})
    if kinds or getattr(config, "sliding_window", None):
        what = f"layer_types {', '.join(map(repr, kinds))}" if kinds else f"sliding_window {config.sliding_window}"
        raise ValueError(
            f"models: {info.spec!r} does not attend to everything ({what} in config.json), and kvstream's policies "
            "presume that; give a model with full attention such as Pythia, Llama or Qwen2"
        )
    try:
        require_servable(model)
    except ValueError as error:
        raise ValueError(f"models: {info.spec!r} cannot be served: {error}") from None
    cached = _cached_sizes(model)
    if len(cached) > 1 or any(keys != values for _, keys, values in cached):
        raise ValueError(
            f"models: {info.spec!r} caches keys and values of different sizes (heads, keys, values: {cached}), and "
            "kvstream counts memory by one; give a model such as Pythia, Llama or Qwen2"
        )
    for heads, keys, _ in cached:
        sizes |= {"num_kv_heads": heads, "head_dim": keys}
    return replace(info, **sizes)


def _cached_sizes(model: Any) -> set[tuple[int, int, int]]:
    """Kv-heads, the size of a key and of a value: what a token leaves in a cache, asked of layers without weights.

    Not every class runs so; then those of the layers before that, or none.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    token = torch.zeros((1, 1), dtype=torch.int64, device="meta")
    # Experts on the meta device want bfloat16.
    with torch.inference_mode(), contextlib.suppress(Exception):
        model.to(device="meta", dtype=torch.bfloat16)(input_ids=token, past_key_values=cache, use_cache=True)
    filled: list[Any] = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return {(each.keys.shape[1], each.keys.shape[3], each.values.shape[3]) for each in filled}


def load_model(
    spec: str | os.PathLike[str], *, dtype: str | torch.dtype = "float32", device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """The model in eval mode, without gradients, and its tokenizer (None for shapes). Errors as in `resolve`.

    dtype: float32, float16, bfloat16, float64, or tf32: float32 that GPUs multiply in TF32, from then on all of this
    process, as torch has one setting for it. device: `cpu`, `cuda`, `cuda:1`, `mps`.
    """
    from kvstream.inputs import weights

    spec, dtype, device = str(spec), str(dtype).removeprefix("torch."), str(device)
    kind = weights.parse_dtype(dtype)
    weights.check_device(device, dtype)
    info = resolve(spec)
    with quiet():
        model = pythia_shapes.build(spec, kind) if info.kind == "shape" else _from_folder(info, kind)
    if dtype == weights.TF32:
        weights.multiply_as(dtype)
    return model.to(device).requires_grad_(False).eval(), load_tokenizer(info)


def load_tokenizer(info: ModelInfo) -> Any:
    """The tokenizer of a resolved model, without its weights; None for shapes."""
    if info.folder is None:
        return None
    from transformers import AutoTokenizer

    with quiet():
        if info.kind == "demo" and not info.folder.is_dir():
            return demo_model.read_tokenizer(demo_model.gguf_file())
        if not checkpoint.has_tokenizer(info.folder):
            listed = ", ".join(checkpoint.TOKENIZERS)
            raise ValueError(f"models: {info.spec!r} has no tokenizer (none of {listed}); save one into {info.folder}")
        try:
            return AutoTokenizer.from_pretrained(info.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise ValueError(
                f"models: {info.spec!r} has no usable tokenizer ({error}); save one into {info.folder}"
            ) from error


def _from_folder(info: ModelInfo, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    assert info.folder is not None
    folder = info.folder
    if info.kind == "demo":
        file = demo_model.gguf_file()
        folder = demo_model.convert(file, checkpoint.sha256(file))
    elif info.kind == "hub":
        folder = fetch_model(info.spec, info.identity.split("@")[0], folder.name, weights=True)
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
def quiet() -> Iterator[None]:
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
