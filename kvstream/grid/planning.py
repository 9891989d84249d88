"""From a grid to its cells: resolves models, reads texts, checks what can be checked. Knows no Ray, loads no model."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.axes import Grid
from kvstream.grid.cells import LatencyCell, QualityCell, RecomputeCell
from kvstream.grid.terminal import counted
from kvstream.inputs import text_sources as texts
from kvstream.inputs.documents import Document, load_documents
from kvstream.inputs.model_loading import as_built, load_tokenizer
from kvstream.inputs.models import ModelInfo, resolve
from kvstream.policies import BoundedPolicy, Full
from kvstream.policies.sizes import evicts

log = logging.getLogger(__name__)


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
    if grid.lengths:
        next(texts.read(grid.text, join_rows=grid.join_rows))  # is it there?
    from kvstream.engine.rope import Rope  # which imports torch

    infos = [as_built(info, require_servable=Rope) for info in infos]
    for info in infos:
        _require_layers(grid, info)
    sources = [Source(info, _documents(grid, info)) for info in infos]
    for note in notes(grid, max(info.num_layers for info in infos)):
        log.warning(note)
    return sources


def notes(grid: Grid, layers: int) -> list[str]:
    """What of a grid will say nothing: costs without full, policies whose budgets hold a whole text or prompt.

    layers: of the deepest model.
    """
    runs = [
        (f"{counted(context, 'token')} of context", context, grid.latency_policies or grid.policies)
        for context in grid.contexts
    ]
    if grid.lengths:  # nothing is asked of what the last token leaves
        runs.insert(0, (f"a text's {grid.lengths[-1]:,} tokens", grid.lengths[-1] - 1, grid.policies))
    found = []
    for what, tokens, policies in runs:
        bounded = [policy for policy in policies if isinstance(policy, BoundedPolicy)]
        if labels := [str(policy) for policy in bounded if not evicts(policy, layers, tokens)]:
            named = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
            remedy = "give more tokens or smaller --budgets to tell them apart"
            found.append(f"note: {named} will equal full at {what}, which they hold; {remedy}")
    if grid.lengths and grid.attention_loss and grid.lengths[-1] - 1 > PART_TOKENS:
        found.append(f"note: no attention loss is measured, as texts are longer than {PART_TOKENS:,} tokens")
    if grid.lengths and Full() not in grid.policies:
        found.append(
            "note: full is not among the policies, so nothing will tell what these cost in quality; add it: "
            "--policies full,…"
        )
    elif grid.lengths and grid.metrics == "kl" and (why := no_divergence(grid)):
        found.append(f"note: no divergence from the full cache is measured, as {why}")
    return found


def no_divergence(grid: Grid) -> str | None:
    """Why tokens cannot be compared with the full cache's, None where they can."""
    if Full() not in grid.policies:
        return "full is not among the policies"
    if grid.lengths and grid.lengths[-1] - 1 > PART_TOKENS:  # such texts are replayed part by part
        return f"texts are longer than {PART_TOKENS:,} tokens"
    return None


def _require_layers(grid: Grid, info: ModelInfo) -> None:
    """ValueError if a policy skips a layer that the model lacks."""
    policies = (*grid.policies, *(grid.latency_policies or ()))
    deepest = max((layer for policy in policies for layer in getattr(policy, "skip_layers", ())), default=0)
    if info.num_layers <= deepest:
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
    metrics = "nll" if grid.metrics == "nll" or no_divergence(grid) else "kl"
    attention = grid.attention_loss and grid.lengths[-1] - 1 <= PART_TOKENS
    return [
        QualityCell(
            source.info,
            device,
            dtype,
            grid.text,
            document,
            grid.lengths,
            policy,
            metrics,
            attention and policy != Full(),
        )
        for source in sources
        for document in source.documents
        for policy in grid.policies
    ]


def recompute_cells(grid: Grid, sources: list[Source], device: str, dtype: str) -> list[RecomputeCell]:
    """Model × document × window, sorted by model."""
    return [
        RecomputeCell(source.info, device, dtype, grid.text, document, grid.lengths, window, grid.recompute_every)
        for source in sources
        for document in source.documents
        for window in grid.recompute
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
