"""Which jobs take too many texts side by side: others that needed hardly more ran out of memory on such a worker.

`grid.memory_needed` estimates with how many texts a sweep begins; this corrects it. Knows neither Ray nor torch: where
a device has no memory left, a worker's error is a MemoryError.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstream.grid.terminal import visible
from kvstream.sweep.jobs import Job
from kvstream.sweep.pool import Failed, Lost, WorkerInfo
from kvstream.sweep.work import Work

ALIKE = 1.05  # between what equal cards of two machines have free
AS_MUCH = 0.75  # of an estimated need: what a run of full takes for all policies differs little by policy


class MemoryLimits:
    """What ran out of memory in one phase, and where.

    A worker that was killed as its machine ran out of memory tells nothing of that: texts side by side lie in a GPU's,
    and another process may have filled the machine's.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lacking: list[tuple[Job, WorkerInfo]] = []

    def met(self, job: Job, event: Failed | Lost) -> bool:
        """Whether a job of several texts ran out of memory; if so, take note, and tell what no job has told before."""
        if isinstance(event, Lost) or not isinstance(event.error, MemoryError) or len(job.cells) == 1:
            return False
        if not self.exceeded(job, event.worker):
            self._lacking.append((job, event.worker))
            first, half = job.cells[0], job.halves()[0]
            self._say(
                visible(
                    f"{first.model.spec} · {first.label}: out of memory with {len(job.cells)} texts side by side, "
                    f"goes on with {len(half.cells)} at a time; what needs about as much is halved from here on"
                )
            )
        return True

    def exceeded(self, work: Work, worker: WorkerInfo) -> bool:
        """Whether a job of no more texts, which needed hardly more, failed where there was as much memory."""
        return any(
            len(work.text) >= len(job.text)
            and work.memory_bytes >= AS_MUCH * job.memory_bytes
            and worker.memory_bytes <= ALIKE * where.memory_bytes
            for job, where in self._lacking
        )
