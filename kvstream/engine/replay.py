"""Exact evaluation of a text under a policy, many tokens at a time.

Gives what decoding token by token would give (`decode`), by way of matrix products: see `bounded_chunk`.
Memory is O(budget + chunk_size) for bounded policies, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.scoring import Scored, score
from kvstream.engine.token_ids import one_row, one_text, refuse_ids, too_short
from kvstream.engine.wrappers import unwrapped, vocabulary_of
from kvstream.policies import Policy


def replay(
    model: PreTrainedModel,
    input_ids: torch.Tensor | Iterable[torch.Tensor],
    policy: Policy,
    *,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Compute −ln p of each token of a text but the first, under `policy`: nats, shape (T−1,).

    input_ids: the text, (T,) or (1, T), or an iterable of its pieces, each of any length. chunk_size: tokens that pass
    through the model at once, by default as many as suit the device. Raises ValueError for fewer
    than two tokens, for ids that are none of the model's, for a chunk_size below 1, or a model that `KVStreamCache`
    cannot serve.
    """
    return torch.cat([part.nll_nats for part in replay_chunks(model, input_ids, policy, chunk_size=chunk_size)])


def replay_chunks(
    model: PreTrainedModel,
    input_ids: torch.Tensor | Iterable[torch.Tensor],
    policy: Policy,
    *,
    chunk_size: int | None = None,
    cache: KVStreamCache | None = None,
) -> Iterator[Scored]:
    """Yield the scored tokens chunk by chunk, in order; see `replay`. Takes no more of an iterable than it needs.

    cache: goes on with a text whose tokens before these it has seen, under the same policy.
    """
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(f"chunk_size={chunk_size!r} is not valid; give a whole number of at least 1")
    capacity = None
    if isinstance(input_ids, torch.Tensor):
        input_ids = [one_text(input_ids)]
        capacity = input_ids[0].shape[1]
    if cache is None:
        cache = KVStreamCache(model, policy, capacity=capacity)
    elif cache.policy != policy:
        raise ValueError(f"cache: it is under {cache.policy}, not under {policy}; give one under the same policy")
    rows = windows((one_row(piece) for piece in input_ids), chunk_size or chunk_size_for(model, 1))
    for scored in replay_windows(model, rows, cache):
        yield Scored(scored.nll_nats[0], scored.correct[0])


def replay_windows(
    model: PreTrainedModel, windows_BN: Iterable[torch.Tensor], cache: KVStreamCache
) -> Iterator[Scored]:
    """Yield the scores, (B, N − 1), of windows of texts side by side, each starting with the last window's last token.

    Feeds all but the last token of a window to the model.
    """
    model = unwrapped(model)
    for window_BN in windows_BN:
        refuse_ids(window_BN, vocabulary_of(model))  # also the last, which the model is not shown
        yield score(model, cache.hidden_states(model, window_BN[:, :-1]), window_BN[:, 1:])


def windows(pieces: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Regroup texts, (B, any), into windows of `size` tokens and the one that comes next, which starts the following.

    Raises ValueError for fewer than two tokens.
    """
    held: list[torch.Tensor] = []
    tokens = used = 0
    for piece in pieces:
        held.append(piece)
        tokens += piece.shape[1]
        if tokens > size:
            text_BT = torch.cat(held, dim=1) if len(held) > 1 else piece
            used = (tokens - 1) // size * size
            for start in range(0, used, size):
                yield text_BT[:, start : start + size + 1]
            held, tokens = [text_BT[:, used:]], tokens - used
    if tokens > 1:
        yield torch.cat(held, dim=1)
    elif not used:
        raise too_short(tokens)
