"""How many tokens of each text pass through a model at once: fixed, but on a GPU with kernels as many as are worth it.

There a chunk of thousands costs hardly more launches than one of hundreds. What a token takes is measured once for each
model and device; a quarter of the device's memory may go into it, so that its size hardly depends on what else runs.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from kvstream.engine.backends.cuda import serves
from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.notes import note
from kvstream.engine.rope import Rope
from kvstream.engine.wrappers import device_of, unwrapped
from kvstream.policies import Full

MOST_TOKENS = 16 * CHUNK_SIZE  # of one text: more make nothing faster
SHARE = 0.25  # of a device's memory
MEASURED = "_kvstream_tokens_at_once"  # an attribute of the model: by device and dtype
LESS = "_kvstream_less"  # another: how often chunks were halved, as they lacked memory


def chunk_size_for(model: PreTrainedModel, rows: int) -> int:
    """Choose a chunk for so many texts side by side, in tokens, for a model that a `KVStreamCache` was made for."""
    model = unwrapped(model)
    device = device_of(model)
    if device.type != "cuda" or not serves(device, model.dtype):
        return CHUNK_SIZE
    return max(CHUNK_SIZE, fitting_chunk(_tokens_at_once(model, device), rows) >> vars(model).get(LESS, 0))


def take_less(model: PreTrainedModel) -> None:
    """Have chunks for a model be half as long from here on, but none shorter than the usual."""
    model = unwrapped(model)
    setattr(model, LESS, vars(model).get(LESS, 0) + 1)


def fitting_chunk(tokens: float, rows: int) -> int:
    """Double the usual chunk while so many texts' stay below so many tokens in all."""
    size = CHUNK_SIZE
    while size < MOST_TOKENS and 2 * size * rows <= tokens:
        size *= 2
    return size


def _tokens_at_once(model: PreTrainedModel, device: torch.device) -> float:
    """For how many tokens of a chunk there is room beside the weights, logits aside."""
    measured: dict[tuple[torch.device, torch.dtype], float] = vars(model).setdefault(MEASURED, {})
    if (device, model.dtype) not in measured:
        for _ in range(2):  # in the first round libraries take what they keep, which is no token's
            cache = KVStreamCache.unchecked(model, Full(), Rope(model))
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            cache.hidden_states(model, torch.zeros(1, CHUNK_SIZE, dtype=torch.int64, device=device))
            found = (torch.cuda.max_memory_allocated(device) - before) / CHUNK_SIZE
            del cache
        measured[device, model.dtype] = tokens = SHARE * memory_of(device) / found
        about = f"{torch.cuda.get_device_name(device)}: chunks of {fitting_chunk(tokens, 1):,} tokens"
        model_in = f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')}"
        note(f"{about}, {found / 1e3:,.0f} kB each, for {model_in}")
    return measured[device, model.dtype]


def memory_of(device: torch.device) -> float:
    """Bytes of a GPU, or where others hold most of them, those that they left."""
    free, total = torch.cuda.mem_get_info(device)
    available = free + torch.cuda.memory_reserved(device)
    return total if available > total / 2 else available
