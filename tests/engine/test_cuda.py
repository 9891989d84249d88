"""The engine on an NVIDIA GPU, compiled and with the tiles it has there: exactness, memory, waits. `make test-gpu`."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from exactness_cases import FLOAT32, FLOAT64, MODES, assert_close
from tiny import build_model

from kvstream import FixSizeL2, Full, KVStreamCache, RecentOnly, StreamingLLM, decode, replay
from kvstream.engine.backends.reference import Reference
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.replay import replay_windows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
T, VOCAB = 700, 1009  # several tiles of any size
BOUNDED = [
    StreamingLLM(4, 60),
    StreamingLLM(0, 33),
    RecentOnly(150),
    FixSizeL2(70, 0.5, "keep_low"),
    FixSizeL2(200, 0.0, "keep_high"),
    FixSizeL2(64, 0.7, "random", seed=3),
]
CASES = [(Full(), family) for family in ("neox", "llama")]
CASES += [(replace(policy, position=mode), ("neox", "llama")[(a + b) % 2])
          for a, policy in enumerate(BOUNDED) for b, mode in enumerate(MODES)]  # fmt: skip


def on_gpu(family, dtype):
    return copy.deepcopy(build_model(family, dtype, VOCAB)).cuda()


def text(length=T):
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5))[:length]


@pytest.mark.parametrize(("policy", "family"), CASES, ids=str)
def test_replay_is_exact(policy, family):
    ids = text()
    truth = replay(build_model(family, FLOAT64, VOCAB), ids, policy)
    model = on_gpu(family, FLOAT32)
    found = {f"chunks of {size}": replay(model, ids.cuda(), policy, chunk_size=size).cpu() for size in (None, 250)}
    found["float64, by the reference"] = replay(on_gpu(family, FLOAT64), ids.cuda(), policy).cpu()
    for how, nll in found.items():
        if policy.scored_by == "token":  # of so many keys some have norms so close that their rounding decides
            assert (nll - truth).abs().mean() < 1e-3, how
        else:
            assert_close(nll, truth, 2e-5, how)


@pytest.mark.parametrize(("policy", "family"), CASES[::2], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_as_the_references(policy, family, dtype, monkeypatch):
    ids, model = text(), on_gpu(family, dtype)
    truth = replay(build_model(family, FLOAT64, VOCAB), ids, policy)
    found = [replay(model, ids.cuda(), policy).cpu()]
    for module in ("layer", "scoring"):
        monkeypatch.setattr(f"kvstream.engine.{module}.backend_for", lambda device, dtype: Reference(device))
    found.append(replay(model, ids.cuda(), policy).cpu())
    ours, plain = ((nll - truth).abs().mean() for nll in found)
    assert 0 < ours < 1.5 * plain


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(4, 60), FixSizeL2(70, 0.5, "keep_low")], ids=str)
def test_decoding_is_exact_also_after_a_replayed_prompt(policy):
    ids, model = text(300), on_gpu("llama", FLOAT32)
    truth = replay(build_model("llama", FLOAT64, VOCAB), ids, policy)
    assert_close(decode(model, ids.cuda(), policy).nll_nats.cpu(), truth, 2e-5)
    cache = KVStreamCache(model, policy)
    parts = list(replay_windows(model, [ids[None, :251].cuda()], cache))
    parts += replay_windows(model, [ids[None, t : t + 2].cuda() for t in range(250, 299)], cache)
    assert_close(torch.cat([part.nll_nats for part in parts], 1)[0].cpu(), truth, 2e-5)


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(4, 60), FixSizeL2(70, 0.5, "keep_low")], ids=str)
def test_a_chunk_waits_for_nothing(policy):
    """No layer asks the device for anything while its work is queued."""
    ids, model = text()[None].cuda(), on_gpu("neox", FLOAT32)
    cache = KVStreamCache(model, policy, capacity=T)
    list(replay_windows(model, [ids[:, :300]], cache))
    cache.hidden_states(model, ids[:, 300:500])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        cache.hidden_states(model, ids[:, 500:700])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("policy", [StreamingLLM(4, 252), FixSizeL2(256, 0.7, "keep_low")], ids=str)
def test_memory_does_not_grow_with_the_text(policy):
    model, peaks = on_gpu("neox", FLOAT32), []
    replay(model, torch.randint(VOCAB, (20_000,)).cuda(), policy)
    for length in (20_000, 200_000):
        pieces = (torch.randint(VOCAB, (1, 10_000)).cuda() for _ in range(length // 10_000))
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        replay(model, pieces, policy)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 1.05 * peaks[0] + 180_000 * 5  # the scores themselves


def test_chunks_are_as_long_as_memory_is_worth(capsys):
    model = on_gpu("neox", FLOAT32)
    KVStreamCache(model, Full())
    assert chunk_size_for(model, 1) == 16 * CHUNK_SIZE
    assert CHUNK_SIZE <= chunk_size_for(model, 10**6) < 16 * CHUNK_SIZE
    said = capsys.readouterr().out
    assert said.count(torch.cuda.get_device_name()) == 1
    assert chunk_size_for(on_gpu("neox", FLOAT64), 1) == CHUNK_SIZE
