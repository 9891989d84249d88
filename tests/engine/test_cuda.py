"""The engine on an NVIDIA GPU, compiled and with the tiles it has there: exactness, memory, waits. `make test-gpu`."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from exactness_cases import FLOAT32, FLOAT64, MODES, assert_close
from tiny import build_model

from kvstream import (
    H2O,
    TOVA,
    FixSizeL2,
    Full,
    KeyDiff,
    KVStreamCache,
    L2Compress,
    RecentOnly,
    SnapKV,
    StreamingLLM,
    decode,
    load_model,
    replay,
)
from kvstream.engine import notes
from kvstream.engine.backends.reference import Reference
from kvstream.engine.chunk_choice import chunk_size_for
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.decode_engine import GRAPH, DecodeEngine
from kvstream.engine.replay import replay_windows
from kvstream.engine.scoring import score_logits
from kvstream.engine.steady import attending
from kvstream.inputs.documents import load_documents
from kvstream.inputs.weights import multiply_as
from kvstream.measure.contenders import DynamicContender, Protocol, contenders

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
T, VOCAB = 700, 1009  # several tiles of any size
RECORDED = [
    Full(),
    StreamingLLM(4, 60),
    StreamingLLM(4, 60, skip_layers=(1,)),
    FixSizeL2(70, 0.5, "keep_low"),
    FixSizeL2(64, 0.7, "random", seed=3, position="absolute"),
    H2O(64, 32, 4),
    TOVA(64),
    KeyDiff(64, 32, 4),
    SnapKV(70, 16, 5, 32),
    L2Compress(0.5, 64, position="absolute"),
]
BOUNDED = [
    StreamingLLM(4, 60),
    StreamingLLM(0, 33),
    RecentOnly(150),
    FixSizeL2(70, 0.5, "keep_low"),
    FixSizeL2(200, 0.0, "keep_high"),
    FixSizeL2(64, 0.7, "random", seed=3),
    H2O(70, 35, 4),
    TOVA(64),
    KeyDiff(64, 32, 4),
    SnapKV(70, 16, 5, 32),
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
        if policy.scored_by != "nothing":  # of so many tokens some have scores so close that their rounding decides
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


def test_tf32_is_coarser_and_only_where_it_is_asked_for():
    ids, model, policy = text(), on_gpu("llama", FLOAT32), StreamingLLM(4, 60)
    truth, found = replay(build_model("llama", FLOAT64, VOCAB), ids, policy), []
    for dtype in ("float32", "tf32"):
        multiply_as(dtype)
        found.append((replay(model, ids.cuda(), policy).cpu() - truth).abs().mean())
    multiply_as("float32")
    assert 3 * found[0] < found[1] < 1e-2


def test_the_demo_model_computes_what_it_does_on_a_cpu():
    """A trained model and 8,192 tokens of a real text, under policies that no rounding decides."""
    model, tokenizer = load_model("smollm2-135m")
    [document] = load_documents("kjv", name="Genesis", tokens=8192, tokenizer=tokenizer)
    ids, there = torch.from_numpy(document.token_ids).long(), copy.deepcopy(model).cuda()
    for policy in (Full(), StreamingLLM(4, 1020), FixSizeL2(512, 0.7, "random")):
        apart = (replay(there, ids.cuda(), policy).cpu() - replay(model, ids, policy)).abs()
        assert apart.mean() <= 1e-4, policy


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(4, 60), FixSizeL2(70, 0.5, "keep_low")], ids=str)
def test_decoding_is_exact_also_after_a_replayed_prompt(policy):
    ids, model = text(300), on_gpu("llama", FLOAT32)
    truth = replay(build_model("llama", FLOAT64, VOCAB), ids, policy)
    assert_close(decode(model, ids.cuda(), policy).nll_nats.cpu(), truth, 2e-5)
    cache = KVStreamCache(model, policy)
    parts = list(replay_windows(model, [ids[None, :251].cuda()], cache))
    parts += replay_windows(model, [ids[None, t : t + 2].cuda() for t in range(250, 299)], cache)
    assert_close(torch.cat([part.nll_nats for part in parts], 1)[0].cpu(), truth, 2e-5)


@pytest.mark.parametrize(
    "policy", [Full(), StreamingLLM(4, 60), FixSizeL2(70, 0.5, "keep_low"), H2O(70, 35, 4), KeyDiff(64, 32, 4)], ids=str
)
def test_a_chunk_waits_for_nothing(policy):
    """No layer asks the device for anything while its work is queued, nor does one that is met for the first time."""
    ids, model = text()[None].cuda(), on_gpu("neox", FLOAT32)
    known, fresh = (KVStreamCache(model, policy, capacity=T) for _ in range(2))
    list(replay_windows(model, [ids[:, :300]], known))
    known.hidden_states(model, ids[:, 300:500])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        known.hidden_states(model, ids[:, 500:700])
        for part in ids.split([300, 200, 200], 1):
            fresh.hidden_states(model, part)
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


def test_chunks_are_as_long_as_memory_is_worth(monkeypatch, capsys):
    monkeypatch.setattr(notes, "_told", set())  # else what another model of this kind said is not said again
    model = on_gpu("neox", FLOAT32)
    KVStreamCache(model, Full())
    assert chunk_size_for(model, 1) == 16 * CHUNK_SIZE
    assert CHUNK_SIZE <= chunk_size_for(model, 10**6) < 16 * CHUNK_SIZE
    said = capsys.readouterr().out
    assert said.count(f"{torch.cuda.get_device_name()}: chunks of ") == 1
    assert chunk_size_for(on_gpu("neox", FLOAT64), 1) == CHUNK_SIZE


@pytest.mark.parametrize("policy", RECORDED, ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_recorded_steps_are_the_steps_that_were_recorded(policy, rows):
    """To the last digits that kernels of other sizes round: the graph against the same step launched anew."""
    ids, model = torch.stack([text().roll(row) for row in range(rows)]).cuda(), on_gpu("llama", FLOAT32)
    found = []
    for steady in (True, False):
        engine = DecodeEngine(model, policy, capacity=T, steady=steady)
        engine.prefill(ids[:, :300])
        found.append(torch.stack([engine.step(ids[:, t : t + 1]) for t in range(300, 420)]))
        assert bool(engine.recorded and engine.recorded.graph) == steady
        if steady:
            torch.cuda.set_sync_debug_mode("error")
            try:
                engine.step(ids[:, 420:421])  # waits for nothing
            finally:
                torch.cuda.set_sync_debug_mode("default")
            engine.rewind()
            assert engine.settled
    apart = (found[0].log_softmax(-1) - found[1].log_softmax(-1)).abs()
    assert (apart.max() if policy.scored_by == "nothing" else apart.mean()) < 1e-3  # rounding may decide who stays


@pytest.mark.parametrize("slots", [500, 9000])
def test_a_step_attends_alike_by_products_and_fused(slots):
    """And one of them is chosen once for all sizes between two powers of two."""
    keys, values = torch.randn(2, 2, 4, slots, 64, device="cuda")
    q, bias = torch.randn(2, 4, 3, 1, 64, device="cuda"), torch.zeros(1, slots, device="cuda")
    bias[:, slots // 2 :] = -torch.inf
    own, others = (way(q, keys, values, 0.125, bias) for way in (attending.by_products, attending.fused))
    assert (own - others).abs().max() < 1e-5
    before = len(attending.chosen)
    found = [
        attending.attention_for(12, keys[:, :, :some], values[:, :, :some], True) for some in (slots, slots - 1, 9)
    ]
    assert found[0] is found[1]
    assert len(attending.chosen) == before + 2


def test_every_contender_of_a_latency_cell_is_recorded_once():
    """Full, whose room ends with the cell's few steps, as well as the others: baselines of equal standing."""
    model, protocol = on_gpu("llama", FLOAT32), Protocol(context=300, batch=2, prefills=1, rounds=5, steps=4)
    prompt = torch.stack([text(300), text(301)[1:]]).cuda()
    for runner in contenders(model, RECORDED, protocol):
        if isinstance(runner, DynamicContender):
            continue
        runner.serve(prompt)
        graph = runner.engine.recorded.graph
        assert graph, runner.label
        for _ in range(protocol.rounds):
            runner.settle()
            for _ in range(protocol.steps):
                runner.step()
            assert runner.engine.recorded.graph is graph, runner.label


