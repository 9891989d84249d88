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

TF32 = "tf32"  # float32, whose products a GPU takes in numbers of 10 bits
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")} | {TF32: torch.float32}
STORED = {*DTYPES.values(), torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`; `ValueError` for anything but the four floating dtypes and TF32."""
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
    if kind != "cuda" and dtype == TF32:
        raise ValueError(f"dtype: {TF32!r} is how NVIDIA GPUs multiply float32; choose float32 on {kind}")


def multiply_as(dtype: str) -> None:
    """Have GPUs multiply float32 in TF32 where that is asked for, and nowhere else."""
    torch.backends.cuda.matmul.allow_tf32 = dtype == TF32


def skeleton(config: Any) -> torch.nn.Module:
    """The model of a transformers configuration on the meta device: every shape, no memory, no weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False).eval()


def to_arrays(model: torch.nn.Module) -> tuple[Any, dict[str, np.ndarray]]:
    """Configuration and tensors of `model`, by name, each in its own dtype.

    Beside the state dict these are what it leaves out: buffers such as rotary frequencies or Gemma's embedding scale,
    and tensors that a module holds as plain attributes. Tied weights appear once. NumPy has no bfloat16: such tensors
    are their 16 bits as uint16. CPU memory is shared, not copied. `ValueError` for a tensor that is not in memory or
    that NumPy cannot hold.
    """
    arrays: dict[str, np.ndarray] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen.add(key)
            arrays[name] = _array(name, tensor)
    return copy.deepcopy(model.config), arrays | {name: _array(name, each) for name, each in _outside(model).items()}


def from_arrays(config: Any, arrays: dict[str, np.ndarray], *, device: str = "cpu") -> torch.nn.Module:
    """The model that `to_arrays` took apart, in eval mode and without gradients; bit-identical logits.

    `ValueError` if an array is missing, unknown or of another shape.
    """
    model = skeleton(config)
    tensors = {name: _tensor(array).to(device) for name, array in arrays.items()}
    outside = {name: tensors.pop(name) for name in _outside(model) if name in tensors}
    try:
        unknown = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:
        raise ValueError(f"weights: {error}; are the arrays of this configuration?") from error
    if any(parameter.is_meta for parameter in model.parameters()):
        model.tie_weights()  # type: ignore[operator]
    for name, tensor in outside.items():
        path, _, key = name.rpartition(".")
        setattr(model.get_submodule(path), key, tensor)
    placed = model.state_dict()
    missing = [name for name, tensor in (placed | _outside(model)).items() if tensor.is_meta]
    # Where a configuration ties what the model did not, tying has put one weight in another's place.
    missing += [name for name in tensors.keys() & placed if placed[name].data_ptr() != tensors[name].data_ptr()]
    if missing or unknown:
        raise ValueError(
            f"weights: missing {missing[:3]}, unknown {unknown[:3]}; are the arrays of this configuration?"
        )
    model.config.dtype = model.dtype
    return model.requires_grad_(False).eval()


def _outside(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that its state dict leaves out, by name: non-persistent buffers and plain attributes."""
    found = dict(model.named_buffers(remove_duplicate=False))
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        found |= {f"{prefix}{key}": value for key, value in vars(module).items() if isinstance(value, torch.Tensor)}
    inside = model.state_dict()
    return {name: tensor for name, tensor in found.items() if name not in inside}


def _array(name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.is_meta or tensor.dtype not in STORED:
        raise ValueError(
            f"weights: {name!r} is {tensor.dtype} on {tensor.device}; load the model into memory, in float32, float16 "
            "or bfloat16"
        )
    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return bits.detach().cpu().numpy()


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
