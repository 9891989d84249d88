"""Which slot a token takes in a layer with a budget.

The slots follow the policy's regions: sinks, then a ring of the recent tokens and the current one, then the contested
older ones (and a spare seat, for candidates that leave at once). They fill in this order, so the filled slots are
always the first. Nothing moves to make room: the next token overwrites the slot of one that left. Knows no tensors.
"""

from kvstream.policies.base import Regions


class SlotLayout(Regions):
    """The regions of one layer, as slots."""

    @property
    def protected(self) -> int:
        """Tokens that nobody contests: the first so many of a text are held as a full cache holds them."""
        return self.sinks + self.recent

    @property
    def contested_at(self) -> int:
        """The first contested slot."""
        return self.sinks + self.recent + 1

    @property
    def seats(self) -> int:
        """Contested slots, the spare one included."""
        return self.contested + 1 if self.contested else 0

    def slot_of(self, token: int) -> int:
        """Slot of a sink or of a token in the ring."""
        return token if token < self.sinks else self.sinks + (token - self.sinks) % (self.recent + 1)

    def filled(self, seen: int) -> int:
        """Slots before the contested ones that are in use after so many tokens."""
        return min(seen, self.contested_at)

    def members(self, seen: int) -> int:
        """Contested tokens held after so many tokens: all that lost protection, while there is room."""
        return min(max(seen - self.protected, 0), self.contested)
