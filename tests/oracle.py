"""A token-by-token oracle: what a policy means, in float64 numpy, with the kept keys in plain Python lists.

It reads a model's `state_dict()` and `config` and nothing else: no forward pass of transformers, no import of kvstream.
Slow and literal on purpose. A step is: every layer computes q, k, v of token t; the query sees C_{t-1} and t; the
layer evicts. Keys are stored as projected, before RoPE, and rotated to wherever the position mode puts them.

Families: GPT-NeoX (partial rotary, parallel residual or not), Llama (GQA), Qwen2 (Llama with a bias on q, k, v).

V vocabulary, D hidden size, H query heads, G key-value heads, E head dimension, R rotary dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Spec:
    """A policy in the oracle's own words; each kind reads only its own fields, all read position and skip_layers."""

    kind: str = "full"  # full | streaming_llm | recent_only | fix_size_l2
    sinks: int = 0  # streaming_llm: s
    recent: int = 0  # streaming_llm: r; recent_only: w
    budget: int = 0  # fix_size_l2: B
    keep_ratio: float = 0.0  # fix_size_l2: ρ
    strategy: str = "keep_low"  # fix_size_l2: keep_low | keep_high | random
    seed: int = 0  # fix_size_l2 with random
    position: str = "cache"  # cache | absolute | frozen
    skip_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Everything a run produces, for T tokens."""

    nll_nats: np.ndarray  # (T-1,)
    likeliest: np.ndarray  # (T,): the token of the largest logit after each step
    kept: list[list[list[list[int]]]]  # kept[t][layer][head]: sorted token indices in the cache after step t
    norms: np.ndarray  # (T, layers, G): ‖K_j‖₂ of each key
    log_p: np.ndarray  # (T, V): of the next token, after each step


def oracle_nll(model, input_ids, spec: Spec) -> np.ndarray:
    """Negative log-likelihood of each next token in nats, (T-1,)."""
    return oracle_trace(model, input_ids, spec).nll_nats


def oracle_kept(model, input_ids, spec: Spec) -> list[list[list[list[int]]]]:
    """The cache after every step: [t][layer][head] → sorted token indices."""
    return oracle_trace(model, input_ids, spec).kept


def oracle_trace(model, input_ids, spec: Spec) -> Trace:
    """Run the model over `input_ids`, one token after another, evicting as `spec` says.

    In its place may stand what has a `position` and an `evict` of its own, as `Asked` and `literal.Literal`.
    """
    ids = [int(i) for i in np.asarray(input_ids).reshape(-1)]
    net = _Net(model)
    layers, heads = len(net.layers), net.kv_heads
    keys = [[[] for _ in range(heads)] for _ in range(layers)]  # [layer][head][j] → (E,), never rotated, never removed
    values = [[[] for _ in range(heads)] for _ in range(layers)]
    turned = [[{} for _ in range(heads)] for _ in range(layers)]  # [layer][head][j, place] → key j rotated so far
    written_at = [[] for _ in range(layers)]  # [layer][j] → the n that held when key j was written
    cache = [[[] for _ in range(heads)] for _ in range(layers)]  # C_{t-1}
    arrived = [[[] for _ in range(heads)] for _ in range(layers)]  # [layer][head][j] → key j as it was when it came
    indexed = [[[] for _ in range(heads)] for _ in range(layers)]  # [layer][head][j] → key j rotated to j
    kept, norms, nll, likeliest, log_p = [], [], [], [], []

    for t, token in enumerate(ids):
        x = net.embedding_VD[token]
        attention = [[] for _ in range(layers)]  # [layer][query head] → softmax over what it sees
        for i, layer in enumerate(net.layers):
            n = len(cache[i][0])
            assert all(len(c) == n for c in cache[i]), "the heads of a layer keep equally many keys"
            written_at[i].append(n)
            q_HE, k_GE, v_GE = layer.project(x)
            query_position = t if spec.position == "absolute" else n
            heard = []
            for h in range(len(q_HE)):
                g = h // (len(q_HE) // heads)
                if len(keys[i][g]) == t:
                    keys[i][g].append(k_GE[g])
                    values[i][g].append(v_GE[g])
                    arrived[i][g].append(net.rotate(k_GE[g], query_position))
                    indexed[i][g].append(net.rotate(k_GE[g], t))
                places = [_position(spec.position, rank, j, written_at[i]) for rank, j in enumerate(cache[i][g])]
                seen, places = [*cache[i][g], t], [*places, query_position]
                q = net.rotate(q_HE[h], query_position)
                for j, place in zip(seen, places):
                    if (j, place) not in turned[i][g]:
                        turned[i][g][j, place] = net.rotate(keys[i][g][j], place)
                scores = [q @ turned[i][g][one] / math.sqrt(len(q)) for one in zip(seen, places)]
                attention[i].append(_softmax(np.array(scores)))
                heard.append(attention[i][h] @ np.array([values[i][g][j] for j in seen]))
            x = layer.combine(x, np.concatenate(heard))
        norms.append([[np.linalg.norm(keys[i][g][t]) for g in range(heads)] for i in range(layers)])
        for i in range(layers):
            if not isinstance(spec, Spec):
                cache[i] = spec.evict(i, [[*c, t] for c in cache[i]], arrived[i], indexed[i], values[i], attention[i])
                continue
            for g in range(heads):
                cache[i][g].append(t)
                if i not in spec.skip_layers:
                    norm_of = {j: norms[j][i][g] for j in cache[i][g]}
                    cache[i][g] = evict(cache[i][g], norm_of, spec, layer=i, head=g, t=t)
        kept.append([[list(c) for c in heads_kept] for heads_kept in cache])
        logits = net.logits(x)
        likeliest.append(int(logits.argmax()))
        log_p.append(_log_softmax(logits))
        if t + 1 < len(ids):
            nll.append(-log_p[-1][ids[t + 1]])
    return Trace(np.array(nll), np.array(likeliest), kept, np.array(norms), np.array(log_p))


def _position(mode: str, rank: int, j: int, written_at: Sequence[int]) -> int:
    return {"cache": rank, "absolute": j, "frozen": written_at[j]}[mode]


# ---------------------------------------------------------------------------------------------------- who stays


def evict(members: list[int], norm_of: dict[int, float], spec: Spec, *, layer: int, head: int, t: int) -> list[int]:
    """The tokens of `members` (sorted, the newest is t) that survive step t; at most one leaves."""
    if spec.kind == "full":
        return members
    if spec.kind == "streaming_llm":
        return [j for j in members if j < spec.sinks or t - j < spec.recent]
    if spec.kind == "recent_only":
        return [j for j in members if t - j < spec.recent]
    assert spec.kind == "fix_size_l2", spec.kind
    protected = protected_of(spec.budget, spec.keep_ratio)
    k = spec.budget - protected
    if k <= 0:
        return [j for j in members if t - j < protected]
    if len(members) <= spec.budget:
        return members
    zone = [j for j in members if t - j >= protected]
    assert len(zone) == k + 1, (zone, k)
    # Among equals the older token stays, so the newest of them leaves.
    if spec.strategy == "keep_low":
        leaver = max(zone, key=lambda j: (norm_of[j], j))
    elif spec.strategy == "keep_high":
        leaver = min(zone, key=lambda j: (norm_of[j], -j))
    else:
        assert spec.strategy == "random", spec.strategy
        leaver = zone[draw(spec.seed, layer, head, t, k + 1)]
    return [j for j in members if j != leaver]


class Asked:
    """In place of a Spec: any policy of kvstream, of which only the decisions are asked, one step after another.

    Its formulas are thus the policy's own; `literal.py` has those of each a second time.

    Those are `regions_of`, `shed`, `scored_by`, `token_scores`, `update_scores`, `queries_heard`, `pooled`, `per_age`,
    `draws` and `shared_by_heads`; what follows from them is done here, so a policy needs no closed form of its own. It
    serves one run.
    """

    def __init__(self, policy) -> None:
        self.policy, self.position = policy, getattr(policy, "position", "cache")
        self.scores: dict[int, list[dict[int, float]]] = {}  # [layer][head][j]
        self.heard: dict[int, list[list[dict[int, np.ndarray]]]] = {}  # [layer][t][head][j] → attention, by query head

    def evict(self, layer: int, members, arrived, indexed, values, attention) -> list[list[int]]:
        """The tokens of `members`, per head and by age, that survive; arrived, indexed: keys rotated, see the loop."""
        policy, heads, t = self.policy, len(members), members[0][-1]
        if (regions := policy.regions_of(layer)) is None:
            return members
        scores = self.scores.setdefault(layer, [{} for _ in range(heads)])
        if policy.scored_by == "token":
            newest = (
                torch.tensor(np.array([each[h][t] for h in range(heads)]))[None, :, None] for each in (arrived, values)
            )
            for own, score in zip(scores, policy.token_scores(*newest)[0, :, 0].tolist()):
                own[t] = score
        elif policy.scored_by == "attention":
            by_head = np.array(attention).reshape(heads, -1, len(members[0]))
            heard = self.heard.setdefault(layer, [])
            heard.append([{j: by_head[h, :, n] for n, j in enumerate(each)} for h, each in enumerate(members)])
            if policy.queries_heard:  # anew at every step, from the last queries alone
                scores[:] = [{} for _ in range(heads)]
                heard = heard[-policy.queries_heard :]
            for queries in heard if policy.queries_heard else heard[-1:]:
                self._hear(scores, members, queries)
        full, left = policy.shed(regions)
        if len(members[0]) < full:
            return members
        drawn = policy.draws(layer, heads, range(t, t + 1))
        kept = []
        for head, each in enumerate(members):
            zone = [j for j in each if j >= regions.sinks and t - j >= regions.recent]
            assert len(zone) == full - regions.sinks - regions.recent, (zone, regions)
            if policy.scored_by == "nothing":
                gone = [zone[0 if drawn is None else int(drawn[head, 0])]]
                assert left == full - 1
            else:
                asked = range(heads) if policy.shared_by_heads else [head]
                found = [
                    {j: -similarity(j, members[h], indexed[h]) for j in zone}
                    if policy.scored_by == "similarity"
                    else scores[h]
                    for h in asked
                ]
                score_of = {j: sum(own[j] for own in found) / len(found) for j in zone}
                if policy.per_age:
                    score_of = {j: score / (t - j + 1) for j, score in score_of.items()}
                reach = policy.pooled // 2
                near = {j: zone[max(0, n - reach) : n + reach + 1] for n, j in enumerate(zone)}
                score_of = {j: sum(score_of[i] for i in near[j]) / policy.pooled for j in zone}
                gone = []
                while len(gone) < full - left:
                    lowest = min(score_of.values())
                    equals = [j for j in score_of if score_of[j] <= lowest + 1e-12 * abs(lowest)]  # but for rounding
                    gone.append(max(equals))
                    del score_of[gone[-1]]
            kept.append([j for j in each if j not in gone])
        return kept

    def _hear(self, scores, members, queries) -> None:
        """Let the policy score anew, given one query's attention; who came after it received none."""
        before = torch.tensor([[own.get(j, 0.0) for j in each] for own, each in zip(scores, members)])[None].double()
        nothing = np.zeros_like(next(iter(queries[0].values())))
        probs = [np.array([own.get(j, nothing) for j in each]).T for own, each in zip(queries, members)]
        after = self.policy.update_scores(before, torch.tensor(np.array(probs))[None])[0].tolist()
        for own, each, score in zip(scores, members, after):
            own.update(zip(each, score))


