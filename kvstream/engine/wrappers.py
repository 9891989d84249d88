"""What people wrap around models and their layers, and whether a layer still is what its class says.

Knows no caches. `torch.compile`, `DataParallel` and PEFT's adapters each put a model inside another module; hooks,
offloading and quantisation change what a layer computes while its weights stay where they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside `torch.compile`, `DataParallel` and PEFT's adapters, which stay active.

    Raises ValueError for adapters that put tokens of their own before the text: no cache policy says what becomes of
    those. https://huggingface.co/docs/peft/package_reference/peft_model
    """
    if inner := getattr(model, "_orig_mod", None):
        return unwrapped(inner)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    if adapters := getattr(model, "peft_config", None) if hasattr(model, "get_base_model") else None:
        if prompting := [name for name, config in adapters.items() if getattr(config, "is_prompt_learning", False)]:
            raise ValueError(
                f"model: its adapter {prompting[0]!r} puts learned tokens before the text, which kvstream's policies "
                "do not know; give the base model, or an adapter of its weights such as LoRA"
            )
        return unwrapped(model.get_base_model())
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model: {type(model).__name__} is no model of transformers; give an …ForCausalLM")
    return model


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module's output is its weight times the input and its bias, and nothing has been hung onto it."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)  # where offloading puts its own
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not torch_module._global_forward_hooks
        and not torch_module._global_forward_pre_hooks
        and not module.weight.is_meta
    )


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes, also while its weights are offloaded."""
    held = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if held is not None:
        return torch.device(held)
    device: torch.device = model.device  # type: ignore[assignment]
    return torch.device("cpu") if device.type == "meta" else device


def vocabulary_of(model: Any) -> int:
    """How many token ids a model knows."""
    return int(model.get_input_embeddings().weight.shape[0])
