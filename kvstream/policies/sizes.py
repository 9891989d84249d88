"""How many tokens policies keep, layer by layer. Knows no model: the number of layers is said."""

from collections.abc import Iterable

from kvstream.policies.base import Policy


def kept_by_layer(policy: Policy, layers: int, tokens: int) -> tuple[int, ...]:
    """Tokens that each layer keeps, per kv-head, after `tokens` tokens."""
    bound = policy.in_layers(layers)
    return tuple(bound.kept(layer, tokens) for layer in range(layers))


def tokens_from_full(policy: Policy, layers: int) -> int | None:
    """How many first tokens all layers hold under a policy as under full; None: any number."""
    alike = map(policy.in_layers(layers).tokens_from_full, range(layers))
    return min((most for most in alike if most is not None), default=None)


def evicts_after(policy: Policy, layers: int) -> int | None:
    """After how many tokens the first layer evicts; None: none ever does."""
    held = map(policy.in_layers(layers).evicts_after, range(layers))
    return min((most for most in held if most is not None), default=None)


def full_after(policy: Policy, layers: int) -> int | None:
    """After how many tokens every layer that ever evicts is full; None: none ever does."""
    bound = policy.in_layers(layers)
    budgets = [regions.budget for regions in map(bound.regions_of, range(layers)) if regions]
    return max(budgets, default=None)


def evicts(policy: Policy, layers: int, tokens: int) -> bool:
    """Whether any layer has evicted after `tokens` tokens."""
    most = evicts_after(policy, layers)
    return most is not None and tokens > most


def distinct_sizes(policies: Iterable[Policy], layers: int, tokens: int) -> list[Policy]:
    """Of the policies that have evicted after `tokens` tokens, the first for each way of keeping so many."""
    found: dict[tuple[int, ...], Policy] = {}
    for policy in policies:
        if evicts(policy, layers, tokens):
            found.setdefault(kept_by_layer(policy, layers, tokens), policy)
    return list(found.values())
