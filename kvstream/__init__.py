"""kvstream: which KV-cache policy, which budget, and what it costs, measured exactly.

    load_model(name)              a model and its tokenizer
    KVStreamCache(model, policy)  a bounded cache for model.generate and any other call
    replay(model, ids, policy)    the loss of every token under a policy, in nats: exact, and fast
    decode(model, ids, policy)    the same one token at a time, as generation runs, and the seconds of each step
    generate(model, ids, policy)  new tokens under a policy, by the fastest steps that the device has
    recompute(model, ids, window)  the loss of a sample of tokens, each given the last tokens alone, from scratch: slow
    attention_loss(model, ids, policy)  the attention that a full cache pays to evicted tokens, by layer and head
    StreamingLLM(4, 252) …        the policies, one class each; parse_policy reads one from its label

A sweep's own file imports Grid and expand from kvstream.grid and main from kvstream.sweep.main. What needs torch is
imported when it is first used, so that `--dry-run` or a typing error need not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvstream.policies import POLICIES
from kvstream.policies import Policy as Policy
from kvstream.policies import parse_policy as parse_policy

if TYPE_CHECKING:
    from kvstream.engine.attention_loss import attention_loss as attention_loss
    from kvstream.engine.cache import KVStreamCache as KVStreamCache
    from kvstream.engine.decode import Decoded as Decoded
    from kvstream.engine.decode import decode as decode
    from kvstream.engine.generation import generate as generate
    from kvstream.engine.recompute import Recomputed as Recomputed
    from kvstream.engine.recompute import recompute as recompute
    from kvstream.engine.replay import replay as replay
    from kvstream.inputs.model_loading import load_model as load_model
    from kvstream.policies import *  # noqa: F403

_LATER = {
    "attention_loss": "engine.attention_loss",
    "KVStreamCache": "engine.cache",
    "Decoded": "engine.decode",
    "decode": "engine.decode",
    "generate": "engine.generation",
    "Recomputed": "engine.recompute",
    "recompute": "engine.recompute",
    "replay": "engine.replay",
    "load_model": "inputs.model_loading",
}
_CLASSES = {policy.__name__: policy for policy in POLICIES.values()}
globals().update(_CLASSES)
__all__ = [*_LATER, *_CLASSES, "Policy", "parse_policy"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'kvstream' has no attribute {name!r}")
    value = getattr(import_module(f"kvstream.{_LATER[name]}"), name)
    globals()[name] = value
    return value
