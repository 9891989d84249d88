"""What a cache holds, as tensors by name: collected, to be stored, and restored in another cache.

A state belongs to a policy, a model's number of layers and its dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvstream.policies import Full
from kvstream.policies.sizes import tokens_from_full

if TYPE_CHECKING:
    from kvstream.engine.cache import KVStreamCache


def refuse_lost_tokens(cache: KVStreamCache, asked: str) -> None:
    """Raise ValueError where a cache cannot take tokens back, since a policy has treated them as its own."""
    most, seen = tokens_from_full(cache.policy, len(cache.layers)), cache.get_seq_length()
    if most is not None and seen > most:
        raise ValueError(
            f"{asked}: of the {seen} tokens seen, {cache.policy} has evicted some or scored them, which cannot be "
            "undone; deepcopy() the cache where you may want to go back to, or use one under full"
        )


def collect(cache: KVStreamCache) -> dict[str, torch.Tensor]:
    """Copy everything needed to go on: tensors by name, on the CPU."""
    seen = cache.get_seq_length()
    held = {
        f"{place}.{name}": tensor.to("cpu", copy=True)
        for place, layer in enumerate(cache.own_layers() if seen else ())
        for name, tensor in layer.state().items()
    }
    label = torch.tensor(list(str(cache.policy).encode()), dtype=torch.uint8)
    told = {} if cache.told.ids is None else {"told": cache.told.ids.cpu()}
    return held | told | {"seen": torch.tensor(seen), "policy": label}


def restore(cache: KVStreamCache, state: dict[str, torch.Tensor]) -> None:
    """Bring a cache to where the one stood that the state is of; ValueError, and nothing changed, if it cannot be."""
    seen, label = int(state["seen"]), bytes(state["policy"].tolist()).decode()
    most = tokens_from_full(cache.policy, len(cache.layers))
    from_full = label == str(Full()) and (most is None or seen <= most)
    if label != str(cache.policy) and not from_full:
        allowed = "any number of" if most is None else f"at most {most}"
        raise ValueError(
            f"state: {seen} tokens under {label}, this cache is under {cache.policy}; "
            f"restore a state of the same policy, or of full with {allowed} tokens"
        )
    if len({str(device) for device in cache.owner.devices}) > 1:
        raise ValueError("state: the model lies on several devices, and a state on one; load it on one device")
    of_layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        place, dot, of_layer = name.partition(".")
        if dot:
            of_layers.setdefault(int(place), {})[of_layer] = tensor.to(cache.device)
    if seen and sorted(of_layers) != list(range(len(cache.layers))):
        raise ValueError(
            f"state: of {len(of_layers)} layers, the model has {len(cache.layers)}; restore one of this model"
        )
    if seen and (held := of_layers[0]["keys"].dtype) != (cache.owner.dtype or held):
        raise ValueError(f"state: of a model in {held}, this is in {cache.owner.dtype}; restore one of this model")
    for layer, number in zip(cache.own_layers(), sorted(of_layers)):
        if unknown := of_layers[number].keys() - layer.names:
            raise ValueError(
                f"state: of another version of kvstream, with {', '.join(sorted(unknown))} in a layer under {label}; "
                "compute it again"
            )
    cache.reset()
    for layer, number in zip(cache.own_layers(), sorted(of_layers)):
        layer.restore(of_layers[number], seen)
    if seen:
        cache.told.add(state.get("told"), 0)
