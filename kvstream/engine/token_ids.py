"""Token ids as callers give them: checked, and brought into one shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def one_text(input_ids: torch.Tensor) -> torch.Tensor:
    """Check one text of two tokens or more and return it as (1, T)."""
    ids_1T = one_row(input_ids)
    if ids_1T.shape[1] < 2:
        raise too_short(ids_1T.shape[1])
    return ids_1T


def too_short(tokens: int) -> ValueError:
    """Build the error for a text without a token to predict."""
    return ValueError(f"input_ids holds {tokens} tokens; at least 2 are needed, the first predicts the next")


def one_row(input_ids: object) -> torch.Tensor:
    """Check a piece of one text, of any length, and return it as (1, T)."""
    input_ids = a_tensor(input_ids)
    if input_ids.ndim == 1:
        input_ids = input_ids[None]
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; give one text, of shape (T,) or (1, T)")
    return input_ids


def a_tensor(input_ids: object) -> torch.Tensor:
    """Return ids that are a tensor; raise ValueError for what is none, such as all that a tokenizer returned."""
    if isinstance(input_ids, torch.Tensor):
        return input_ids
    remedy = "give its input_ids" if isinstance(input_ids, Mapping) else "give ids as torch.tensor(…)"
    raise ValueError(f"input_ids: {type(input_ids).__name__} is not a tensor; {remedy}")


def refuse_ids(ids: torch.Tensor, vocabulary: int) -> None:
    """Raise ValueError for ids outside the vocabulary, which on a GPU would end the process."""
    if ids.numel() and (ids.is_floating_point() or ids.is_complex()):
        raise ValueError(f"input_ids: {ids.dtype} is not a dtype of token ids; give whole numbers")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
        *_, place = first = ((ids < 0) | (ids >= vocabulary)).nonzero()[0].tolist()
        raise ValueError(
            f"input_ids: {int(ids[tuple(first)])} at position {place} is no token, the model knows ids 0 to "
            f"{vocabulary - 1}; tokenise with the model's own tokenizer"
        )
