"""Does a model compute what kvstream assumes? Asked of the model itself, once for each dtype and kind of device.

kvstream rotates queries and keys in the model's place and applies the head itself. A model that leaves some layers
unrotated, caps its scores, scales queries by their position or its logits afterwards would be evaluated wrongly, so it
is refused, and left as it was.

Two right ways of computing the same differ by rounding, and by how much depends on the model, the dtype, the processor
and its libraries: no constant can tell. So the model is asked that, too: some of its embeddings are changed in the last
bit, after which all later roundings fall another way. What its answers differ by then is its noise. kvstream may differ
from the model by no more than a few times that, in KL divergence, over the tokens and at the worst of them.

The model's own answers come first, from attention that nobody has touched; also at positions beyond those it was
trained on, where some models begin to compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from kvstream.engine import transformers_hook
from kvstream.engine.divergence import kl_from_logits
from kvstream.engine.notes import first_line
from kvstream.engine.rope import Rope, ShiftedRope
from kvstream.engine.widest import float32_products
from kvstream.engine.wrappers import device_of, vocabulary_of
from kvstream.policies import Full

CHECKED = "_kvstream_checked"
TOKENS = 48
SHAKEN = 4  # rows that tell the noise
CHANGED_OF = 8  # one of so many elements of an embedding is changed: more would be more than rounding does
DRAWS = 3  # stretches of tokens to ask about: on one, a router between two equal experts may have fallen another way
# KL grows with the square of the difference in logits. The noise holds the model's rounding twice, kvstream's
# difference the model's and its own, so they come out about equal. Four times is twice the difference in logits.
MEAN_FACTOR, WORST_FACTOR = 4.0, 16.0
ERRORS = (AttributeError, TypeError, RuntimeError, IndexError, ValueError)
FAR = 8  # contexts away, where the model is asked again


@torch.inference_mode()
def check(model: PreTrainedModel, ids_T: torch.Tensor | None = None) -> None:
    """Ask a model, unless it was asked before. ids_T: ordinary tokens of a text, without them some are drawn.

    Raises ValueError, naming the model and the reason, if kvstream does not compute what the model does; the model's
    attention is then what it was.
    """
    if _state(model) in getattr(model, CHECKED, ()):
        return
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"model={type(model).__name__} predicts no next token; give the class with a head for that, …ForCausalLM"
        )
    rope = Rope(model)
    with _evaluating(model):
        for stretch_T in _stretches(model, ids_T):
            if (problem := _difference(model, stretch_T, rope)) is None:
                break
    if problem:
        raise ValueError(
            f"model={type(model).__name__} computes something that kvstream does not ({problem}); "
            "choose a model such as Pythia (GPT-NeoX), Llama or Qwen2"
        )
    trust(model)


@torch.inference_mode()
def rounding_nats(model: PreTrainedModel, ids_T: torch.Tensor) -> float:
    """How far rounding alone moves a model's −ln p of the tokens of a text: the mean over its first, in nats.

    Of drawn tokens where the text is too short to tell, or most of its first have no finite loss; NaN if these have
    none either.
    """
    for stretch_T in _stretches(model, ids_T):
        log_p_RTV = torch.stack(_theirs(model, stretch_T, 0)[:-1]).double().log_softmax(-1)
        next_RT1 = stretch_T[1:, None].cpu().expand(len(log_p_RTV), -1, 1)
        nll_RT = -log_p_RTV[:, :-1].gather(2, next_RT1)[..., 0]
        finite_T = nll_RT.isfinite().all(0)
        if 2 * finite_T.sum() > len(finite_T):
            return float((nll_RT[1:] - nll_RT[0])[:, finite_T].abs().mean(1).amax())
    return math.nan


def trust(model: PreTrainedModel) -> None:
    """Take a model for one that was checked, as one that is built on the same weights was."""
    setattr(model, CHECKED, {*getattr(model, CHECKED, ()), _state(model)})


def _state(model: PreTrainedModel) -> tuple[str, str]:
    return str(model.dtype), device_of(model).type


def _stretches(model: PreTrainedModel, ids_T: torch.Tensor | None) -> Iterator[torch.Tensor]:
    pieces = () if ids_T is None else ids_T.flatten().split(TOKENS)
    # Where tokens repeat, values do, too, and attention makes the same of them however it weighs them.
    given = [piece for piece in pieces if len(piece.unique()) > TOKENS // 2]
    for draw in range(DRAWS):
        if draw < len(given):
            yield given[draw].to(device_of(model))
        else:
            generator = torch.Generator().manual_seed(draw)
            yield torch.randint(vocabulary_of(model), (TOKENS,), generator=generator).to(device_of(model))


def _difference(model: PreTrainedModel, ids_T: torch.Tensor, rope: Rope) -> str | None:
    """How kvstream's answers differ from the model's beyond its noise, or None."""
    offset = FAR * _context(model.config)
    before = model.config._attn_implementation
    try:
        # With a dtype or device that is new, kvstream's attention may be there already.
        with _attention(model, "eager" if before == transformers_hook.NAME else before):
            near_TV, *shaken, far_TV = _theirs(model, ids_T, offset)
    except torch.OutOfMemoryError:
        raise
    except ERRORS as error:
        return f"its own forward ends with {_line(error)}"
    try:
        with _attention(model, transformers_hook.NAME):
            ours = [_ours(model, ids_T, each) for each in (rope, ShiftedRope(model, offset))]
    except (transformers_hook.NotComputed, torch.OutOfMemoryError):
        raise
    except ERRORS as error:
        return (
            "it does not leave keys and values to transformers' attention functions, and then to its head: "
            f"{_line(error)}"
        )
    noise_RT = torch.stack([kl_from_logits(near_TV, each_TV) for each_TV in shaken])
    for own_TV, our_TV, where in ((near_TV, ours[0], ""), (far_TV, ours[1], f" at positions from {offset:,} on")):
        divergence_T = kl_from_logits(own_TV, our_TV)
        counts_T = ~own_TV.isnan().any(-1) & noise_RT.isfinite().all(0)  # NaN is the model's own, no reason
        if counts_T.any() and not _within(divergence_T[counts_T], noise_RT[:, counts_T], _last_bit(model) ** 2):
            mean, usual = divergence_T[counts_T].mean(), noise_RT[:, counts_T].mean(1).amax()
            return f"KL divergence {mean:.1g} nats a token{where}, where its own rounding comes to {usual:.1g}"
    return None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _within(divergence_T: torch.Tensor, noise_RT: torch.Tensor, floor: float) -> bool:
    mean = MEAN_FACTOR * float(noise_RT.mean(1).amax()) + floor
    worst = WORST_FACTOR * float(noise_RT.amax()) + floor
    return float(divergence_T.mean()) <= mean and float(divergence_T.amax()) <= worst


def _theirs(model: PreTrainedModel, ids_T: torch.Tensor, offset: int) -> list[torch.Tensor]:
    """The model's own logits, (T, vocabulary): as it is, with changed last bits, and at positions from `offset` on.

    On the CPU, as float64 is wanted, which not all devices have.
    """
    rows, T = 2 + SHAKEN, len(ids_T)
    generator = torch.Generator().manual_seed(0)

    def shake(module: torch.nn.Module, args: Any, output_RTE: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        step_RTE = torch.randint(2, output_RTE.shape, generator=generator) * 2.0 - 1.0
        step_RTE *= torch.randint(CHANGED_OF, output_RTE.shape, generator=generator) == 0
        step_RTE[0], step_RTE[-1] = 0, 0
        return output_RTE + output_RTE * (step_RTE * _last_bit(model)).to(output_RTE)

    positions_RT = torch.arange(T, device=ids_T.device).repeat(rows, 1)
    positions_RT[-1] += offset
    ids_RT = ids_T.repeat(rows, 1)
    hook = model.get_input_embeddings().register_forward_hook(shake)
    try:
        said = {"position_ids": positions_RT, "attention_mask": torch.ones_like(ids_RT), "use_cache": False}
        logits_RTV = model(input_ids=ids_RT, **said).logits
    finally:
        hook.remove()
    return list(logits_RTV.cpu())


def _ours(model: PreTrainedModel, ids_T: torch.Tensor, rope: Rope) -> torch.Tensor:
    from kvstream.engine.cache import KVStreamCache  # which asks this module before it serves a model

    hidden_1TE = KVStreamCache.unchecked(model, Full(), rope).hidden_states(model, ids_T[None])
    logits_TV: torch.Tensor = model.get_output_embeddings()(hidden_1TE)[0].cpu()
    return logits_TV


def _last_bit(model: PreTrainedModel) -> float:
    """The relative step of the coarsest numbers that a model computes with.

    In float64 its norms and angles are still float32's; products of float32 may be told to take fewer digits.
    """
    steps = [torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps]
    if model.dtype == torch.float32:
        fewer = {"tf32": torch.finfo(torch.float16).eps, "bf16": torch.finfo(torch.bfloat16).eps}  # TF32 has 10 bits
        steps.append(fewer.get(float32_products(device_of(model).type), 0.0))
    return float(max(steps))


def _context(config: Any) -> int:
    """The length that a model was first trained on, in tokens."""

    def originals(value: Any) -> Iterator[int]:
        for name, each in value.items() if isinstance(value, dict) else ():
            if name == "original_max_position_embeddings" and each:
                yield int(each)
            yield from originals(each)

    text = config.get_text_config()
    return min(originals(text.to_dict()), default=0) or int(getattr(text, "max_position_embeddings", 0) or TOKENS)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Take dropout, which would pass for rounding, out of a model for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model compute with another attention function for a while."""
    before = model.config._attn_implementation
    if before == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
