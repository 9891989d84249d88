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
MEASURED = "_kvstream_token_bytes"  # an attribute of the model: by device and dtype


def chunk_size_for(model: PreTrainedModel, rows: int) -> int:
    """Choose a chunk for so many texts side by side, in tokens, for a model that a `KVStreamCache` was made for."""
    model = unwrapped(model)
    device = device_of(model)
    if device.type != "cuda" or not serves(device, model.dtype):
        return CHUNK_SIZE
    return fitting_chunk(SHARE * memory_of(device) / _token_bytes(model, device), rows)


def take_less(model: PreTrainedModel) -> None:
    """Have chunks for a model be half as long from here on, where one lacked memory."""
    measured: dict[tuple[torch.device, torch.dtype], float] = vars(unwrapped(model)).get(MEASURED, {})
    for key in measured:
        measured[key] *= 2


def memory_of(device: torch.device) -> float:
    """Bytes of a GPU, or where others hold most of them, those that they left."""
    free, total = torch.cuda.mem_get_info(device)
    available = free + torch.cuda.memory_reserved(device)
    return total if available > total / 2 else available


def fitting_chunk(tokens: float, rows: int) -> int:
    """Double the usual chunk while so many texts' stay below so many tokens in all."""
    size = CHUNK_SIZE
    while size < MOST_TOKENS and 2 * size * rows <= tokens:
        size *= 2
    return size


def _token_bytes(model: PreTrainedModel, device: torch.device) -> float:
    """What a token in a chunk takes beside the weights, logits aside."""
    measured: dict[tuple[torch.device, torch.dtype], float] = vars(model).setdefault(MEASURED, {})
    if (device, model.dtype) not in measured:
        for _ in range(2):  # in the first round libraries take what they keep, which is no token's
            cache = KVStreamCache.unchecked(model, Full(), Rope(model))
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            cache.hidden_states(model, torch.zeros(1, CHUNK_SIZE, dtype=torch.int64, device=device))
            found = (torch.cuda.max_memory_allocated(device) - before) / CHUNK_SIZE
            del cache
        measured[device, model.dtype] = found
        card, tokens = torch.cuda.get_device_name(device), fitting_chunk(SHARE * memory_of(device) / found, 1)
        about = f"{card}: chunks of {tokens:,} tokens, {found / 1e3:,.0f} kB each"
        note(f"{about}, for {type(model).__name__} in {str(model.dtype).removeprefix('torch.')}")
    return measured[device, model.dtype]
