"""What a KV-cache policy is: which tokens a layer keeps once its budget is full.

Every bounded policy of kvstream has the same shape, *protected sinks + protected recents + a contest for the rest*,
so a policy only states three sizes (`Regions`) and, if anything is contested, who leaves. The mechanics (slots,
lifetimes, rotation) stand once, in `kvstream.engine.cache`. A policy knows neither transformers nor Ray nor files.

Shape legend: B batch, H kv-heads, G query heads per kv-head, S tokens, D head size.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from kvstream.policies.fields import Axis, check_fields, refuse
from kvstream.policies.labels import write_label
from kvstream.policies.layer_budgets import LayerBudgets, pyramid

if TYPE_CHECKING:
    import numpy as np
    import torch

Position = Literal["cache", "absolute", "frozen"]
ScoredBy = Literal["nothing", "token", "attention", "similarity"]


@dataclass(frozen=True)
class Regions:
    """How a budget is divided: the first `sinks` tokens, `contested` older ones, the newest `recent`."""

    sinks: int
    contested: int
    recent: int

    @property
    def budget(self) -> int:
        """Cached tokens per layer and kv-head."""
        return self.sinks + self.contested + self.recent


def key_norms(keys_BHSD: torch.Tensor) -> torch.Tensor:
    """L2 norms of keys, (B, H, S), in float32 or wider: in bfloat16 hundreds of keys would share a few dozen norms."""
    return (keys_BHSD.float() if keys_BHSD.element_size() < 4 else keys_BHSD).norm(dim=-1)


@dataclass(frozen=True)
class Policy(ABC):
    """Base of all policies. `str(policy)` is its label in records, tables and charts, and `parse_policy` reads it back.

    A subclass sets `name`, and either `regions` or, as `Full` does, leaves it None: nothing is ever evicted.
    """

    name: ClassVar[str]
    shared_by_heads: ClassVar[bool] = False  # one kept set per layer, by the heads' mean score, instead of one per head
    scores_turned_alike: ClassVar[bool] = False  # a token's score is the same however RoPE turned its key, as norms are
    attention_memory: ClassVar[float | None] = None  # see `update_scores`
    scorer: ClassVar[str | None] = None  # what it is called where sinks and recents are protected and scorers compared
    layers: ClassVar[int | None] = None  # of the model, where `in_layers` has said it

    @property
    def regions(self) -> Regions | None:
        """The division of the budget, or None for a policy that never evicts."""
        return None

    @classmethod
    def at_budget(cls, budget: int, **fields: Any) -> Policy:  # noqa: ARG003
        """Build the policy of this class at `budget` whose fields with an axis hold these values."""
        return cls(**fields)

    def __post_init__(self) -> None:
        """Check each field as it is declared; a subclass that checks more calls this first."""
        check_fields(self)

    @property
    def scored_by(self) -> ScoredBy:
        """What a contested token's score is made of; the lowest score leaves, of equals the youngest.

        "token": its key and value, once, as it comes (`token_scores`). "attention": what it receives, at every step
        (`update_scores`). "similarity": how little its key points where all that are held do. "nothing": no token is
        contested, or who leaves is drawn (`draws`).
        """
        return "nothing"

    def token_scores(self, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Score tokens by what they are, shape (B, H, S); asked of a policy scored by token.

        Keys come rotated: to their index in the text, or in mode "frozen" to where they stood when they came. Where
        `scores_turned_alike` is set they may come unrotated.
        """
        raise TypeError(f"{self.name} is scored by {self.scored_by}; a policy scored by token defines token_scores")

    def update_scores(self, scores_BHS: torch.Tensor, probs_BHGS: torch.Tensor) -> torch.Tensor:
        """Return the scores after one more query, shape (B, H, S), float64; asked of a policy scored by attention.

        probs_BHGS: that query's softmax attention to the cached tokens and to itself, by age, for each query head that
        shares a kv-head. scores_BHS: of the same tokens before; the query's own token has 0.

        Where `attention_memory` is set, that share of a score stays and the mean of the heads' attention is added: all
        of it at 1, the last query's alone at 0. Such policies are compiled; others take some Python steps per token.
        A class with both is refused: one derived from another that sets it sets it to None before it scores otherwise.
        """
        if self.attention_memory is None:
            raise TypeError(f"{self.name} is scored by {self.scored_by}; one scored by attention defines update_scores")
        return self.attention_memory * scores_BHS + probs_BHGS.mean(2)

    @property
    def scores_in_python(self) -> bool:
        """Whether `update_scores` is asked query by query, which takes some Python steps per token."""
        return self.scored_by == "attention" and self.attention_memory is None

    @property
    def per_age(self) -> bool:
        """Whether a score from attention is divided by its token's age, the queries that saw it, before it decides."""
        return False

    @property
    def queries_heard(self) -> int:
        """How many queries, the last before tokens leave, count in a score from attention; 0: all."""
        return 0

    @property
    def pooled(self) -> int:
        """Over how many neighbours by age (odd) scores from attention are averaged before they decide; see `SnapKV`."""
        return 1

    def shed(self, regions: Regions) -> tuple[int, int]:
        """At how many tokens held, the new one included, contested ones leave, and how many are left then."""
        return regions.budget + 1, regions.budget

    def in_turn(self, layer: int) -> bool:
        """Whether in that layer who leaves follows from who stayed, so that tokens must be taken one after another."""
        regions = self.regions_of(layer)
        if regions is None or not regions.contested:
            return False
        leave_singly = self.shed(regions) == (regions.budget + 1, regions.budget)
        return not leave_singly or self.scored_by in ("attention", "similarity")

    def draws(self, layer: int, heads: int, steps: range) -> np.ndarray | None:  # noqa: ARG002
        """Draw who leaves: shape (heads, len(steps)), the rank by age in 0 … contested. None: scores decide."""
        return None

    def regions_of(self, layer: int) -> Regions | None:  # noqa: ARG002
        """Regions of one layer: None where the layer never evicts."""
        return self.regions

    def in_layers(self, layers: int) -> Self:
        """Return the same policy, equal to it, that knows how many layers there are: budgets may differ by layer."""
        bound = copy.copy(self)
        object.__setattr__(bound, "layers", layers)
        return bound

    def tokens_from_full(self, layer: int) -> int | None:
        """How many first tokens leave this layer just what a full cache holds, so that it can start from that.

        None: any number. As many as are protected; none where tokens are taken in turn, from the first one on.
        """
        regions = self.regions_of(layer)
        if regions is None:
            return None
        return 0 if self.in_turn(layer) else regions.sinks + regions.recent

    def evicts_after(self, layer: int) -> int | None:
        """How many first tokens of a text this layer holds all of; None: any number."""
        regions = self.regions_of(layer)
        if regions is None:
            return None
        return self.shed(regions)[0] - 1 if regions.contested else regions.budget

    def kept(self, layer: int, tokens: int) -> int:
        """Count the tokens that `layer` keeps per kv-head after `tokens` steps: the most that it held after any."""
        most = self.evicts_after(layer)
        return tokens if most is None else min(tokens, most)

    def __str__(self) -> str:
        """Write the policy's label."""
        return write_label(self)


