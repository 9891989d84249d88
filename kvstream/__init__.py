"""kvstream: which KV-cache policy, which budget, and what it costs, measured exactly.

Names are imported when first used, so that a sweep's `--dry-run` or a typing error need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstream.engine.cache import KVStreamCache
    from kvstream.engine.decode import Decoded, decode
    from kvstream.engine.replay import replay
    from kvstream.inputs.model_loading import load_model
    from kvstream.policies import FixSizeL2, Full, Policy, RecentOnly, StreamingLLM, parse_policy

_MODULES = {
    "KVStreamCache": "engine.cache",
    "Decoded": "engine.decode",
    "decode": "engine.decode",
    "replay": "engine.replay",
}
_MODULES |= dict.fromkeys(("FixSizeL2", "Full", "Policy", "RecentOnly", "StreamingLLM", "parse_policy"), "policies")
_MODULES |= {"load_model": "inputs.model_loading"}

__all__ = ["Decoded", "FixSizeL2", "Full", "KVStreamCache", "Policy", "RecentOnly", "StreamingLLM", "decode"]
__all__ += ["load_model", "parse_policy", "replay"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kvstream' has no attribute {name!r}")
    value = getattr(import_module(f"kvstream.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
