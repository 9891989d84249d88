"""From a model's name to what it is, and whether it may be loaded; nothing is.

Names: `owner/name@revision` (Hub; `pythia-70m-deduped` and its two sisters for short) · a local directory ·
`smollm2-135m` (embedded demo) · `shape:pythia-70m|160m|410m` (random weights: latency and memory, no quality). Knows no
policies, no Ray. Weights come from safetensors only and code that lies beside a model never runs.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvstream.inputs import checkpoint, demo_model, hub, pythia_shapes

# The commits at the head of `main`. 410m's we do not know with certainty: it follows `main`; records name the commit.
PINNED = {
    "EleutherAI/pythia-70m-deduped": "e93a9faa9c77e5d09219f6c868bfc7a1bd65593c",
    "EleutherAI/pythia-160m-deduped": "582159a2dfe3e712a8d47ae83dec95ae3bde8e7e",
    "EleutherAI/pythia-410m-deduped": "main",
}
ALIASES = {name.split("/")[1]: name for name in PINNED}
KINDS = (
    f"a Hub id (owner/name@revision), {', '.join(ALIASES)}, a local directory, {demo_model.NAME}, "
    f"{', '.join(pythia_shapes.SHAPES)}"
)


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is loaded.

    spec: the name it was asked for by. identity: decides the result; equal identities are equal weights and shape, on
    any machine. folder: where its files lie here, None for shapes. note:
    what a report must say beside the numbers. has_quality: False where weights are random. trained_context: the longest
    sequence it was trained on, in tokens. Sizes of models in files are 0 until `as_built` finds them.
    """

    spec: str
    kind: Literal["hub", "local", "demo", "shape"]
    identity: str
    folder: Path | None = None
    note: str | None = None
    has_quality: bool = True
    trained_context: int = 0
    hidden_size: int = 0
    num_layers: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    vocab_size: int = 0
    built_weights: int = 0  # of a model in files, where it was built

    @property
    def num_weights(self) -> int:
        """How many weights it has; roughly, for a head of its own, where it was not built."""
        return self.built_weights or 12 * self.num_layers * self.hidden_size**2 + 2 * self.vocab_size * self.hidden_size

    @property
    def flops_per_token(self) -> float:
        """Roughly what one token costs beside attention: two operations per weight of the layers and of the head."""
        return 2.0 * (12 * self.num_layers * self.hidden_size**2 + self.vocab_size * self.hidden_size)


def sizes_of(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes in a configuration, by their names in `ModelInfo`.

    Where it says nothing there is a kv-head per head, and heads divide the hidden size.
    """
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return {
        "trained_context": config["max_position_embeddings"] or 0,
        "hidden_size": hidden,
        "num_layers": config["num_hidden_layers"],
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or hidden // heads,
        "vocab_size": config["vocab_size"],
    }


def resolve(spec: str) -> ModelInfo:
    """Check a model's name and files without torch and without weights, and say what it is.

    A Hub id without a revision means `PINNED`, else `main`; the identity names the commit. What is cached asks the
    network nothing. `ValueError` with field, value and remedy for an unknown name, a missing directory, an unusable
    config.json, weights that are not safetensors, remote code, a missing demo package, and a Hub that does not deliver.
    """
    if not spec.isprintable():
        raise ValueError(f"models: {spec!r} is not a model; give {KINDS}, or rename it in characters that can be shown")
    if spec in pythia_shapes.SHAPES:
        identity, sizes = f"{spec} seed {pythia_shapes.SEED}", sizes_of(pythia_shapes.config_of(spec))
        return ModelInfo(spec, "shape", identity, note="random weights, no quality", has_quality=False, **sizes)
    if spec == demo_model.NAME:
        digest, sizes = checkpoint.sha256(demo_model.gguf_file()), sizes_of(demo_model.CONFIG)
        folder = demo_model.converted(digest)
        return ModelInfo(spec, "demo", f"gguf sha256:{digest}", folder, note=demo_model.NOTE, **sizes)
    # os.path answers False to names no folder can have; pathlib raises.
    if spec not in ALIASES and os.path.isdir(os.path.expanduser(spec)):
        folder = Path(spec).expanduser()
        checkpoint.read_config(spec, folder)
        checkpoint.require_safetensors(spec, [file.name for file in folder.iterdir()])
        if not (files := checkpoint.weight_files(spec, folder)):
            raise ValueError(
                f"models: {spec!r} lacks files that its {checkpoint.INDEX} names; copy the whole directory"
            )
        checkpoint.require_whole(spec, files)
        return ModelInfo(spec, "local", checkpoint.identity(spec, folder), folder.resolve())
    parts = hub.split_id(ALIASES.get(spec, spec))
    if parts is None:
        what = "is not a directory" if spec[:1] in {".", "/", "~"} else "is not a model"
        raise ValueError(f"models: {spec!r} {what}; give {KINDS}")
    repo, revision = parts
    folder = fetch_model(spec, repo, revision or PINNED.get(repo, "main"), weights=False)
    checkpoint.read_config(spec, folder)
    return ModelInfo(spec, "hub", f"{repo}@{folder.name}", folder)


def fetch_model(spec: str, repo: str, revision: str, *, weights: bool) -> Path:
    """The snapshot of a Hub model; without `weights` only configuration and tokenizer."""

    def enough(folder: Path) -> bool:
        whole = (folder / "config.json").is_file() and bool(checkpoint.weight_files(spec, folder))
        return whole and checkpoint.has_tokenizer(folder)

    def wanted(name: str) -> bool:
        return "/" not in name and name.endswith((".json", ".txt", ".model") + ((".safetensors",) if weights else ()))

    return hub.fetch(
        repo,
        revision,
        kind="model",
        wanted=wanted,
        enough=enough,
        check=lambda names: checkpoint.require_safetensors(spec, names),
        field="models",
        remedy=f"run offline with --models {demo_model.NAME} --text kjv, or give local directories",
    )
