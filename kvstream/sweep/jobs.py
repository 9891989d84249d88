"""How quality cells share work: texts side by side, and first tokens that a full cache replays once for all policies.

A job is what a worker computes in one go: cells of one policy on texts of equal length. Long texts are cut into parts,
and a job then goes on from where the part before it ended. Which worker computes what, `scheduler` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstream.engine.chunks import CHUNK_SIZE, PART_TOKENS
from kvstream.grid.cells import QualityCell
from kvstream.grid.memory_needed import own_weights_bytes, text_bytes
from kvstream.policies import Policy
from kvstream.policies.draws import derived_seed
from kvstream.policies.sizes import tokens_from_full
from kvstream.sweep.work import Work

if TYPE_CHECKING:
    from kvstream.measure.scores import Begun, State


@dataclass(frozen=True, kw_only=True, eq=False)
class Job(Work):
    """Cells that are evaluated side by side.

    begun: what the part before left. common: first tokens that are worth replaying once for all jobs on these texts.
    """

    cells: tuple[QualityCell, ...]
    begun: Begun | None = None
    common: int = 0

    @property
    def text(self) -> tuple[str, ...]:
        """The names of its documents."""
        return tuple(cell.document.name for cell in self.cells)

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
    def shared(self) -> int:
        """How many of the common first tokens it takes over."""
        return 0 if self.start else min(self.common, shareable(self))

    @property
    def joint(self) -> bool:
        """It is, where texts or first tokens were computed for several."""
        return len(self.cells) > 1 or self.shared > 0

    @cached_property
    def memory_bytes(self) -> float:
        """What its texts need."""
        return own_weights_bytes(self.cells[0]) + sum(map(text_bytes, self.cells))

    @property
    def call(self) -> tuple[str, dict[str, Any]]:
        """Evaluate this part."""
        given = {"begun": self.begun, "common": self.common, "shared": self.shared}
        first = self.cells[0]
        more = {"compared": first.metrics == "kl", "attended": first.attention_loss}
        return "quality", given | {"stretch": self.stretch} | more

    @property
    def stretch(self) -> dict[str, Any]:
        """What `measure.quality.evaluate` needs to know of the next part, and not the texts beyond it."""
        first = self.cells[0]
        return {
            "token_ids_BN": np.stack([cell.document.token_ids[self.start : self.stop + 1] for cell in self.cells]),
            "policy": seeded(first.policy, first.document.name),
            "cells": [cell.key for cell in self.cells],
            "documents": list(self.text),
            "start": self.start,
            "goes_on": not self.ends,
        }

    def followed(self, state: State) -> Job:
        """The job of the next part, which goes on from the state in which this one left the cache."""
        from kvstream.measure.scores import Begun

        return self.resumed(Begun(self.stop, state))

    def resumed(self, begun: Begun) -> Job:
        """The job of the part that goes on from there."""
        return replace(self, start=begun.tokens, begun=begun, common=0, attempt=1)

    def halves(self) -> list[Job]:
        """Two jobs of half as many texts each, as one of all lacks memory; policies go on sharing first tokens."""
        middle = (len(self.cells) + 1) // 2
        return [replace(self, cells=cells) for cells in (self.cells[:middle], self.cells[middle:])]

    def once_more(self) -> list[Job]:
        """Try again, text by text and without what was shared: one of these alone may be what failed."""
        return [replace(self, cells=(cell,), common=0, attempt=self.attempt + 1) for cell in self.cells]


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
            jobs.append(Job(cells=taken))
    place = {cell.document.name: place for place, cell in reversed(list(enumerate(cells)))}
    return list(sharing(sorted(jobs, key=lambda job: (place[job.text[0]], -len(job.text)))))


def sharing(jobs: Iterable[Job]) -> Iterator[Job]:
    """Tell jobs on the same texts how many first tokens are worth replaying once: as long as two can use a token."""
    by_text: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        by_text.setdefault(job.text, []).append(job)
    for group in by_text.values():
        usable = sorted(map(shareable, group))
        yield from (replace(job, common=usable[-2] if len(usable) > 1 else 0) for job in group)


def shareable(job: Job) -> int:
    """Count the first tokens of a job's texts that a full cache may replay for it.

    These are whole chunks in which no layer's token loses its protection. On CPUs no rounding changes by that.
    """
    cell, most = job.cells[0], job.stop - 1
    alike = tokens_from_full(cell.policy, cell.model.num_layers)
    most = most if alike is None else min(most, alike)
    return 0 if job.start else most // CHUNK_SIZE * CHUNK_SIZE


def seeded(policy: Policy, document: str) -> Policy:
    """Return the policy as it treats this document: one that draws at random draws independently per document."""
    if policy.in_layers(1).draws(0, 1, range(1)) is None:
        return policy
    return replace(policy, seed=derived_seed(policy.seed, document))  # type: ignore[call-arg, attr-defined]
