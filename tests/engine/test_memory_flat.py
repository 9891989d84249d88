"""Whatever a cache under a budget keeps, after a text ten times as long it is as large.

All tensors and arrays that can be reached from the cache are counted, so that a buffer which only grows shows even
where `kv_bytes` leaves it out. Rotations and masks that layers share are not, as they are dropped at 16 or 64 of a
kind; nor are views, which show what a layer holds, or held when they were last asked for.
"""

import numpy as np
import pytest
import torch

from kvstream import KVStreamCache
from kvstream.policies import POLICIES
from kvstream.policies.fields import spanned

LEFT_OUT = {"_rotations", "_places", "_pairs", "_bands", "views"}
CALLS = [133, 66, 1]  # of 200 tokens: a chunk, another, a single token
MODES = ["cache", "absolute", "frozen"]


def bytes_kept(thing, found=None, met=None) -> int:
    """Bytes behind all tensors and arrays that can be reached from an object of kvstream's, each counted once."""
    found, met = ({}, set()) if found is None else (found, met)
    if id(thing) in met:
        return sum(found.values())
    met.add(id(thing))
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    elif isinstance(thing, np.ndarray):
        found.setdefault(thing.__array_interface__["data"][0], thing.nbytes)
    parts = thing if isinstance(thing, (list, tuple, set)) else thing.values() if isinstance(thing, dict) else ()
    if type(thing).__module__.startswith("kvstream."):
        parts = [part for name, part in getattr(thing, "__dict__", {}).items() if name not in LEFT_OUT]
    for part in parts:
        bytes_kept(part, found, met)
    return sum(found.values())


@pytest.mark.parametrize(("place", "name"), enumerate(name for name in POLICIES if name != "full"))
def test_ten_times_the_text_takes_the_same_memory(place, name, tiny_llama):
    model = tiny_llama()
    [policy, *_] = spanned(POLICIES[name], 64, {"positions": (MODES[place % 3],), "compress_ratios": (0.9,)})
    cache, kept = KVStreamCache(model, policy), {}
    ids = torch.randint(97, (1, 4000), generator=torch.Generator().manual_seed(1))
    for part in ids.split(CALLS * 20, dim=1):
        cache.hidden_states(model, part)
        kept[cache.get_seq_length()] = bytes_kept(cache)
    assert kept[400] >= cache.kv_bytes > 0
    assert abs(kept[4000] / kept[400] - 1) < 0.02, {seen: kept[seen] for seen in (200, 400, 800, 2000, 4000)}


def test_what_only_grows_would_be_seen(tiny_llama):
    cache = KVStreamCache(tiny_llama(), POLICIES["streaming_llm"](4, 60))
    cache.hidden_states(tiny_llama(), torch.zeros(1, 200, dtype=torch.int64))
    before = bytes_kept(cache)
    cache.own_layers()[1].log = {"seen": [(torch.zeros(100), np.zeros(100))]}
    assert bytes_kept(cache) == before + 400 + 800
