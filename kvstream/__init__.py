"""kvstream: which KV-cache policy, which budget, and what it costs, measured exactly."""

from kvstream.cache import KVStreamCache
from kvstream.decode import Decoded, decode
from kvstream.policies import FixSizeL2, Full, Policy, RecentOnly, StreamingLLM, parse_policy
from kvstream.replay import replay

__all__ = ["Decoded", "FixSizeL2", "Full", "KVStreamCache", "Policy", "RecentOnly", "StreamingLLM"]
__all__ += ["decode", "parse_policy", "replay"]
