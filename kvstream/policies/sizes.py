"""How many tokens policies keep, layer by layer. Knows no model: the number of layers is said."""

from collections.abc import Iterable

from kvstream.policies.base import Policy


def kept_by_layer(policy: Policy, layers: int, tokens: int) -> tuple[int, ...]:
    """Tokens that each layer keeps, per kv-head, after `tokens` tokens."""
    return tuple(policy.kept(layer, tokens) for layer in range(layers))


def evicts(policy: Policy, layers: int, tokens: int) -> bool:
    """Whether any layer has evicted after `tokens` tokens."""
    return min(kept_by_layer(policy, layers, tokens)) < tokens


def distinct_sizes(policies: Iterable[Policy], layers: int, tokens: int) -> list[Policy]:
    """Of the policies that have evicted after `tokens` tokens, the first for each way of keeping so many."""
    found: dict[tuple[int, ...], Policy] = {}
    for policy in policies:
        if evicts(policy, layers, tokens):
            found.setdefault(kept_by_layer(policy, layers, tokens), policy)
    return list(found.values())
