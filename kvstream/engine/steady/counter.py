"""Which token comes next, on the device, and what a step computes from that once for all layers.

Shape legend: B batch, H kv-heads, S slots or positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from kvstream.engine.rope import Rope, Rotation
from kvstream.engine.slot_layout import SlotLayout

Found = TypeVar("Found")


class Counter:
    """The index of the token that comes next to the layers that have seen as many as each other: token_1, int64.

    `begin` starts a step, `end` goes on to the next token. Between them each thing asked for is computed once.
    """

    def __init__(self, seen: int, rope: Rope, device: torch.device) -> None:
        self.token_1 = torch.tensor([seen], device=device)
        self.rope = rope
        self.begin()

    def begin(self) -> None:
        """Know nothing of this step yet."""
        self._known: dict[tuple[Any, ...], Any] = {}

    def end(self) -> None:
        """Go on to the next token."""
        self.token_1.add_(1)

    def count_from(self, seen: int) -> None:
        """Go to another token."""
        self.token_1.fill_(seen)

    def _once(self, key: tuple[Any, ...], found: Callable[[], Found]) -> Found:
        if key not in self._known:
            self._known[key] = found()
        return self._known[key]

    def rotation(self, like: torch.Tensor, cap: int | None = None) -> Rotation:
        """Rotate to the token's position, which is no higher than `cap`."""
        return self._once(
            ("to", cap), lambda: self.rope.at(self.token_1 if cap is None else self.token_1.clamp(max=cap), like)
        )

    def rotation_back(self, behind: int, like: torch.Tensor) -> Rotation:
        """Undo the rotation of the token that came so many before."""
        return self._once(("back", behind), lambda: self.rope.at(behind - self.token_1, like))

    def shifted(self, start: int, stop: int, budget: int, like: torch.Tensor) -> Rotation:
        """Rotate to start … stop − 1, and on by as much as older keys are nearer to the token than by index."""
        return self._once(
            ("by", start, stop, budget), lambda: self.rope.at(self._from_token(start, stop) - budget, like)
        )

    def slot(self, layout: SlotLayout, behind: int = 0) -> torch.Tensor:
        """The slot in the ring of the token, or of the one so many before it: int64, (1,)."""
        first, slots = layout.sinks, layout.recent + 1
        return self._once(("slot", layout, behind), lambda: first + (self.token_1 - behind - first) % slots)

    def held(self, full: int, left: int) -> torch.Tensor:
        """How many tokens a `ScannedLayer` holds as the token comes, which is its rank in age: int64, (1,)."""
        grown = self.token_1
        return self._once(
            ("held", full, left), lambda: torch.where(grown < full, grown, left + (grown - full) % (full - left))
        )

    def _from_token(self, start: int, stop: int) -> torch.Tensor:
        return torch.arange(start, stop, device=self.token_1.device) + self.token_1

    def free(self, slots: int, like: torch.Tensor) -> torch.Tensor:
        """Bias, to be added to scores: −inf for those of so many slots that no token has yet, else 0; (1, S).

        A token's slot is its index. In the dtype of `like`: of a mask of bools each layer would make this anew.
        """
        return self._once(("free", slots), lambda: self._free(slots, like))

    def _free(self, slots: int, like: torch.Tensor) -> torch.Tensor:
        later_S = torch.arange(slots, device=self.token_1.device) > self.token_1
        return like.new_zeros(1, slots).masked_fill(later_S, -torch.inf)
