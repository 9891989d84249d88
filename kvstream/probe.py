"""Does a model compute what kvstream assumes? Asked once per model, of the model itself, on a few tokens.

kvstream rotates queries and keys in the model's place and applies the head itself. A model that leaves some layers
unrotated, normalises after the rotation or scales its logits would be evaluated wrongly, so it is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import DynamicCache, PreTrainedModel

TOKENS = 12
TOLERANCE = 1e-3  # transformers' norms and angles are float32's even in float64 models
HALF_TOLERANCE = 0.3
VERIFIED = "_kvstream_verified"


@torch.inference_mode()
def verify(model: PreTrainedModel, ours: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Compare log-probabilities of the model's own forward with those of `ours`: ids (1, T) → logits (T, vocabulary).

    Raises ValueError, naming the model and the difference, unless they agree. Asks each model once.
    """
    if getattr(model, VERIFIED, False):
        return
    agree, problem = False, ""
    setattr(model, VERIFIED, True)  # ours makes a cache, which would ask again
    try:
        ids_1T = torch.arange(1, TOKENS + 1, device=model.device)[None] % model.config.vocab_size
        theirs = model(input_ids=ids_1T, past_key_values=DynamicCache(config=model.config), use_cache=True).logits[0]
        difference = float((theirs.log_softmax(-1) - ours(ids_1T).log_softmax(-1)).abs().max())
        tolerance = HALF_TOLERANCE if model.dtype in (torch.float16, torch.bfloat16) else TOLERANCE
        agree = not difference > tolerance  # NaN is the model's own and passes
        problem = f"log-probabilities differ by {difference:.2g}"
    except (AttributeError, TypeError, RuntimeError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        setattr(model, VERIFIED, agree)
    if not agree:
        raise ValueError(
            f"model={type(model).__name__} computes something that kvstream does not ({problem}); "
            "choose a model such as Pythia (GPT-NeoX), Llama or Qwen2"
        )