def test_a_step_that_cannot_be_recorded_is_launched_and_numbers_can_be_drawn(monkeypatch, capsys):
    monkeypatch.setattr(notes, "_told", set())
    ids, model = text(300), on_gpu("llama", FLOAT32)
    truth = replay(model, ids.cuda(), RecentOnly(50)).cpu()
    hook = model.get_input_embeddings().register_forward_hook(lambda _, __, found: found.sum().item())
    graph, tried = torch.cuda.graph, []
    monkeypatch.setattr(torch.cuda, "graph", lambda *given, **more: tried.append(1) or graph(*given, **more))
    for _ in range(2):
        assert_close(decode(model, ids.cuda(), RecentOnly(50)).nll_nats.cpu(), truth, 1e-4)
    assert len(tried) == 1, "another request tries again"
    assert capsys.readouterr().out.count("no CUDA graph of a step") == 1
    assert torch.multinomial(torch.ones(3, device="cuda"), 2).shape == (2,)  # as choosing a token by lot does
    torch.cuda.empty_cache()  # which an allocator that takes the recording for under way refuses
    hook.remove()
    other = DecodeEngine(model, StreamingLLM(4, 60), capacity=T)  # nor would it let this be recorded
    other.prefill(ids[None, :200].cuda())
    for token in range(200, 210):
        other.step(ids[None, token : token + 1].cuda())
    assert GRAPH in other.launched


