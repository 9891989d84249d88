"""What the oracle found, kept between runs: a trace takes a tenth of a second, and the tests ask for some hundreds.

Whatever decides a result is in its digest: the oracle's source, the model's weights, the tokens, the policy. What is
not in the store is computed, so nothing wrong can be read out of it; a sample of what is in it is computed again in
each run of tests/engine/test_oracle.py.

python tests/oracle.py --store      runs the engine's tests and keeps what they ask the oracle
"""

import ast
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import oracle
import torch
from oracle import Spec, oracle_trace

STORE = Path(__file__).with_name("oracle_results.npz")


@dataclass(frozen=True)
class Found:
    """What is kept of a trace."""

    nll_nats: np.ndarray  # (T-1,), float64
    likeliest: np.ndarray  # (T,)


@lru_cache
def source_digest() -> str:
    """Digest of the oracle's code, whatever its comments and line breaks."""
    tree = ast.parse(Path(oracle.__file__).read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # the command that keeps results
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


CONFIG = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
CONFIG += ("hidden_act", "layer_norm_eps", "rms_norm_eps", "rope_parameters", "tie_word_embeddings")
CONFIG += ("use_parallel_residual",)  # what the oracle reads of a configuration


@lru_cache
def weights_digest(model) -> str:
    """Digest of a model's configuration and weights."""
    config = {name: getattr(model.config, name, None) for name in CONFIG}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.double().numpy().tobytes())
    return digest.hexdigest()


class Store:
    """Results by digest. `build` makes the model of a family, in float64, with a vocabulary of that size."""

    def __init__(self, build, path: Path = STORE) -> None:
        self.build, self.path = build, path
        self.kept: dict[str, Found] = {}
        self.inputs: dict[str, str] = {}
        self.asked: dict[str, str] = {}  # digest → inputs, of this run
        if path.exists():
            with np.load(path) as file:
                ends, inputs = file["ends"], file["inputs"].tobytes().decode().split("\n")
                nll, likeliest = np.split(file["nll"], ends[:-1]), np.split(file["likeliest"], ends[:-1])
                for one, digest in enumerate(file["digests"].tolist()):
                    self.kept[digest] = Found(nll[one][:-1], likeliest[one])
                    self.inputs[digest] = inputs[one]

    def trace(self, family: str, ids: tuple[int, ...], spec: Spec, vocab: int) -> Found:
        """The oracle's answer, out of the store or computed now."""
        inputs = json.dumps([family, vocab, list(ids), vars(spec)])
        digest = self.digest(inputs)
        self.asked[digest] = inputs
        if digest not in self.kept:
            self.kept[digest] = self.compute(inputs)
        return self.kept[digest]

    def digest(self, inputs: str) -> str:
        """What names a result."""
        family, vocab, *_ = json.loads(inputs)
        weights = weights_digest(self.build(family, torch.float64, vocab))
        return hashlib.sha256(f"{source_digest()} {weights} {inputs}".encode()).hexdigest()[:32]

    def compute(self, inputs: str) -> Found:
        """What the oracle finds now."""
        family, vocab, ids, spec = json.loads(inputs)
        spec = Spec(**spec | {"skip_layers": tuple(spec["skip_layers"])})
        trace = oracle_trace(self.build(family, torch.float64, vocab), ids, spec)
        return Found(trace.nll_nats, trace.likeliest)

    def save(self) -> None:
        """Keep what this run has asked for, and nothing else."""
        asked = sorted(self.asked)
        found = [self.kept[digest] for digest in asked]
        np.savez_compressed(
            self.path,
            digests=np.array(asked),
            inputs=np.frombuffer("\n".join(self.asked[digest] for digest in asked).encode(), np.uint8),
            ends=np.cumsum([len(each.likeliest) for each in found]),
            nll=np.concatenate([np.append(each.nll_nats, 0.0) for each in found]),  # as long as the tokens
            likeliest=np.concatenate([each.likeliest for each in found]).astype(np.int32),
        )
