"""A model as a configuration and NumPy arrays, and back: one copy in Ray's object store serves every worker.

Knows neither Ray nor model names. `from_arrays` on a CPU in the stored dtype copies nothing: parameters *are* the
arrays, which may be read-only memory. Never write into them; torch cannot be told that they are read-only
(https://docs.ray.io/en/latest/ray-core/objects/serialization.html).
"""

import copy
import warnings
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`; `ValueError` for anything but the four floating dtypes."""
    if name not in DTYPES:
        raise ValueError(f"dtype: {name!r} is not supported; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def check_device(device: str, dtype: str) -> None:
    """`ValueError` unless this process has the device and the device computes in that dtype."""
    kind, _, index = device.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind)
    if count is None or not (index == "" or index.isdecimal()):
        raise ValueError(f"device: {device!r} is not supported; choose cpu, cuda, cuda:0 … or mps")
    if int(index or 0) >= count:
        raise ValueError(f"device: {device!r} is not here, this machine has {count} of {kind}; choose --device cpu")
    if kind == "mps" and dtype == "float64":
        raise ValueError("dtype: 'float64' does not exist on mps; choose float32 or --device cpu")


def skeleton(config: Any) -> torch.nn.Module:
    """The model of a transformers configuration on the meta device: every shape, no memory, no weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False).eval()


def to_arrays(model: torch.nn.Module) -> tuple[Any, dict[str, np.ndarray]]:
    """Configuration and weights of `model`, by parameter name, in its own dtype.

    Tied weights appear once. NumPy has no bfloat16: such weights are their 16 bits as uint16. CPU memory is shared, not
    copied.
    """
    arrays: dict[str, np.ndarray] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen.add(key)
            bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
            arrays[name] = bits.detach().cpu().numpy()
    return copy.deepcopy(model.config), arrays


def from_arrays(
    config: Any, arrays: dict[str, np.ndarray], *, dtype: str | None = None, device: str = "cpu"
) -> torch.nn.Module:
    """The model that `to_arrays` took apart, in eval mode and without gradients; bit-identical logits in the same
    dtype.

    `dtype=None` keeps the stored one. Buffers outside the state dict (rotary frequencies) are computed again, in
    float32 as transformers does, whatever the weights' dtype. `ValueError` if an array is missing, unknown or of
    another shape.
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    model = skeleton(config)
    tensors = {name: _tensor(array).to(device) for name, array in arrays.items()}
    if wanted is not None:
        tensors = {
            name: tensor.to(wanted) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
        }
    try:
        unknown = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:
        raise ValueError(f"weights: {error}; are the arrays of this configuration?") from error
    model.tie_weights()  # type: ignore[operator]
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing or unknown:
        raise ValueError(
            f"weights: missing {missing[:3]}, unknown {unknown[:3]}; are the arrays of this configuration?"
        )
    _rebuild_buffers(model, device)
    model.config.dtype = model.dtype
    return model.requires_grad_(False).eval()


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _rebuild_buffers(model: torch.nn.Module, device: str) -> None:
    """Replace meta buffers by those of the same module built for real; rotary embeddings need only the config."""
    for name, module in model.named_modules():
        lost = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if lost and not hasattr(module, "config"):
            raise ValueError(f"weights: buffers {lost} of {name!r} are in no state dict and cannot be rebuilt")
        if lost:
            fresh = type(module)(config=module.config)
            for key in lost:
                setattr(module, key, getattr(fresh, key).to(device))
