"""Puts into words what a grid asks, where no sweep's docstring does."""

from __future__ import annotations

from collections.abc import Sequence

from kvstream.grid.axes import Grid


def question_of(grid: Grid) -> str:
    """A grid's question, as records carry it and reports show it."""
    policies = f"do {len(grid.policies)} policies" if len(grid.policies) > 1 else f"does {grid.policies[0]}"
    words = [f"What {policies} cost and gain on {_and(grid.models)}?"]
    if grid.lengths:
        documents = f"{grid.documents} documents" if grid.documents > 1 else "1 document"
        words.append(f"Perplexity over the first {_and(grid.lengths)} tokens of {documents} of {grid.text}.")
    if grid.contexts:
        batches = "" if grid.batches == (1,) else f", {_and(grid.batches)} texts at once"
        words.append(f"Latency after {_and(grid.contexts)} tokens{batches}.")
    return " ".join(words)


def _and(items: Sequence[str] | Sequence[int]) -> str:
    """List names or numbers as a sentence does."""
    *first, last = (item if isinstance(item, str) else f"{item:,}" for item in items)
    return f"{', '.join(first)} and {last}" if first else last
