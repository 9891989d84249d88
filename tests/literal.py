"""What each policy of kvstream decides, written a second time from its definition: no import of kvstream.

Definitions are the papers', where these say enough; which reading kvstream takes elsewhere (ties, what `snapkv`'s
budget counts, that a cut of `l2_compress` takes one at least) is the policy's docstring's.

Tokens, scores and attention stand in plain dictionaries, and every step looks at all of them. `oracle.oracle_trace`
runs the model and asks `Literal.evict` after each token; see there for the shapes. Of equals the youngest leaves.
"""

import math
from collections import deque
from fractions import Fraction

import numpy as np
from oracle import draw

ROUNDING = 1e-12  # sums of the same numbers in another order differ by less


class Literal:
    """A policy by its name and its fields, over one run."""

    def __init__(self, name: str, *, position: str = "cache", skip_layers: tuple[int, ...] = (), **fields) -> None:
        self.decide, self.fields = getattr(self, name), fields
        self.position, self.skip_layers = position, skip_layers
        self.sums: dict[tuple[int, int, int], float] = {}  # h2o: (layer, head, token) → attention received so far
        self.queries: dict[tuple[int, int], deque] = {}  # snapkv: (layer, head) → what the last queries gave each token

    def evict(self, layer, members, arrived, indexed, values, attention):
        """The tokens of `members`, per head and by age, that survive the step of the last one."""
        if layer in self.skip_layers:
            return members
        shared = len(attention) // len(members)
        gave = []  # [head] → {token: mean of the query heads that share the kv-head}
        for head, tokens in enumerate(members):
            group = attention[head * shared : (head + 1) * shared]
            gave.append({j: sum(one[n] for one in group) / shared for n, j in enumerate(tokens)})
        keys, kept = {"arrived": arrived, "indexed": indexed}, []
        for head, tokens in enumerate(members):
            gone = self.decide(layer, head, tokens, keys, gave, **self.fields)
            kept.append([j for j in tokens if j not in gone])
        return kept

    def sink_l2(self, layer, head, tokens, keys, gave, *, budget, recent_size, start_size=4):
        """The largest norm between sinks and recents."""
        zone = between(tokens, start_size, recent_size)
        return lowest({j: -length(keys["arrived"][head][j]) for j in zone}, len(tokens) - budget)

    def sink_random(self, layer, head, tokens, keys, gave, *, budget, recent_size, start_size=4, seed=0):
        """One between sinks and recents, drawn anew."""
        zone = between(tokens, start_size, recent_size)
        return {zone[draw(seed, layer, head, tokens[-1], len(zone))]} if len(tokens) > budget else set()

    def keydiff(self, layer, head, tokens, keys, gave, *, budget, recent_size, start_size=0):
        """The largest cosine with the sum of all unit keys, each rotated to its index."""
        own = keys["indexed"][head]
        total = np.sum([own[j] / length(own[j]) for j in tokens], axis=0)
        alike = {j: own[j] @ total / length(own[j]) / length(total) for j in between(tokens, start_size, recent_size)}
        return lowest({j: -cosine for j, cosine in alike.items()}, len(tokens) - budget)

    def l2_compress(self, layer, head, tokens, keys, gave, *, keep_ratio, prune_after):
        """All but the smallest ⌈ρP⌉ norms, once there are P; one leaves at least, and one stays but for ρ = 0."""
        if len(tokens) < prune_after:
            return set()
        stay = math.ceil(Fraction(keep_ratio).limit_denominator(10**6) * prune_after)
        stay = prune_after - 1 if stay == prune_after else stay
        return lowest({j: -length(keys["arrived"][head][j]) for j in tokens}, len(tokens) - stay)

    def h2o(self, layer, head, tokens, keys, gave, *, budget, recent_size, start_size=0, normalise="none"):
        """The smallest sum of attention since the token came, its own query's included."""
        for j, weight in gave[head].items():
            self.sums[layer, head, j] = self.sums.get((layer, head, j), 0.0) + weight
        age = {j: tokens[-1] - j + 1 if normalise == "age" else 1 for j in tokens}
        zone = between(tokens, start_size, recent_size)
        return lowest({j: self.sums[layer, head, j] / age[j] for j in zone}, len(tokens) - budget)

    def tova(self, layer, head, tokens, keys, gave, *, budget):
        """What the last query attends to least in the mean of all heads, the newest token among them."""
        mean = {j: sum(one[j] for one in gave) / len(gave) for j in tokens}
        return lowest(mean, len(tokens) - budget)

    def snapkv(self, layer, head, tokens, keys, gave, *, budget, window=32, kernel=5, every=128):
        """Every so many steps, so many at once: by what the last queries gave, averaged over neighbours."""
        queries = self.queries.setdefault((layer, head), deque(maxlen=window))
        queries.append(gave[head])
        if len(tokens) <= budget:
            return set()
        older = between(tokens, 0, window)
        given = [sum(query[j] for query in queries) for j in older]
        padded = [0.0] * (kernel // 2) + given + [0.0] * (kernel // 2)
        pooled = {j: sum(padded[n : n + kernel]) / kernel for n, j in enumerate(older)}
        return lowest(pooled, every)


def between(tokens, sinks, recents):
    """Those that are neither among the text's first tokens nor among the last ones."""
    return [j for j in tokens if j >= sinks and tokens[-1] - j >= recents]


def lowest(scores, count):
    """So many tokens of the lowest scores, if any; of equals the youngest."""
    gone = set()
    for _ in range(count):
        least = min(scores.values())
        leaver = max(j for j, score in scores.items() if score - least <= ROUNDING * abs(least))
        gone.add(leaver)
        scores = {j: score for j, score in scores.items() if j != leaver}
    return gone


def length(vector):
    """The L2 norm."""
    return math.sqrt(vector @ vector)
