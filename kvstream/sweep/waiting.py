"""The work that no worker has yet, and in which order a worker looks through it. Knows workers by their names alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from kvstream.sweep.work import Work


class Waiting:
    """A queue for each text, and one before them all."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._first: deque[Work] = deque()
        self._texts: dict[tuple[str, ...], deque[Work]] = {}
        self._text_of: dict[str, tuple[str, ...]] = {}  # by worker
        self.put_by_text(works)

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._texts.values()))

    def put_first(self, works: Iterable[Work]) -> None:
        """Put work before all texts."""
        self._first.extend(works)

    def put_by_text(self, works: Sequence[Work]) -> None:
        """Put work behind what waits on its text, and that before other texts."""
        new: dict[tuple[str, ...], deque[Work]] = {work.text: deque() for work in works}
        self._texts = new | self._texts
        for work in works:
            self._texts[work.text].append(work)

    def by_preference(self, worker: str) -> Iterator[deque[Work]]:
        """What comes first, then the worker's own text, those that no other has, and those with most to do."""
        yield self._first
        own = self._text_of.get(worker)
        if own in self._texts:
            yield self._texts[own]
        taken = set(self._text_of.values())
        free = [text for text in self._texts if text not in taken]
        others = sorted(taken & self._texts.keys() - {own}, key=lambda text: -len(self._texts[text]))
        yield from (self._texts[text] for text in (*free, *others))

    def take(self, work: Work, queue: deque[Work]) -> None:
        """Take work out of the queue that it waits in."""
        queue.remove(work)
        if not queue and queue is not self._first:
            del self._texts[work.text]

    def take_all(self) -> list[Work]:
        """Take all there is."""
        left = [work for queue in (self._first, *self._texts.values()) for work in queue]
        self._first.clear()
        self._texts.clear()
        return left

    def stays(self, worker: str, text: tuple[str, ...]) -> None:
        """Note which text a worker stays with from now on."""
        self._text_of[worker] = text

    def leaves(self, worker: str) -> None:
        """Note that a worker is no more."""
        self._text_of.pop(worker, None)
