"""The shape of a model as transformers builds it from its config.json: sizes that the file leaves to the model's class.

Reads no weights, only the names and shapes in their headers, so that weights of another model are refused at once.
"""

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvstream.inputs import checkpoint
from kvstream.inputs.model_loading import quiet
from kvstream.inputs.models import ModelInfo


def as_built(info: ModelInfo, require_servable: Callable[[Any], object]) -> ModelInfo:
    """The same with all sizes, as the model has them that transformers builds from its config.json; reads no weights.

    require_servable: gets that model, without weights, and raises `ValueError` where kvstream cannot serve it.
    `ValueError` for such a model, and for weights of other shapes.
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
        require_servable(model)
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
