"""Exact evaluation of a text under a policy, many tokens at a time.

Gives what decoding token by token would give (`decode`), by way of matrix products: see `bounded_layer`.
Memory is O(budget + chunk_size) for bounded policies, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from kvstream.engine.cache import KVStreamCache
from kvstream.engine.call_checks import refuse_ids
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.wrappers import is_plain_linear, unwrapped, vocabulary_of
from kvstream.policies import Policy

# Of logits that exist at once, on CPUs and elsewhere. On CPUs from 0.5 to 16 MiB take the same time, within the noise.
LOGITS_BYTES = {True: 2 << 20, False: 256 << 20}
LEAST_BLOCK = 256  # of the vocabulary
SAFE_EXPONENT = 50.0  # e^50 times any vocabulary is still a float32


@dataclass(frozen=True)
class Scored:
    """How well some tokens were predicted: nll_nats, in nats; correct, whether the argmax was the token. Both (T,), or
    (B, T) for several texts."""

    nll_nats: torch.Tensor
    correct: torch.Tensor


def replay(
    model: PreTrainedModel,
    input_ids: torch.Tensor | Iterable[torch.Tensor],
    policy: Policy,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> torch.Tensor:
    """Compute −ln p of each token of a text but the first, under `policy`: nats, shape (T−1,).

    input_ids: the text, (T,) or (1, T), or an iterable of its pieces, each of any length. Raises ValueError for fewer
    than two tokens, for ids that are none of the model's, for a chunk_size below 1, or a model that `KVStreamCache`
    cannot serve.
    """
    return torch.cat([part.nll_nats for part in replay_chunks(model, input_ids, policy, chunk_size=chunk_size)])


def replay_chunks(
    model: PreTrainedModel,
    input_ids: torch.Tensor | Iterable[torch.Tensor],
    policy: Policy,
    *,
    chunk_size: int = CHUNK_SIZE,
    cache: KVStreamCache | None = None,
) -> Iterator[Scored]:
    """Yield the scored tokens chunk by chunk, in order; see `replay`. Takes no more of an iterable than it needs.

    cache: goes on with a text whose tokens before these it has seen, under the same policy.
    """
    if type(chunk_size) is not int or chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r} is not valid; give a whole number of at least 1")
    capacity = None
    if isinstance(input_ids, torch.Tensor):
        input_ids = [one_text(input_ids)]
        capacity = input_ids[0].shape[1]
    if cache is None:
        cache = KVStreamCache(model, policy, capacity=capacity)
    elif cache.policy != policy:
        raise ValueError(f"cache: it is under {cache.policy}, not under {policy}; give one under the same policy")
    rows = windows((one_row(piece) for piece in input_ids), chunk_size)
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
        raise _too_short(tokens)


@torch.inference_mode()
def score(model: PreTrainedModel, hidden_XE: torch.Tensor, targets_X: torch.Tensor) -> Scored:
    """Score target tokens, of any shape X, given the hidden states before them; in float32, or float64 as the model.

    Logits come in blocks of the vocabulary, small enough to stay near the cores until their sum is taken. A head that
    is more than its weights (see `is_plain_linear`) is called itself, for fewer tokens at a time.
    """
    head, targets_T = model.get_output_embeddings(), targets_X.flatten()
    if is_plain_linear(head):
        scored = _scored(_logits(head, hidden_XE.flatten(0, -2)), targets_T)
    else:
        rows = max(1, LOGITS_BYTES[False] // (vocabulary_of(model) * 4))
        pieces = zip(hidden_XE.flatten(0, -2).split(rows), targets_T.split(rows))
        parts = [_scored([(0, _widened(head(hidden).t()))], targets.to(hidden.device)) for hidden, targets in pieces]
        scored = Scored(torch.cat([part.nll_nats for part in parts]), torch.cat([part.correct for part in parts]))
    return Scored(scored.nll_nats.view(targets_X.shape), scored.correct.view(targets_X.shape))


def _widened(logits_VT: torch.Tensor) -> torch.Tensor:
    """Copy logits, which may be somebody else's too, in float32, or float64 as they are."""
    return logits_VT.to(torch.promote_types(logits_VT.dtype, torch.float32), copy=True)


