"""Tiny random models and token sequences, seeded, without a network.

Weights are drawn wide enough that attention is far from uniform and an evicted key changes the loss visibly; biases
and norm weights are drawn too, so that one forgotten shows. Both dtypes of a model hold the same float32 numbers.
Models are built once and shared: no test may change one.
"""

import os
import random
from functools import lru_cache

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # threads of two processes on the same cores would mostly wait for one another

FLOAT32 = torch.float32
VOCAB = 97
WORDS = [f"w{number}" for number in range(96)]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


@lru_cache
def build_model(family: str, dtype: torch.dtype, vocab: int = VOCAB):
    """`neox`, `neox_serial` (no parallel residual), `neox_tied`, `llama` (4 query heads, 2 kv heads) or `qwen2`."""
    if dtype != torch.float32:
        return build_model.__wrapped__(family, torch.float32, vocab).to(dtype)
    if family in ("llama", "qwen2"):
        config_class, model_class = (
            (LlamaConfig, LlamaForCausalLM) if family == "llama" else (Qwen2Config, Qwen2ForCausalLM)
        )
        model = model_class(config_class(**SHAPE, vocab_size=vocab, num_key_value_heads=2))
    else:
        parallel, tied = family != "neox_serial", family == "neox_tied"
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **SHAPE,
                vocab_size=vocab,
                rotary_pct=0.25,
                use_parallel_residual=parallel,
                tie_word_embeddings=tied,
            )
        )
    generator = torch.Generator().manual_seed(2309)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            is_gain = "norm" in name and name.endswith("weight")
            weight.copy_(1.0 + 0.2 * drawn if is_gain else 0.15 * drawn)
    return model.eval()


def draw_tokens(length: int, seed: int = 0, *, distinct: bool = True, vocab: int = VOCAB) -> torch.Tensor:
    """T token ids, (T,).

    They are distinct up to the vocabulary's size, since equal tokens have equal key norms in layer 0 and one test
    alone is about ties; `distinct=False` draws freely.
    """
    generator = torch.Generator().manual_seed(seed)
    if distinct and length <= vocab:
        return torch.randperm(vocab, generator=generator)[:length]
    return torch.randint(vocab, (length,), generator=generator)


def write_world(folder):
    """Write a tiny model and three texts of 500 words into a folder."""
    build_model("neox", FLOAT32).save_pretrained(folder / "model")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*WORDS, "?"])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "model")
    (folder / "texts").mkdir()
    for seed, name in enumerate(("one", "two", "three")):
        text = " ".join(random.Random(seed).choices(WORDS, k=500))
        (folder / "texts" / f"{name}.txt").write_text(text)
    return folder
