"""Pythia's exact published shapes with random weights: what a step costs in time and memory is the same.

They say nothing about quality. Numbers: the config.json of EleutherAI/pythia-{70m,160m,410m}-deduped,
https://arxiv.org/abs/2304.01373
"""

from typing import Any

SEED = 0
# name: (hidden size, layers, heads)
SHAPES = {"shape:pythia-70m": (512, 6, 8), "shape:pythia-160m": (768, 12, 12), "shape:pythia-410m": (1024, 24, 16)}


def config_of(spec: str) -> dict[str, Any]:
    """The configuration of a shape, as a config.json would hold it."""
    hidden, layers, heads = SHAPES[spec]
    return {
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        "use_parallel_residual": True,
        "attention_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def build(spec: str, dtype: Any) -> Any:
    """The model on the CPU in a torch dtype; the same weights at every call, torch's own generator untouched."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(spec)), dtype=dtype)