def _scored(blocks: Iterable[tuple[int, torch.Tensor]], targets_T: torch.Tensor) -> Scored:
    """Score targets given blocks of logits, (V, T), each with its first token; overwrites the blocks."""
    correct_T, shifted = torch.zeros_like(targets_T, dtype=torch.bool), False
    highest_T = chosen_T = total_T = shift_T = torch.empty(0)
    for start, logits_VT in blocks:
        inside_T = (targets_T >= start) & (targets_T < start + len(logits_VT))
        own_T = logits_VT.gather(0, (targets_T - start).clamp(0, len(logits_VT) - 1)[None])[0]
        here_T = logits_VT.amax(0)
        if not start:
            highest_T, chosen_T = torch.full_like(here_T, -torch.inf), own_T
            total_T, shift_T = torch.zeros_like(here_T), torch.zeros_like(here_T)
        # Of several highest logits the first is the argmax; asked only where it matters, as it is slow.
        hit_T = inside_T & (own_T == here_T) & (here_T > highest_T)
        if hit_T.any():
            hit_T[hit_T.clone()] = logits_VT[:, hit_T].t().contiguous().argmax(-1) == targets_T[hit_T] - start
        correct_T = (correct_T & (here_T <= highest_T)) | hit_T
        chosen_T = torch.where(inside_T, own_T, chosen_T)
        highest_T = torch.maximum(highest_T, here_T)
        # Exponents are shifted only once they leave the range in which float32 holds every sum of them.
        shifted = shifted or not bool(highest_T.abs().max() < SAFE_EXPONENT)
        if shifted:
            if start:
                total_T.mul_((shift_T - highest_T).exp_())
            shift_T = highest_T
            logits_VT.sub_(shift_T)
        total_T += logits_VT.exp_().sum(0)
    return Scored(total_T.log() + (shift_T - chosen_T), correct_T)


def _logits(head: nn.Linear, hidden_TE: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield blocks of logits, (V, T), each with its first token: in float32, or float64 as the model."""
    wide = torch.promote_types(hidden_TE.dtype, torch.float32)
    tokens, on_cpu = len(hidden_TE), hidden_TE.device.type == "cpu"
    if tokens == 1:
        yield 0, _widened(head(hidden_TE).t())
        return
    rows = max(LEAST_BLOCK, LOGITS_BYTES[on_cpu] // (tokens * wide.itemsize))
    hidden_ET = hidden_TE.t()
    for start in range(0, len(head.weight), rows):
        # On CPUs the product is faster this way round.
        logits_VT = (head.weight[start : start + rows] @ hidden_ET).to(wide)
        yield start, logits_VT if head.bias is None else logits_VT.add_(head.bias[start : start + rows, None])


def one_text(input_ids: torch.Tensor) -> torch.Tensor:
    """Check one text of two tokens or more and return it as (1, T)."""
    ids_1T = one_row(input_ids)
    if ids_1T.shape[1] < 2:
        raise _too_short(ids_1T.shape[1])
    return ids_1T


def _too_short(tokens: int) -> ValueError:
    return ValueError(f"input_ids holds {tokens} tokens; at least 2 are needed, the first predicts the next")


def one_row(input_ids: object) -> torch.Tensor:
    """Check a piece of one text, of any length, and return it as (1, T)."""
    if not isinstance(input_ids, torch.Tensor):
        raise ValueError(f"input_ids: {type(input_ids).__name__} is not a tensor; give ids as torch.tensor(…)")
    if input_ids.ndim == 1:
        input_ids = input_ids[None]
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; give one text, of shape (T,) or (1, T)")
    return input_ids
