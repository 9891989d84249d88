"""Rotary position embeddings, applied where and when the cache wants them.

The models of transformers rotate queries and keys before the cache sees them, at positions and in a precision the
cache cannot choose. kvstream runs a model at position 0, where that rotation is the identity, and rotates here, with
angles in float64, so that positions of a million are as exact as those of ten. Knows neither caches nor policies.

Paper: https://arxiv.org/abs/2104.09864. Shape legend: B batch, H heads, S tokens, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

STATIC_TYPES = ("default", "linear", "llama3", "yarn", "proportional")


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of some positions, ready to be multiplied: shape (…, S, rotated size)."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __call__(self, x_BHSD: torch.Tensor) -> torch.Tensor:
        """Rotate the first part of each head, pass the rest (Pythia rotates a quarter, Llama all)."""
        x, swapped = self.parts(x_BHSD)
        rotated = self.of_parts(x, swapped)
        size = x.shape[-1]
        return rotated if size == x_BHSD.shape[-1] else torch.cat((rotated, x_BHSD[..., size:]), dim=-1)

    def parts(self, x_BHSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what of each head is rotated, and the same with its halves swapped."""
        size = self.cos.shape[-1]
        x = x_BHSD[..., :size]
        return x, torch.cat((x[..., size // 2 :], x[..., : size // 2]), dim=-1)

    def of_parts(self, x: torch.Tensor, swapped: torch.Tensor) -> torch.Tensor:
        """Rotate what `parts` returned: worth it for vectors that are rotated again and again."""
        return torch.addcmul(x * self.cos, swapped, self.sin)

    @classmethod
    def concatenate(cls, rotations: Sequence[Rotation]) -> Rotation:
        """Line up the positions of several rotations."""
        if len(rotations) == 1:
            return rotations[0]
        return cls(torch.cat([each.cos for each in rotations]), torch.cat([each.sin for each in rotations]))

    def pick(self, places: torch.Tensor) -> Rotation:
        """Take positions by their place in this table, shape of `places`."""
        return Rotation(self.cos[places], self.sin[places])

    def window(self, start: int, stop: int) -> Rotation:
        """Take consecutive positions by their place in this table."""
        return Rotation(self.cos[start:stop], self.sin[start:stop])


class Rope:
    """The rotary embedding of one model."""

    def __init__(self, model: nn.Module) -> None:
        """Read the model's inverse frequencies and verify that its rotation is the one this module applies.

        Raises ValueError for models without rotary embeddings, with frequencies that change with the length, or
        with another pairing of dimensions than rotate-half.
        """
        embedding = getattr(model.base_model, "rotary_emb", None)
        if embedding is None or not hasattr(embedding, "inv_freq"):
            has = "has no rotary embedding" if embedding is None else "rotates some layers in another way than others"
            raise ValueError(
                f"model={type(model).__name__} {has}; kvstream needs a model with one rotary embedding for all layers "
                "such as GPT-NeoX (Pythia), Llama, Mistral or Qwen2"
            )
        if sections := (getattr(embedding.config, "rope_parameters", None) or {}).get("mrope_section"):
            raise ValueError(
                f"model={type(model).__name__} places tokens on several axes (mrope_section={sections}), and kvstream "
                "on one; choose a model of text alone"
            )
        if getattr(embedding, "rope_type", "default") not in STATIC_TYPES:
            raise ValueError(
                f"model={type(model).__name__} has rope_type={embedding.rope_type!r}, whose frequencies depend on the "
                f"length; choose a model whose rope_type is one of {', '.join(STATIC_TYPES)}"
            )
        with torch.inference_mode(False):  # a compiled step takes no tensor made in inference mode, nor do its copies
            self.frequencies = embedding.inv_freq.detach().to("cpu", torch.float64, copy=True)
        self._copies: dict[torch.device, torch.Tensor] = {}  # on other devices
        self._check_convention(model)

    @property
    def size(self) -> int:
        """How many dimensions of a head are rotated, the first ones."""
        return 2 * len(self.frequencies)

    def at(self, positions_S: torch.Tensor, like: torch.Tensor) -> Rotation:
        """Build the rotation to integer positions, in the dtype and on the device of `like`; angles in float64."""
        return _rotation(self._angles(positions_S), like)

    def pairs(self, positions_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute each pair of dimensions' cosines and sines, float32, (S, pairs) each, where the positions lie."""
        angles_SP = self._angles(positions_S)
        return angles_SP.cos().float(), angles_SP.sin().float()

    def _angles(self, positions_S: torch.Tensor) -> torch.Tensor:
        return positions_S.double()[:, None] * self._frequencies_on(positions_S.device)

    def _frequencies_on(self, device: torch.device) -> torch.Tensor:
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = self.frequencies.to(device, non_blocking=True)
        return self._copies[device]

    def undo(self, position_ids: torch.Tensor, like: torch.Tensor) -> Rotation:
        """Build the inverse of what transformers did at `position_ids`, shape (B, S), in its float32 angles."""
        angles_B1SD = -(position_ids.float()[:, None, :, None] * self._frequencies_on(position_ids.device).float())
        rotation = _rotation(angles_B1SD, like)
        # Not quite 1 in float32; norms must come back as they were.
        squared = rotation.cos.square() + rotation.sin.square()
        return Rotation(rotation.cos / squared, rotation.sin / squared)

    def _check_convention(self, model: nn.Module) -> None:
        # Of a user's subclass the class it derives from tells. Where none does, the check of what it computes does.
        modules = [sys.modules[kind.__module__] for kind in type(model).__mro__]
        apply = next(
            (module.apply_rotary_pos_emb for module in modules if hasattr(module, "apply_rotary_pos_emb")), None
        )
        if apply is None:
            return
        x = torch.linspace(-1, 1, 3 * self.size).view(1, 1, 3, self.size)
        angles = torch.arange(1, 4, dtype=torch.float32)[:, None] * self.frequencies.float()
        emb = torch.cat((angles, angles), dim=-1)[None]
        try:
            theirs, _ = apply(x, x, emb.cos(), emb.sin())
        except (RuntimeError, TypeError):  # it takes angles of another shape
            return
        if not torch.allclose(theirs, _rotation(angles, x)(x), atol=1e-5):
            raise ValueError(
                f"model={type(model).__name__} pairs its rotary dimensions in another way than rotate-half; choose a "
                "RoPE model such as GPT-NeoX (Pythia), Llama, Mistral or Qwen2"
            )


def _rotation(angles: torch.Tensor, like: torch.Tensor) -> Rotation:
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat((cos, cos), dim=-1).to(like), torch.cat((-sin, sin), dim=-1).to(like))


class ShiftedRope(Rope):
    """The rotation that a model itself applies from some position on, in transformers' float32 angles: to compare."""

    def __init__(self, model: nn.Module, offset: int) -> None:
        super().__init__(model)
        self.offset = offset

    def _angles(self, positions_S: torch.Tensor) -> torch.Tensor:
        """Of as many positions behind the offset."""
        return (positions_S + self.offset).float()[:, None] * self._frequencies_on(positions_S.device).float()
