"""The policies, one file each. To add one: write its file, and name its class in `POLICIES`."""

from dataclasses import fields

from kvstream.policies.base import Axes, BoundedPolicy, Policy, Regions, parse_call
from kvstream.policies.fix_size_l2 import FixSizeL2
from kvstream.policies.full import Full
from kvstream.policies.recent_only import RecentOnly
from kvstream.policies.streaming_llm import StreamingLLM

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Full, StreamingLLM, RecentOnly, FixSizeL2)}

__all__ = ["POLICIES", "Axes", "BoundedPolicy", "FixSizeL2", "Full", "Policy", "RecentOnly", "Regions", "StreamingLLM"]
__all__ += ["parse_policy"]


def parse_policy(label: str) -> Policy:
    """Read a label back into its policy: `parse_policy(str(policy)) == policy`.

    Values may stand in the order of the fields or be named. Raises ValueError naming what is wrong and the remedy.
    """
    name, values, named = parse_call(label)
    if name not in POLICIES:
        raise ValueError(f"policy={label!r}: unknown name {name!r}; choose one of {', '.join(POLICIES)}")
    positional = [f.name for f in fields(POLICIES[name]) if not f.kw_only]
    try:
        return POLICIES[name](*values, **named)
    except TypeError:
        known = ", ".join(positional + [f.name for f in fields(POLICIES[name]) if f.kw_only])
        raise ValueError(f"policy={label!r}: its fields do not fit; {name} takes {known or 'none'}") from None
