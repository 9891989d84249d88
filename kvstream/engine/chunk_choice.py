"""How many tokens of each text pass through a model at once: fixed, but on a GPU with kernels as many as are worth it.

There a chunk of thousands costs hardly more launches than one of hundreds. What a token takes is measured once for each
model and device, and what is free then counts: a quarter of it may go into a chunk. Later chunks are as long.
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
SHARE = 0.25  # of a device's free memory
MEASURED = "_kvstream_tokens_at_once"  # an attribute of the model: by device and dtype


def chunk_size_for(model: PreTrainedModel, rows: int) -> int:
    """Choose a chunk for so many texts side by side, in tokens, for a model that a `KVStreamCache` was made for."""
    model = unwrapped(model)
    device = device_of(model)
    if device.type != "cuda" or not serves(device, model.dtype):
        return CHUNK_SIZE
    return fitting_chunk(_tokens_at_once(model, device), rows)


def fitting_chunk(tokens: float, rows: int) -> int:
    """Double the usual chunk while so many texts' stay below so many tokens in all."""
    size = CHUNK_SIZE
    while size < MOST_TOKENS and 2 * size * rows <= tokens:
        size *= 2
    return size


def _tokens_at_once(model: PreTrainedModel, device: torch.device) -> float:
    """How many tokens a chunk may have in all, by what one takes beside the weights, logits aside."""
    measured: dict[tuple[torch.device, torch.dtype], float] = vars(model).setdefault(MEASURED, {})
    if (device, model.dtype) not in measured:
        for _ in range(2):  # in the first round libraries take what they keep, which is no token's
            cache = KVStreamCache.unchecked(model, Full(), Rope(model))
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            cache.hidden_states(model, torch.zeros(1, CHUNK_SIZE, dtype=torch.int64, device=device))
            found = (torch.cuda.max_memory_allocated(device) - before) / CHUNK_SIZE
            del cache
        tokens = measured[device, model.dtype] = SHARE * _free_bytes(device) / found
        about = f"{torch.cuda.get_device_name(device)}: chunks of {fitting_chunk(tokens, 1):,} tokens"
        kind, dtype = type(model).__name__, str(model.dtype).removeprefix("torch.")
        note(f"{about}, {found / 1e3:,.0f} kB each, for {kind} in {dtype}")
    return measured[device, model.dtype]


def _free_bytes(device: torch.device) -> int:
    """What nobody holds of a device's memory: what the driver has, and what torch keeps without using it."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
