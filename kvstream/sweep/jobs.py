"""How quality cells share work: texts side by side, and first tokens that a full cache replays once for all policies.

A job is what one task computes: cells of one policy on texts of equal length. Long texts are cut into parts, and a job
then goes on from where the part before it ended. Knows no Ray: what a job begins with may be a reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np

from kvstream.engine.chunks import CHUNK_SIZE, PART_TOKENS
from kvstream.grid.cells import QualityCell
from kvstream.policies import BoundedPolicy, Policy
from kvstream.policies.draws import derived_seed


@dataclass(frozen=True)
class Job:
    """Cells that are evaluated side by side, from `start` on.

    begun: what they go on from, a `quality.Begun` or a reference to one; where `shared` is given, the first so many
    tokens of what other jobs begin with, too.
    """

    cells: tuple[QualityCell, ...]
    start: int = 0
    begun: Any = None
    shared: int = 0
    attempt: int = 1

    @property
    def length(self) -> int:
        """Tokens of each text."""
        return self.cells[0].tokens

    @property
    def stop(self) -> int:
        """Where this part ends: the number of tokens whose successors are scored."""
        return min((self.start // PART_TOKENS + 1) * PART_TOKENS, self.length - 1)

    @property
    def ends(self) -> bool:
        """Whether this is the texts' last part."""
        return self.stop == self.length - 1

    @property
    def stretch(self) -> dict[str, Any]:
        """What `quality.evaluate` needs to know of the next part, and not the texts beyond it."""
        first = self.cells[0]
        return {
            "token_ids_BN": np.stack([cell.document.token_ids[self.start : self.stop + 1] for cell in self.cells]),
            "policy": seeded(first.policy, first.document.name),
            "cells": [cell.key for cell in self.cells],
            "documents": [cell.document.name for cell in self.cells],
            "device": first.device,
            "start": self.start,
            "goes_on": not self.ends,
        }

    def once_more(self) -> list[Job]:
        """Try again, text by text and without what was shared: one of these alone may be what failed."""
        if len(self.cells) > 1:
            return [Job((cell,), attempt=self.attempt + 1) for cell in self.cells]
        own = self.begun if not self.shared else None
        return [replace(self, begun=own, shared=0, attempt=self.attempt + 1)]


def jobs_of(cells: Sequence[QualityCell], side_by_side: int) -> list[Job]:
    """Put up to so many texts side by side under one policy, text by text in the order of the cells.

    Texts of more than one part stay alone, and so do those for which a policy draws at random.
    """
    jobs: list[Job] = []
    by_policy: dict[Any, list[QualityCell]] = {}
    for cell in cells:
        alone = cell.tokens > PART_TOKENS or seeded(cell.policy, cell.document.name) != cell.policy
        by_policy.setdefault((cell.policy, cell.tokens, cell.document.name if alone else None), []).append(cell)
    for group in by_policy.values():
        queue = iter(group)
        while taken := tuple(islice(queue, side_by_side)):
            jobs.append(Job(taken))
    place = {cell.document.name: place for place, cell in reversed(list(enumerate(cells)))}
    return sorted(jobs, key=lambda job: [place[cell.document.name] for cell in job.cells])


def by_texts(jobs: Sequence[Job]) -> Iterator[tuple[list[Job], int]]:
    """Group jobs on the same texts, each with the number of first tokens worth replaying once for all: 0 if none are.

    A token is worth it as long as two jobs can use it.
    """
    for _, group in groupby(jobs, key=lambda job: [cell.document.name for cell in job.cells]):
        found = list(group)
        usable = sorted(shareable(job) for job in found)
        yield found, usable[-2] if len(usable) > 1 else 0


def shareable(job: Job) -> int:
    """Count the first tokens of a job's texts that a full cache may replay for it.

    These are whole chunks, so that no rounding changes, in which no token loses its protection.
    """
    most, policy = job.stop - 1, job.cells[0].policy
    if isinstance(policy, BoundedPolicy) and policy.regions:
        most = min(most, policy.regions.sinks + policy.regions.recent)
    return 0 if job.start else most // CHUNK_SIZE * CHUNK_SIZE


def seeded(policy: Policy, document: str) -> Policy:
    """Return the policy as it treats this document: one that draws at random draws independently per document."""
    if policy.draws(0, 1, range(1)) is None:
        return policy
    return replace(policy, seed=derived_seed(policy.seed, document))  # type: ignore[call-arg, attr-defined]
