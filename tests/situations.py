"""Which models and situations kvstream serves and which it refuses: the tables of the tests and of docs/supported.md.

python tests/situations.py      writes docs/supported.md anew
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

DOCUMENT = Path(__file__).parent.parent / "docs" / "supported.md"
TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, what its tiny configuration needs beside `TINY`, and why it is refused, if it is."""

    name: str
    more: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    refused: str = ""  # a part of the message
    no_float64: bool = False  # the model's own forward cannot

    def __str__(self) -> str:
        """The name, and what sets it apart from others of that name."""
        return f"{self.name}, {self.note}" if self.note else self.name

    def config(self) -> Any:
        """The tiny configuration."""
        return getattr(transformers, f"{self.name}Config")(**TINY | self.more)

    def build(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
        """A tiny model with random weights, those of its norms as well, which begin as ones."""
        torch.manual_seed(seed)
        model = getattr(transformers, f"{self.name}ForCausalLM")(self.config()).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name and name.endswith("weight"):
                    weight.add_(0.2 * torch.randn_like(weight))
        return model.to(dtype)


SERVED = [
    *(Architecture("GPTNeoX", {"rotary_pct": share}, f"{share:.0%} rotary") for share in (0.25, 0.5, 1.0)),
    Architecture("Llama"),
    Architecture("Mistral", {"sliding_window": None}, "no window"),
    Architecture("Qwen2"),
    Architecture("Qwen3", {"head_dim": 16}),
    Architecture("Phi"),
    Architecture("Phi3", {"sliding_window": None}, "no window"),
    Architecture("Gemma", {"head_dim": 16}),
    Architecture("Olmo"),
    Architecture("Olmo2"),
    Architecture("StableLm"),
    Architecture("Starcoder2", {"sliding_window": None}, "no window"),
    Architecture("SmolLM3", {}, "all layers rotary"),
    Architecture("SeedOss", {"head_dim": 16}),
    Architecture("Granite"),
    Architecture("Nemotron"),
    Architecture("Persimmon"),
    Architecture("Arcee"),
    Architecture("Apertus"),
    Architecture("Jais2"),
    Architecture("Mixtral", {"num_local_experts": 4, "sliding_window": None}, "no window", no_float64=True),
    Architecture("Qwen2Moe", {"num_experts": 4, "shared_expert_intermediate_size": 32, **EXPERTS}, no_float64=True),
    Architecture("Qwen3Moe", {"num_experts": 4, "head_dim": 16, **EXPERTS}, no_float64=True),
    Architecture(
        "Glm4Moe",
        {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 16, **EXPERTS},
        no_float64=True,
    ),
    Architecture("GraniteMoe", {"num_local_experts": 4, **EXPERTS}, no_float64=True),
    Architecture("Phimoe", {"num_local_experts": 4, "sliding_window": None}, "no window", no_float64=True),
    Architecture("FlexOlmo", {"num_experts": 4, **EXPERTS}, no_float64=True),
    Architecture("Olmoe", {"num_experts": 4, **EXPERTS}, no_float64=True),
]
REFUSED = [
    Architecture("Gemma2", {"head_dim": 16}, "windows, soft caps", refused="sliding_window=4096"),
    Architecture("Mistral", {"sliding_window": 32}, "window of 32", refused="sliding_window=32"),
    Architecture("Phimoe", {"num_local_experts": 4, "sliding_window": 64}, "window of 64", refused="sliding_window=64"),
    Architecture("Cohere2", {}, "windows, interleaved rotation", refused="in another way than rotate-half"),
    Architecture("GptOss", {"num_local_experts": 4, "head_dim": 16}, "windows, sinks", refused="sliding_window=128"),
    Architecture(
        "GraniteSWA",
        {"layer_types": ["full_attention"] * 3, "layer_rope_theta": [1e4] * 3},
        "learned sink logits",
        refused="s_aux=",
    ),
    Architecture(
        "Ministral3",
        {"head_dim": 16, "sliding_window": None, "rope_parameters": YARN},
        "queries scaled by position",
        refused="at positions from 512 on",
    ),
    Architecture("SmolLM3", {"no_rope_layers": [1, 0, 1]}, "a layer without rotation", refused="KL divergence"),
    Architecture("HunYuanDenseV1", {"head_dim": 16}, "norms behind the rotation", refused="KL divergence"),
    Architecture(
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "dynamic RoPE",
        refused="rope_type='dynamic'",
    ),
    Architecture("Olmo3", {}, "windows", refused="rotates some layers in another way"),
    Architecture("Cohere", {}, "interleaved rotation, scaled logits", refused="in another way than rotate-half"),
    Architecture("Glm4", {"head_dim": 16}, "interleaved rotation", refused="in another way than rotate-half"),
    Architecture("GPTJ", {"rotary_dim": 8}, "rotation of its own", refused="has no rotary embedding"),
    Architecture("Falcon", {}, "attention of its own", refused="does not leave keys and values"),
    Architecture("DiffLlama", {}, "attention of its own", refused="does not leave keys and values"),
    Architecture("JetMoe", {}, "attention of its own", refused="does not leave keys and values"),
]

# What users do with a cache or a model: (what, how kvstream takes it, the test that shows it).
SITUATIONS = [
    ("`copy`, `deepcopy`, `pickle`, `torch.save` of a cache", "equal and independent", "test_a_cache_is_a_value"),
    ("`crop`, before a policy has evicted anything", "as if the tokens had never come", "test_tokens_are_taken_back"),
    ("`crop` after that", "refused", "test_what_was_evicted_cannot_be_taken_back"),
    ("beams, sampling, batch repeat and select", "served", "test_rows_can_be_reordered_repeated_and_selected"),
    ("several turns of `generate` with the whole history", "served", "test_turns_of_generate_go_on"),
    ("a prompt that does not continue what the cache holds", "refused", "test_another_prompt_is_refused"),
    ("prompt caching and chats as in [caches.md](caches.md)", "served", "test_the_recipes_work"),
    ("padding, 4-D masks, prefix masks", "refused", "test_masks_are_refused"),
    ("restarting, gapped, shifted `position_ids`", "refused", "test_positions_are_refused"),
    ("token ids beyond the vocabulary, the last one too", "refused", "test_ids_beyond_the_vocabulary_are_refused"),
    ("another number of texts than the cache holds", "refused", "test_other_rows_are_refused"),
    ("a cache used with another model", "refused", "test_another_model_is_refused"),
    ("`set_attn_implementation` after the cache was made", "refused", "test_another_attention_is_refused"),
    ("autocast", "refused", "test_autocast_is_refused"),
    ("`output_attentions`", "refused", "test_attention_weights_are_refused"),
    ("training mode with attention dropout", "refused", "test_dropout_is_refused"),
    ("`backward`", "an error that says so", "test_backward_says_that_there_is_no_gradient"),
    ("a head with hooks, or with its own `forward`", "its own forward", "test_the_heads_own_forward_is_used"),
    ("weights offloaded to the CPU or a disk", "served", "test_offloaded_models_are_served"),
    ("PEFT's LoRA, active or disabled", "evaluated as it is", "test_adapters_are_evaluated"),
    ("PEFT's prompt tuning", "refused", "test_learned_prompts_are_refused"),
    ("`torch.compile(model)`, `DataParallel`, a subclass", "served", "test_wrapped_models_are_served"),
]


def document() -> str:
    """The page of what is supported, as Markdown."""
    by_note = [f"| {each.name} | {each.note or '–'} |" for each in SERVED]
    refused = [f"| {each.name} | {each.note} | {each.refused.rstrip('=')} |" for each in REFUSED]
    done = [f"| {what} | {how} | `{test}` |" for what, how, test in SITUATIONS]
    lines = [
        "# What is supported",
        "",
        "Generated by `python tests/situations.py` from the tables that the tests run. A model of an architecture that",
        "is not listed is asked what it computes when it is first used (`engine/model_check.py`), and served or not.",
        "",
        "## Architectures",
        "",
        "Served: each with tiny random weights of eight seeds, in float32, bfloat16 and float16, and in float64 where",
        "transformers' own forward can (`tests/engine/test_model_check.py`).",
        "",
        "| class of transformers | which |",
        "|---|---|",
        *by_note,
        "",
        "Refused, before anything of the model is changed:",
        "",
        "| class of transformers | what it has | the message says |",
        "|---|---|---|",
        *refused,
        "",
        "## Situations",
        "",
        "| what | kvstream | shown by |",
        "|---|---|---|",
        *done,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
