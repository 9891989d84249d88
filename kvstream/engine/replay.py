"""Exact evaluation of a text under a policy, many tokens at a time.

Gives what decoding token by token would give (`decode`), by way of matrix products: see `bounded_chunk`.
Memory is O(budget + chunk_size) for bounded policies, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.divergence import Kept
from kvstream.engine.scoring import Scored, compare, score
from kvstream.engine.token_ids import a_tensor, one_row, one_text, refuse_ids, too_short
from kvstream.engine.wrappers import unwrapped, vocabulary_of
from kvstream.policies import Full, Policy


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
) -> Iterator[Scored]:
    """Yield the scored tokens chunk by chunk, in order; see `replay`. Takes no more of an iterable than it needs."""
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(f"chunk_size={chunk_size!r} is not valid; give a whole number of at least 1")
    capacity = None
    if isinstance(input_ids, torch.Tensor):
        input_ids = [one_text(input_ids)]
        capacity = input_ids[0].shape[1]
    elif isinstance(input_ids, Mapping) or not isinstance(input_ids, Iterable):
        a_tensor(input_ids)  # which it is not
    cache = KVStreamCache(model, policy, capacity=capacity)
    rows = windows((one_row(piece) for piece in input_ids), chunk_size or chunk_size_for(model, 1))
    for scored in replay_windows(model, rows, cache):
        yield Scored(scored.nll_nats[0], scored.correct[0])


class Comparison:
    """A way to score windows: beside what a full cache predicted for these texts, or to keep what it does.

    full: what was kept of it for all tokens of the texts; None: what is scored is the full cache's.
    """

    def __init__(self, full: Kept | None = None) -> None:
        self.full = full
        self._parts: dict[int, Kept] = {}  # by their first token: what is replayed once more takes its place

    def __call__(
        self, model: PreTrainedModel, hidden_BTE: torch.Tensor, targets_BT: torch.Tensor, start: int
    ) -> Scored:
        """Score a window whose first token is the text's token `start`."""
        if self.full is None:
            scored, self._parts[start] = compare(model, hidden_BTE, targets_BT)
            return scored
        window = self.full.of(slice(None), slice(start, start + targets_BT.shape[1]))
        return compare(model, hidden_BTE, targets_BT, window)[0]

    def begin(self) -> None:
        """Forget what was kept: all windows come once more."""
        self._parts.clear()

    @property
    def kept(self) -> Kept:
        """What was kept of all windows."""
        return Kept.concatenate([part for _, part in sorted(self._parts.items())])


def replay_windows(
    model: PreTrainedModel,
    windows_BN: Iterable[torch.Tensor],
    cache: KVStreamCache,
    comparison: Comparison | None = None,
) -> Iterator[Scored]:
    """Yield the scores, (B, N − 1), of windows of texts side by side, each starting with the last window's last token.

    Feeds all but the last token of a window to the model.
    """
    model = unwrapped(model)
    for window_BN in windows_BN:
        refuse_ids(window_BN, vocabulary_of(model))  # also the last, which the model is not shown
        start, targets_BT = cache.get_seq_length(), window_BN[:, 1:]
        hidden_BTE = cache.hidden_states(model, window_BN[:, :-1])
        yield comparison(model, hidden_BTE, targets_BT, start) if comparison else score(model, hidden_BTE, targets_BT)


def replay_texts(
    model: PreTrainedModel,
    ids_BN: torch.Tensor,
    cache: KVStreamCache,
    before: dict[str, torch.Tensor] | None = None,
    comparison: Comparison | None = None,
) -> Scored:
    """Score all of these tokens but the first, (B, N − 1); where NaN occurs, as decoding would: token by token.

    before: the state of the cache that they follow, if any.
    """
    for ways, size in ((replay_windows, chunk_size_for(model, len(ids_BN))), (_carefully, CHUNK_SIZE)):
        cache.restore(before) if before else cache.reset()
        if comparison:
            comparison.begin()
        scored = Scored.concatenate(list(ways(model, windows([ids_BN], size), cache, comparison)))
        if not scored.nll_nats.isnan().any():
            break
    return scored


def _carefully(
    model: PreTrainedModel,
    windows_BN: Iterable[torch.Tensor],
    cache: KVStreamCache,
    comparison: Comparison | None,
) -> Iterator[Scored]:
    """Replay where NaN occurs: a window with some goes token by token, as in products NaN reaches earlier tokens, too.

    Not so once all that follows must be NaN, because a key that is will never be evicted.
    """
    lost = False
    for window_BN in windows_BN:
        before = None if lost else cache.state()
        [part] = replay_windows(model, [window_BN], cache, comparison)
        if before is not None and part.nll_nats.isnan().any():
            cache.restore(before)
            part = Scored.concatenate(list(replay_windows(model, windows([window_BN], 1), cache, comparison)))
            lost = isinstance(cache.policy, Full) and any(
                bool(held.isnan().flatten(1).any(1).all())
                for name, held in cache.state().items()
                if name.endswith(".keys")
            )
        yield part


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
