"""What a policy's dataclass fields tell about it."""

from __future__ import annotations

from typing import Any

from kvstream.policies.base import BoundedPolicy, Policy


def policy_fields(policy: Policy) -> dict[str, Any]:
    """The axes of a policy as the report groups by them."""
    regions = policy.regions
    bounded = policy if isinstance(policy, BoundedPolicy) else None
    return {
        "policy": str(policy),
        "policy_name": policy.name,
        "strategy": getattr(policy, "strategy", None),
        "position_mode": bounded.position if bounded else None,
        "budget": regions.budget if regions else None,
        "start_size": regions.sinks if regions and not regions.contested else None,
        "skip_layers": ",".join(map(str, bounded.skip_layers)) if bounded else "",
    }
