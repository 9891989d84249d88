"""How much memory a cell needs, estimated before anything is loaded: is it refused, how many texts go side by side?

Knows neither machines nor devices' real sizes: what is available is said.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvstream.engine.chunks import CHUNK_SIZE, PART_TOKENS
from kvstream.grid.cells import DTYPE_BYTES, Cell, LatencyCell, QualityCell, RecomputeCell, TextCell
from kvstream.grid.terminal import counted
from kvstream.policies import Full
from kvstream.policies.sizes import kept_by_layer

SCORING_BYTES = {True: 16 << 20, False: 1 << 30}  # logits that exist at once and what is computed of them: CPUs, GPUs


def needed_bytes(cell: Cell) -> float:
    """Estimate the memory that a cell needs: weights, caches, and what is computed with at once."""
    model, size, weights = cell.model, DTYPE_BYTES[cell.dtype], weights_bytes(cell)
    if isinstance(cell, LatencyCell):
        # DynamicCache's prefill takes the prompt at once: a few activations of four times the hidden size per token.
        return 2 * weights + cell.kv_bytes_held + 16 * cell.batch * cell.context * model.hidden_size * size
    assert isinstance(cell, TextCell)
    return weights + text_bytes(cell)


def weights_bytes(cell: Cell) -> float:
    """The bytes of a model's weights in the cell's dtype."""
    return float(cell.model.num_weights * DTYPE_BYTES[cell.dtype])


def own_weights_bytes(cell: Cell) -> float:
    """The bytes of weights that each worker holds itself: on GPUs all; the CPU workers of a machine share theirs."""
    return 0.0 if cell.device == "cpu" else weights_bytes(cell)


def text_bytes(cell: TextCell) -> float:
    """Estimate what each text of a quality cell needs beside the weights."""
    model, size = cell.model, DTYPE_BYTES[cell.dtype]
    if isinstance(cell, RecomputeCell):  # as many windows at once as make a chunk, each with a cache of its own
        at_once = max(CHUNK_SIZE, cell.window)
        return (
            cell.kv_bytes(Full(), at_once)
            + 32 * at_once * model.hidden_size * size
            + SCORING_BYTES[cell.device == "cpu"]
        )
    assert isinstance(cell, QualityCell)
    cache, on_cpu = cell.kv_bytes(cell.policy, cell.tokens), cell.device == "cpu"
    if cell.metrics == "kl":  # full runs first, and what it predicts is kept
        cache = max(cache, cell.kv_bytes(Full(), cell.tokens)) + cell.tokens * model.hidden_size * max(size, 4)
    if cell.attention_loss:  # both caches at once
        cache += cell.kv_bytes(Full(), cell.tokens)
    working = 32 * CHUNK_SIZE * model.hidden_size * size + SCORING_BYTES[on_cpu]
    if not on_cpu:  # where no fused attention is used, the scores of a block of queries exist
        kept = max(kept_by_layer(cell.policy, model.num_layers, cell.tokens))
        working += 3 * model.hidden_size // model.head_dim * 128 * (kept + CHUNK_SIZE) * size
    elif cell.tokens - 1 > PART_TOKENS:
        cache *= 6  # also on its way from part to part: in the worker, in Ray's store, in the driver that writes it
    return cache + working


def side_by_side(cells: Sequence[Cell], memory: float) -> int:
    """How many texts of one model to take along at once: as many as half of a GPU's memory holds beside the weights."""
    short = [cell for cell in cells if isinstance(cell, QualityCell) and cell.tokens - 1 <= PART_TOKENS]
    fit = (max(1, (memory / 2 - weights_bytes(cell)) // text_bytes(cell)) for cell in short)
    return int(min(fit, default=1))


def too_large(cell: Cell, available_bytes: float) -> str | None:
    """Why a cell does not fit, or None if it does."""
    needed = needed_bytes(cell)
    if needed <= available_bytes:
        return None
    sizes = f"about {size_in_words(needed)}", f"{size_in_words(available_bytes)} are available"
    if isinstance(cell, LatencyCell):
        return (
            f"contexts: {cell.context} × batch {cell.batch} of {cell.model.spec!r} needs {sizes[0]} with all policies "
            f"side by side, {sizes[1]}; give shorter contexts, smaller batches or fewer policies"
        )
    assert isinstance(cell, TextCell)
    if isinstance(cell, RecomputeCell):
        return (
            f"recompute: windows of {counted(cell.window, 'token')} of {cell.model.spec!r} need {sizes[0]}, "
            f"{sizes[1]}; give smaller ones"
        )
    beside = isinstance(cell, QualityCell) and cell.policy != Full() and cell.metrics == "kl"
    remedy = "--metrics nll, which runs no full cache beside, " if beside else ""
    return (
        f"lengths: {cell.rows + 1} tokens of {cell.model.spec!r} under {cell.label} need {sizes[0]}, {sizes[1]}; "
        f"give shorter lengths, {remedy}or a policy that bounds the cache"
    )


def largest(cells: Sequence[Cell]) -> str:
    """What the largest quality cell and the largest latency cell need, in words."""
    latency = [needed_bytes(cell) for cell in cells if isinstance(cell, LatencyCell)]
    quality = [needed_bytes(cell) for cell in cells if isinstance(cell, TextCell)]
    kinds = ("quality", quality), ("latency", latency)
    return ", ".join(f"about {size_in_words(max(needs))} for the largest {kind} cell" for kind, needs in kinds if needs)


def size_in_words(count: float) -> str:
    """Bytes in GB or MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.0f} MB"