def test_engines_share_the_stream_and_its_workspace():
    """cuBLAS takes 32 MiB for each stream on a Hopper, which would count as the memory of each contender."""
    ids, model = text(300)[None].cuda(), on_gpu("llama", FLOAT32)
    held, engines = [], []
    for _ in range(4):
        engines.append(DecodeEngine(model, StreamingLLM(4, 60), capacity=T))
        engines[-1].prefill(ids[:, :200])
        for token in range(200, 210):
            engines[-1].step(ids[:, token : token + 1])
        held.append(torch.cuda.memory_allocated())
    assert all(GRAPH in engine.launched for engine in engines)
    assert len({engine.recorded.side for engine in engines}) == 1
    assert held[3] - held[2] < 4 << 20


def test_steps_on_streams_of_their_own_do_not_disturb_each_other():
    ids, model = text(300)[None].cuda(), on_gpu("llama", FLOAT32)
    streams, found = [torch.cuda.Stream() for _ in range(2)], []
    engines = [DecodeEngine(model, policy, capacity=T) for policy in (Full(), StreamingLLM(4, 60))]
    for engine in engines:
        engine.prefill(ids[:, :200])
    torch.cuda.synchronize()
    for token in range(200, 280):
        for stream, engine in zip(streams, engines):
            with torch.cuda.stream(stream):
                found.append(engine.step(ids[:, token : token + 1]))
    torch.cuda.synchronize()
    for place, policy in enumerate((Full(), StreamingLLM(4, 60))):
        nll = score_logits(torch.cat(found[place::2]), ids[0, 201:281]).nll_nats
        assert_close(nll, replay(model, ids[0, :281], policy)[200:], 1e-4)


def test_a_compiled_step_follows_a_replayed_prompt():
    """Which runs in inference mode, and leaves tables of angles that the compiler has to take."""
    ids, model = text(300)[None].cuda(), on_gpu("llama", FLOAT32)
    engine = DecodeEngine(model, StreamingLLM(4, 60), capacity=T, compiled=True)
    logits = [engine.prefill(ids[:, :200])] + [engine.step(ids[:, token : token + 1]) for token in range(200, 240)]
    assert GRAPH in engine.launched
    nll = score_logits(torch.cat(logits), ids[0, 200:241]).nll_nats
    assert_close(nll, replay(model, ids[0, :241], StreamingLLM(4, 60))[199:], 1e-4)


@pytest.mark.parametrize("policy", RECORDED, ids=str)
def test_recorded_steps_are_exact(policy):
    ids = text(300)
    truth = replay(build_model("llama", FLOAT64, VOCAB), ids, policy)
    nll = decode(on_gpu("llama", FLOAT32), ids.cuda(), policy).nll_nats.cpu()
    if policy.scored_by == "nothing":
        assert_close(nll, truth, 2e-5)
    else:  # of so many scores some are so close that their rounding decides
        assert (nll - truth).abs().mean() < 1e-3


@pytest.mark.parametrize("policy", [RecentOnly(150), H2O(96, 48, 4)], ids=str)
def test_other_steps_between_recorded_ones(policy):
    ids, model = text().cuda(), on_gpu("neox", FLOAT32)
    engine = DecodeEngine(model, policy, capacity=T)
    engine.prefill(ids[None, :200])
    logits = [engine.step(ids[None, t : t + 1]) for t in range(200, 250)]
    engine.rest()
    logits += [engine.step(ids[None, t : t + 1]) for t in range(250, 300)]
    truth = replay(model, ids[:301], policy)[200:]
    assert (score_logits(torch.cat(logits), ids[201:301]).nll_nats - truth).abs().mean() < 1e-3
