"""A model's next token under a cache whose layers are all steady: no decision on the host, no question to the device.

Shape legend: B texts side by side, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvstream.engine.bounded_layer import BoundedLayer
from kvstream.engine.cache import KVStreamCache
from kvstream.engine.eviction import FORESIGHT
from kvstream.engine.layer import Layer
from kvstream.engine.scanned_layer import ScannedLayer
from kvstream.engine.shared_tables import SharedTables
from kvstream.engine.sink_rotation import groups_of
from kvstream.engine.steady.counter import Counter
from kvstream.engine.steady.layers import Evicting, Growing, Held, SteadyLayer, steady_until
from kvstream.engine.steady.scanned import Sawing, Scanning


class SteadyStep(Cache):
    """Steps of a model from where its cache stands, which moves along with them.

    held: each is the step right after the tokens that the cache holds now, as `HeldDecodeEngine` asks.
    """

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        cache: KVStreamCache,
        *,
        held: bool = False,
        room: int | None = None,
        fewest: int = 1,
        most: float = inf,
    ) -> SteadyStep | None:
        """Make steps from where a cache stands; None where fewer than so many from here on are alike.

        room: see `steady_until`. most: steps that are still to come.
        """
        layers = cache.own_layers()
        if not cache.get_seq_length() or len({layer.keys.device for layer in layers}) > 1:
            return None
        until = [inf if held else steady_until(layer, room) for layer in layers]
        if any(min(each - layer.seen, most) < fewest for each, layer in zip(until, layers)):
            return None
        if not held and not _pause_little(layers):
            return None
        with torch.inference_mode(False):  # a compiler takes no tensors made in inference mode
            tables = SharedTables(cache.tables.rope)
            tables.model_rotates = False
            counters: dict[tuple[int, type[Layer]], Counter] = {}
            made: list[SteadyLayer] = []
            for layer, each in zip(layers, until):
                known = layer.seen, type(layer)
                if known not in counters:
                    counters[known] = Counter(layer.seen, cache.tables.rope, layer.keys.device)
                new = layer, tables, counters[known]
                made.append(Held(*new) if held else _steady_layer(*new, each))
                if layer.keys.device.type == "cuda":
                    made[-1].choose_attention(model.config.get_text_config().num_attention_heads)
            return cls(model, cache, made, held)

    def __init__(self, model: PreTrainedModel, cache: KVStreamCache, layers: list[SteadyLayer], held: bool) -> None:
        super().__init__(layers=list(layers))
        self.model, self.cache, self.held, self.steady_layers = model, cache, held, layers
        self.counters = list({id(layer.counter): layer.counter for layer in layers}.values())
        self.evicting = [layer for layer in layers if isinstance(layer, Evicting)]
        self.sawing = [layer for layer in layers if isinstance(layer, Sawing)]
        self.by_rank = [layer for layer in self.evicting if layer.of.positions.by_rank]
        self.sinks = groups_of([layer.of for layer in self.by_rank])
        cache.tables.sinks.forget()
        self._turn_sinks()
        for layer in self.evicting:
            layer.prepare_draws()

    @torch.no_grad()
    def compute(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Take a token of each text: logits after it, (B, V). What is recorded and repeated is this."""
        for counter in self.counters:
            counter.begin()
        self._turn_sinks()
        base = self.model.base_model
        call = base.forward if torch.compiler.is_compiling() else base  # hooks of calls are Python's, between graphs
        output: Any = call(
            input_ids=ids_B1, position_ids=torch.zeros_like(ids_B1), past_key_values=self, use_cache=True
        )
        logits_BV: torch.Tensor = self.model.get_output_embeddings()(output.last_hidden_state[:, -1])
        if not self.held:
            for counter in self.counters:
                counter.end()
        return logits_BV

    def count(self) -> None:
        """Have the cache know of a step that was computed, and lay out what the next ones draw."""
        if self.held:
            return
        for layer in self.steady_layers:
            layer.of.seen += 1
        for layer in self.evicting:
            if layer.of.seen % FORESIGHT == 0:
                layer.prepare_draws()

    @property
    def pauses(self) -> bool:
        """Whether many tokens leave at the next step, which the cache is to take by itself: see `passed`."""
        return any(layer.sheds for layer in self.sawing)

    def passed(self) -> None:
        """Go on behind a token that the cache took."""
        for counter in self.counters:
            counter.end()

    @property
    def goes_on(self) -> bool:
        """Whether another step is like those before."""
        return all(layer.of.seen < layer.until for layer in self.steady_layers)

    def rewind(self, tokens: int) -> bool:
        """Do what `Layer.rewind` says; returns whether steps from there are like these, else they must not go on."""
        if any(tokens < layer.since for layer in self.steady_layers):
            return False
        if self.held:
            return True
        for layer in self.steady_layers:
            layer.of.rewind(tokens)
        seen = {(id(layer.counter), layer.of.seen) for layer in self.steady_layers}
        if len(seen) > len(self.counters):  # of layers that had seen as many some went back, and others not
            return False
        for layer in self.steady_layers:
            layer.counter.count_from(layer.of.seen)
        return True

    def end(self) -> None:
        """Have the cache's own steps go on from here."""
        for layer in self.evicting:
            layer.of.forget_plans()

    def _turn_sinks(self) -> None:
        for group in self.sinks:
            layers = [self.by_rank[place] for place in group.places]
            by = layers[0].counter.shifted(0, 1, layers[0].of.layout.budget, layers[0].of.keys)
            group.turn_by([layer.of for layer in layers], by)


def _pause_little(layers: Sequence[Layer]) -> bool:
    """Whether steps at which many tokens leave are at most half of all, and no layer would suffer from them."""
    sawing = [layer for layer in layers if isinstance(layer, ScannedLayer) and layer.saws]
    apart = {(layer.full, layer.left, layer.held(layer.seen)) for layer in sawing}
    planned = any(isinstance(layer, BoundedLayer) for layer in layers)  # ahead, and the cache's own step crosses that
    return sum(1 / (full - left) for full, left, _ in apart) <= 0.5 and not (sawing and planned)


def _steady_layer(layer: Layer, tables: SharedTables, counter: Counter, until: float) -> SteadyLayer:
    """Make of a layer what takes it to `until`, as `steady_until` said."""
    if isinstance(layer, ScannedLayer):
        return (Sawing if layer.saws else Scanning)(layer, tables, counter)
    if isinstance(layer, BoundedLayer):
        if until == inf:
            return Evicting(layer, tables, counter)
        return Growing(layer, tables, counter, int(until), layer.positions.cap)
    return Growing(layer, tables, counter, int(until), None)
