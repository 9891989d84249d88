"""Which work is tried again, and how often.

A worker that died costs what it was computing one of two attempts; what waited behind it loses none. An error that a
cell raised is final, but for cells that were computed together: it may be the matter of one alone, so they are tried
once more, each by itself. Where several texts ran out of memory they are halved instead (`memory_limits`): that is no
attempt, as it ends with texts that are alone, and of these those are tried once more that took over first tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvstream.sweep.pool import Failed, Lost
from kvstream.sweep.work import Work

MAX_ATTEMPTS = 2


def to_try_again(work: Work, event: Failed | Lost) -> Sequence[Work]:
    """What becomes of work that ended so; empty if it has failed for good."""
    may = work.joint or isinstance(event, Lost)
    return work.once_more() if may and work.attempt < MAX_ATTEMPTS else ()
