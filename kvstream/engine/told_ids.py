"""The token ids that a cache has been shown, by which it knows whether a prompt goes on from what it holds.

Shape legend: B batch, T tokens, N tokens there is room for.
"""

from __future__ import annotations

import torch


class Told:
    """The token ids that a cache has been shown, (B, T), as long as every call showed its own."""

    def __init__(self) -> None:
        self.count: int | None = 0  # None: some call showed none
        self.ids_BN: torch.Tensor | None = None

    def add(self, ids_BT: torch.Tensor | None, seen: int) -> None:
        """Remember a call's ids, which follow `seen` tokens; on their own device, so that nothing waits for it."""
        if ids_BT is None or self.count != seen:
            self.count = None
            return
        stop = seen + ids_BT.shape[1]
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written outside it
            if self.ids_BN is None:
                self.ids_BN = torch.empty((ids_BT.shape[0], 0), dtype=ids_BT.dtype, device=ids_BT.device)
            if stop > (held := self.ids_BN.shape[1]):
                more = (0, max(stop, 2 * held) - held)
                self.ids_BN = torch.nn.functional.pad(self.ids_BN, more)
            self.ids_BN[:, seen:stop] = ids_BT
        self.count = stop

    def take_back(self, count: int) -> None:
        """Forget all ids but the first so many."""
        self.count = None if self.count is None else min(self.count, count)

    def rows(self, picked: torch.Tensor) -> None:
        """Follow the cache's rows."""
        if self.ids_BN is not None:
            with torch.inference_mode(False):
                self.ids_BN = self.ids_BN.index_select(0, picked.to(self.ids_BN.device))

    @property
    def ids(self) -> torch.Tensor | None:
        """What was shown, (B, T), or None if it is not known."""
        return None if self.ids_BN is None or self.count is None else self.ids_BN[:, : self.count]

    def begins(self, prompt_BT: torch.Tensor) -> bool:
        """Whether a prompt goes on from what was shown; True where that is not known."""
        if not self.count or (held_BN := self.ids) is None:
            return True
        if prompt_BT.shape[0] != held_BN.shape[0]:  # more beams than texts: the rows are checked when they are used
            return True
        return prompt_BT.shape[1] > self.count and torch.equal(prompt_BT[:, : self.count].to(held_BN), held_BN)
