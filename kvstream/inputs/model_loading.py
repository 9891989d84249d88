"""From a model's name to the model and its tokenizer. Knows no policies, no Ray.

Weights come from safetensors only, and code that lies beside a model never runs. What may be loaded at all,
`kvstream.inputs.models` decides.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from kvstream.inputs import checkpoint, demo_model, pythia_shapes
from kvstream.inputs.models import ModelInfo, fetch_model, resolve


def load_model(spec: str, *, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """The model in eval mode, without gradients, and its tokenizer (None for shapes). Errors as in `resolve`.

    dtype: float32, float16, bfloat16 or float64. device: `cpu`, `cuda`, `cuda:1`, `mps`.
    """
    from kvstream.inputs import weights

    kind = weights.parse_dtype(dtype)
    weights.check_device(device, dtype)
    info = resolve(spec)
    with quiet():
        model = pythia_shapes.build(spec, kind) if info.kind == "shape" else _from_folder(info, kind)
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