@dataclass(frozen=True)
class BoundedPolicy(Policy):
    """A policy with a budget. Adds the two axes that all of them share.

    position: what RoPE sees: "cache", a key's rank among the kept ones (StreamingLLM as published); "absolute", its
        index in the text; "frozen", the rank it had when it was written (a common bug, kept to show what it does).
    skip_layers: layers that never evict, so their memory is not bounded.
    layer_budgets: "uniform", every layer has the budget; "pyramid", it is their mean (see `layer_budgets`).
    """

    position: Annotated[Position, Axis("positions", ("cache",), "what RoPE sees of a key")] = field(
        default="cache", kw_only=True
    )
    skip_layers: Annotated[tuple[int, ...], Axis("skip_layers", ((),), "layers that never evict")] = field(
        default=(), kw_only=True
    )
    layer_budgets: Annotated[
        LayerBudgets, Axis("layer_budgets", ("uniform",), "how layers share the budget of all")
    ] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        """Check the fields, and that together they leave each region 0 tokens or more, and one in all."""
        super().__post_init__()
        regions = self.regions
        if min(regions.sinks, regions.contested, regions.recent) < 0 or regions.budget < 1:
            raise ValueError(
                f"{self}: not a budget, as {regions.sinks} sinks, {regions.contested} contested and {regions.recent} "
                "recent tokens would stay; give each 0 or more, and in all at least 1"
            )

    @property
    @abstractmethod
    def regions(self) -> Regions:
        """The division of the budget."""

    @property
    def in_every_layer(self) -> int:
        """Tokens that each layer keeps however layers share the budget: what is protected beside contested tokens."""
        return max(1, self.regions.sinks + (self.regions.recent if self.regions.contested else 0))

    def regions_of(self, layer: int) -> Regions | None:
        """Regions of one layer, None if it never evicts; layers differ in their contested tokens, else in recents."""
        regions, skipped = self.regions, self.skip_layers
        if layer in skipped or self.layer_budgets == "uniform":
            return None if layer in skipped else regions
        if self.layers is None:
            raise refuse(self, "layer_budgets", self.layer_budgets, "say of how many layers: in_layers(number)")
        place = layer - sum(each < layer for each in skipped)
        sizes = pyramid(regions.budget - self.in_every_layer, self.layers - sum(each < self.layers for each in skipped))
        rest = self.in_every_layer + sizes[place] - regions.sinks
        if not regions.contested:
            return Regions(regions.sinks, 0, rest)
        return Regions(regions.sinks, rest - regions.recent, regions.recent)

    @classmethod
    def at_budget(cls, budget: int, **fields: Any) -> BoundedPolicy:
        """Build the policy of this class at `budget`; to be overridden where that is not one field, called so."""
        return cls(budget=budget, **fields)  # type: ignore[call-arg]
