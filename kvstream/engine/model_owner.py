"""Which model a cache serves: calls of another, or of what has become of it since, are refused."""

from __future__ import annotations

import weakref
from typing import Any

SAMPLED = 64  # numbers of a weight


class Owner:
    """The model that a cache serves. Copies of a cache share it; a pickled one serves the first equal model it meets.

    Held weakly: a cache keeps no model alive.
    """

    def __init__(self, base: Any) -> None:
        self._bind(base)

    def _bind(self, base: Any) -> None:
        self.base, self.looks = weakref.ref(base), _looks(base)
        self.frequencies = base.rotary_emb.inv_freq  # another tensor once a model is converted or moved
        self.dtype, self.devices = base.dtype, set(getattr(base, "hf_device_map", {}).values())

    def require(self, base: Any) -> None:
        """Raise ValueError if a call comes from another model than this, or from what has become of it since."""
        known: Any = self.base()
        if known is None and _looks(base) == self.looks:
            self._bind(base)
        elif known is not base:
            raise ValueError(
                f"past_key_values: this cache was made for another model than the {type(base).__name__} that is called "
                "with it; make one for each model"
            )
        elif base.rotary_emb.inv_freq is not self.frequencies:
            raise ValueError(
                "past_key_values: the model was converted or moved to another device after this cache was made; make a "
                "new one"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        """Share it: a copy of a cache serves the same model, unless that was copied along with it."""
        copied = memo.get(id(self.base()))
        return self if copied is None else Owner(copied)

    def __getstate__(self) -> dict[str, Any]:
        """Take along what the model looks like, and not the model."""
        return {"looks": self.looks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Belong to no model yet."""
        self.looks, self.base = state["looks"], lambda: None  # type: ignore[assignment]


def _looks(base: Any) -> tuple[object, ...]:
    """What tells a model from another: its class, its size, and numbers of its first and last weights."""
    weights = list(base.parameters())
    samples = [[] if weight.is_meta else weight.flatten()[:SAMPLED].tolist() for weight in (weights[0], weights[-1])]
    return type(base).__name__, sum(weight.numel() for weight in weights), str(samples)