def similarity(j: int, members: Sequence[int], keys: Sequence[np.ndarray]) -> float:
    """The cosine of the angle between a key and the sum of the unit vectors along all members' keys."""
    total = sum(keys[i] / np.linalg.norm(keys[i]) for i in members)
    return float(keys[j] @ total / np.linalg.norm(keys[j]) / np.linalg.norm(total))


def protected_of(budget: int, keep_ratio: float) -> int:
    """P = ⌊Bρ⌋, where ρ is the simple fraction that the float stands for."""
    return math.floor(budget * Fraction(keep_ratio).limit_denominator(10**6))


def draw(seed: int, layer: int, head: int, t: int, n: int) -> int:
    """A number in [0, n) that depends on nothing but the arguments."""
    hashed = _mix(_mix(_mix(_mix(seed) ^ layer) ^ head) ^ t)
    return ((hashed >> 32) * n) >> 32


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


# ---------------------------------------------------------------------------------------------------- the network


class _Net:
    """The weights of one model, and the parts of the forward pass that no layer owns."""

    def __init__(self, model) -> None:
        config = model.config
        self.w = {name: tensor.detach().double().cpu().numpy() for name, tensor in model.state_dict().items()}
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        rope = config.rope_parameters
        assert rope.get("rope_type", "default") == "default", rope
        neox = config.model_type == "gpt_neox"
        rotary = int(self.head_dim * rope.get("partial_rotary_factor", 1.0)) if neox else self.head_dim
        self.inv_freq = np.array([rope["rope_theta"] ** (-2.0 * i / rotary) for i in range(rotary // 2)])
        layer_class, prefix, embedding = (
            (_NeoXLayer, "gpt_neox.layers", "gpt_neox.embed_in.weight")
            if neox
            else (_LlamaLayer, "model.layers", "model.embed_tokens.weight")
        )
        assert neox or config.model_type in ("llama", "qwen2"), config.model_type
        self.layers = [layer_class(self, f"{prefix}.{i}.", config) for i in range(config.num_hidden_layers)]
        self.embedding_VD = self.w[embedding]
        head = "lm_head.weight" if "lm_head.weight" in self.w else "embed_out.weight"  # GPT-NeoX's older name
        self.unembedding_VD = self.embedding_VD if config.tie_word_embeddings else self.w[head]
        self.neox, self.config = neox, config

    def rotate(self, vector: np.ndarray, position: int) -> np.ndarray:
        """RoPE in the rotate-half convention: dimension i is paired with i + R/2; those from R on stay."""
        half = len(self.inv_freq)
        cos, sin = np.cos(position * self.inv_freq), np.sin(position * self.inv_freq)
        a, b = vector[:half], vector[half : 2 * half]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, vector[2 * half :]])

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        bias = self.w.get(f"{name}.bias")
        return self.w[f"{name}.weight"] @ x + (0.0 if bias is None else bias)

    def logits(self, x: np.ndarray) -> np.ndarray:
        last = (
            self.layer_norm("gpt_neox.final_layer_norm", x, self.config.layer_norm_eps)
            if self.neox
            else self.rms_norm("model.norm", x, self.config.rms_norm_eps)
        )
        return self.unembedding_VD @ last

    def layer_norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(x.var() + eps)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def rms_norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt((x * x).mean() + eps) * self.w[f"{name}.weight"]


class _NeoXLayer:
    def __init__(self, net: _Net, prefix: str, config) -> None:
        self.net, self.prefix, self.eps = net, prefix, config.layer_norm_eps
        self.parallel, self.activation = config.use_parallel_residual, _activation(config.hidden_act)

    def project(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        normed = self.net.layer_norm(self.prefix + "input_layernorm", x, self.eps)
        fused = self.net.linear(self.prefix + "attention.query_key_value", normed)
        q, k, v = fused.reshape(self.net.heads, 3, self.net.head_dim).transpose(1, 0, 2)
        return q, k, v

    def combine(self, x: np.ndarray, heard: np.ndarray) -> np.ndarray:
        attended = self.net.linear(self.prefix + "attention.dense", heard)
        before_mlp = x if self.parallel else x + attended
        inner = self.net.layer_norm(self.prefix + "post_attention_layernorm", before_mlp, self.eps)
        inner = self.activation(self.net.linear(self.prefix + "mlp.dense_h_to_4h", inner))
        return x + attended + self.net.linear(self.prefix + "mlp.dense_4h_to_h", inner)


class _LlamaLayer:
    def __init__(self, net: _Net, prefix: str, config) -> None:
        self.net, self.prefix, self.eps = net, prefix, config.rms_norm_eps
        self.activation = _activation(config.hidden_act)

    def project(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        normed = self.net.rms_norm(self.prefix + "input_layernorm", x, self.eps)
        q, k, v = (self.net.linear(f"{self.prefix}self_attn.{p}_proj", normed) for p in "qkv")
        return tuple(p.reshape(-1, self.net.head_dim) for p in (q, k, v))

    def combine(self, x: np.ndarray, heard: np.ndarray) -> np.ndarray:
        x = x + self.net.linear(self.prefix + "self_attn.o_proj", heard)
        inner = self.net.rms_norm(self.prefix + "post_attention_layernorm", x, self.eps)
        gate = self.activation(self.net.linear(self.prefix + "mlp.gate_proj", inner))
        up = self.net.linear(self.prefix + "mlp.up_proj", inner)
        return x + self.net.linear(self.prefix + "mlp.down_proj", gate * up)


def _activation(name: str):
    return {"gelu": _gelu, "silu": _silu}[name]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * np.array([1.0 + math.erf(v / math.sqrt(2.0)) for v in x])


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


if __name__ == "__main__":
    # Keep what the engine's tests ask: see oracle_store.py.
    import os
    import subprocess
    import sys

    assert sys.argv[1:] == ["--store"], "python tests/oracle.py --store"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "tests/engine", "-m", "not slow and not long"]
    sys.exit(subprocess.run(command, env=os.environ | {"KVSTREAM_STORE_ORACLE": "1"}).returncode)
