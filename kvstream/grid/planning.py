"""From a grid to its cells: resolves models, reads texts, checks what can be checked. Knows no Ray, loads no model."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kvstream.engine.chunks import CHUNK_SIZE, PART_TOKENS
from kvstream.grid.cells import DTYPE_BYTES, Cell, Grid, LatencyCell, QualityCell, visible
from kvstream.inputs import text_sources as texts
from kvstream.inputs.documents import Document, load_documents
from kvstream.inputs.models import ModelInfo, as_built, load_tokenizer, resolve
from kvstream.policies import Full, Policy
from kvstream.records.store import Records

log = logging.getLogger(__name__)
SCORING_BYTES = {True: 16 << 20, False: 1 << 30}  # logits that exist at once and what is computed of them: CPUs, GPUs


@dataclass(frozen=True)
class Source:
    """A model of the grid, with its documents tokenized (none where only latency is asked)."""

    info: ModelInfo
    documents: list[Document]


def prepare(grid: Grid) -> list[Source]:
    """Find the grid's models and texts. ValueError, with field, value and remedy, for what is missing or unfit.

    What needs neither torch nor a tokenizer is checked first, as importing these takes seconds.
    """
    infos = [resolve(model) for model in grid.models]
    for first, second in itertools.combinations(infos, 2):
        if first.identity == second.identity:
            raise ValueError(f"models: {first.spec!r} and {second.spec!r} are the same model; name it once")
    for info in infos:
        if grid.lengths and not info.has_quality:
            raise ValueError(
                f"models: {info.spec!r} has random weights, so its perplexity means nothing; "
                "give a trained model, or measure latency alone (sweeps/latency.py)"
            )
        _require_layers(grid, info)
    if grid.lengths:
        found = itertools.islice(texts.read(grid.text, join_rows=grid.join_rows), grid.documents)
        if (there := sum(1 for _ in found)) < grid.documents:
            raise ValueError(
                f"documents: {grid.documents} asked, only {there} in {grid.text!r}; ask for fewer documents"
            )
    infos = [as_built(info) for info in infos]
    for info in infos:
        _require_layers(grid, info)
    sources = [Source(info, _documents(grid, info)) for info in infos]
    for note in notes(grid):
        log.warning(note)
    return sources


def notes(grid: Grid) -> list[str]:
    """What a grid asks that says nothing about eviction: policies whose budgets hold a whole text or prompt."""
    found = []
    longest = grid.lengths[-1] if grid.lengths else 0
    if clones := _that_hold(longest - 1, grid.policies):  # nothing is asked of what the last token leaves
        found.append(
            f"note: {clones} will equal full, whose {longest:,} tokens they hold; "
            "give longer --lengths or smaller --budgets to tell them apart"
        )
    timed = grid.latency_policies or grid.policies
    parts = [
        f"at {context:,} tokens of context {held}" for context in grid.contexts if (held := _that_hold(context, timed))
    ]
    if parts:
        found.append(
            f"note: {'; '.join(parts)} hold as much as full, so their times should be alike; give longer --contexts or "
            "smaller --budgets to tell them apart"
        )
    return found


def _that_hold(tokens: int, policies: Sequence[Policy]) -> str:
    """The labels of policies that evict nothing of so many tokens, the first few of many; empty if none do."""
    labels = [str(policy) for policy in policies if policy.regions and 0 < tokens <= policy.regions.budget]
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _require_layers(grid: Grid, info: ModelInfo) -> None:
    """ValueError if a policy skips a layer that the model lacks, as far as its number of layers is known."""
    policies = (*grid.policies, *(grid.latency_policies or ()))
    deepest = max((layer for policy in policies for layer in getattr(policy, "skip_layers", ())), default=0)
    if 0 < info.num_layers <= deepest:
        raise ValueError(
            f"skip_layers: {deepest} is not a layer of {info.spec!r}; give numbers from 0 to {info.num_layers - 1}"
        )


def _documents(grid: Grid, info: ModelInfo) -> list[Document]:
    if not grid.lengths:
        return []
    tokenizer = load_tokenizer(info)
    documents = load_documents(
        grid.text,
        documents=grid.documents,
        tokens=grid.lengths[-1],
        tokenizer=tokenizer,
        bos=grid.bos,
        join_rows=grid.join_rows,
    )
    for document in documents:
        if (highest := int(document.token_ids.max())) >= info.vocab_size:
            raise ValueError(
                f"models: the tokenizer of {info.spec!r} gives token {highest} in {document.name!r}, the model knows "
                f"{info.vocab_size:,}; give a directory whose tokenizer and weights belong together"
            )
    return documents


def quality_cells(grid: Grid, sources: list[Source], device: str, dtype: str) -> list[QualityCell]:
    """Model × document × policy, sorted by model."""
    return [
        QualityCell(source.info, device, dtype, policy, grid.text, document, grid.lengths)
        for source in sources
        for document in source.documents
        for policy in grid.policies
    ]


def latency_cells(grid: Grid, sources: list[Source], device: str, dtype: str, threads: int | None) -> list[LatencyCell]:
    """Model × context × batch, sorted by model; each compares its policies with full, whether that is named or not."""
    policies = tuple(dict.fromkeys((Full(), *(grid.latency_policies or grid.policies))))
    return [
        LatencyCell(source.info, device, dtype, policies, context, batch, grid.repeats, threads)
        for source in sources
        for context in grid.contexts
        for batch in grid.batches
    ]


def needed_bytes(cell: Cell) -> float:
    """Estimate the memory that a cell needs: weights, caches, and what is computed with at once."""
    model, size = cell.model, DTYPE_BYTES[cell.dtype]
    weights = model.flops_per_token / 2 * size
    if isinstance(cell, LatencyCell):
        # DynamicCache's prefill takes the prompt at once: a few activations of four times the hidden size per token.
        return 2 * weights + cell.kv_bytes_held + 16 * cell.batch * cell.context * model.hidden_size * size
    assert isinstance(cell, QualityCell)
    return weights + text_bytes(cell)


def text_bytes(cell: QualityCell) -> float:
    """Estimate what each text of a quality cell needs beside the weights."""
    model, size = cell.model, DTYPE_BYTES[cell.dtype]
    cache, on_cpu = cell.kv_bytes(cell.policy, cell.tokens), cell.device == "cpu"
    working = 32 * CHUNK_SIZE * model.hidden_size * size + SCORING_BYTES[on_cpu]
    if not on_cpu:  # where no fused attention is used, the scores of a block of queries exist
        kept = max(cell.policy.kept(layer, cell.tokens) for layer in range(model.num_layers))
        working += 3 * model.hidden_size // model.head_dim * 128 * (kept + CHUNK_SIZE) * size
    elif cell.tokens - 1 > PART_TOKENS:
        cache *= 6  # also on its way from part to part: in the worker, in Ray's store, in the driver that writes it
    return cache + working


def side_by_side(cells: Sequence[Cell], memory: float) -> int:
    """How many texts of one model to take along at once: as many as half of a GPU's memory holds beside the weights."""
    short = [cell for cell in cells if isinstance(cell, QualityCell) and cell.tokens - 1 <= PART_TOKENS]
    sizes = [(needed_bytes(cell), text_bytes(cell)) for cell in short]
    return int(min((max(1, (memory / 2 - (all_ - text)) // text) for all_, text in sizes), default=1))


def too_large(cell: Cell, available_bytes: float) -> str | None:
    """Why a cell does not fit, or None if it does."""
    needed = needed_bytes(cell)
    if needed <= available_bytes:
        return None
    sizes = f"about {_size(needed)}", f"{_size(available_bytes)} are available"
    if isinstance(cell, LatencyCell):
        return (
            f"contexts: {cell.context} × batch {cell.batch} of {cell.model.spec!r} needs {sizes[0]} with all policies "
            f"side by side, {sizes[1]}; give shorter contexts, smaller batches or fewer policies"
        )
    assert isinstance(cell, QualityCell)
    return (
        f"lengths: {cell.tokens} tokens of {cell.model.spec!r} under {cell.policy} need {sizes[0]}, {sizes[1]}; "
        "give shorter lengths, or a policy that bounds the cache"
    )


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.0f} MB"


def describe(grid: Grid, question: str, cells: list[Cell], records: Records) -> None:
    """Print the cells and what they would cost."""
    finished = records.finished([cell.key for cell in cells])
    print(visible(question))
    for cell in cells:
        print(f"  {cell.key}  {cell}  {cell.tokens:,} tokens{'  finished' if cell.key in finished else ''}")
    missing = [cell for cell in cells if cell.key not in finished]
    tokens = sum(cell.tokens for cell in missing)
    tflop = sum(cell.tokens * cell.model.flops_per_token for cell in missing) / 1e12
    print(f"{grid.name}: {len(cells)} cells, {len(finished)} finished, {len(missing)} to do")
    print(
        f"cost: {tokens:,} tokens, {tflop:,.1f} TFLOP beside attention; "
        f"at 50 GFLOP/s per CPU core, {tflop / 0.05 / 60:,.0f} core-minutes"
    )
