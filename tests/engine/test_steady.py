"""Steps that are alike: what a GPU records and repeats is the same from step to step, asks nothing, and is exact.

Against the oracle, for every policy: tests/policies/test_against_oracle.py. On a GPU itself: test_cuda.py.
"""

import contextlib
import copy
from dataclasses import dataclass
from threading import Lock
from types import SimpleNamespace
from unittest.mock import Mock, call, patch

import pytest
import torch
from exactness_cases import FLOAT64, assert_close
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvstream import (
    H2O,
    TOVA,
    FixSizeL2,
    Full,
    KeyDiff,
    KVStreamCache,
    L2Compress,
    SinkL2,
    SnapKV,
    StreamingLLM,
    generate,
    replay,
)
from kvstream.engine import admission, decode, notes
from kvstream.engine.backends.cuda import timing
from kvstream.engine.backends.reference import Reference
from kvstream.engine.decode_engine import WORTH, DecodeEngine, HeldDecodeEngine
from kvstream.engine.rope import Rope
from kvstream.engine.scoring import score_logits
from kvstream.engine.shared_tables import SharedTables
from kvstream.engine.steady import attending, layers, recorded
from kvstream.engine.steady.recorded import WARM_UP
from kvstream.policies.base import BoundedPolicy, Regions

POLICIES = [
    Full(),
    StreamingLLM(2, 6),
    StreamingLLM(0, 9, position="frozen"),
    StreamingLLM(2, 12, skip_layers=(1,), position="absolute"),
    StreamingLLM(1, 8, layer_budgets="pyramid"),
    FixSizeL2(9, 0.5, "keep_low"),
    FixSizeL2(9, 0.0, "random", position="absolute"),
    SinkL2(9, 3, 2),
    H2O(9, 4, 2),
    TOVA(9),
    KeyDiff(9, 3, 1),
    SnapKV(16, 3, 3, 8),
    SnapKV(20, 5, 3, 8, position="frozen", skip_layers=(0,)),
    L2Compress(0.3, 14, position="absolute"),
]
PROMPT, LENGTH = 21, 90  # FORESIGHT lies between
PLAIN = pytest.mark.parametrize("policy", POLICIES, ids=str)
ASKS = [f"'aten.{name}'" for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal")]


class Operations(TorchDispatchMode):
    """Writes down what is computed: each operation, the shapes it is given, and its numbers."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str((function, shown(args), shown(kwargs or {}))))
        return function(*args, **(kwargs or {}))


def shown(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), str(value.dtype)
    if isinstance(value, (list, tuple)):
        return [shown(each) for each in value]
    return {name: shown(each) for name, each in value.items()} if isinstance(value, dict) else value


def begun(model, policy, ids, steady=True, capacity=LENGTH):
    engine = DecodeEngine(model, policy, capacity=capacity, steady=steady)
    engine.fewest = 1
    engine.prefill(ids[..., :PROMPT])
    return engine


def steps(engine, ids, first, stop):
    return [engine.step(ids[..., token : token + 1]) for token in range(first, stop)]


@PLAIN
def test_each_step_is_the_same_operations_and_asks_nothing(policy, tiny_llama, tokens):
    ids = tokens(LENGTH, 3)[None]
    engine = begun(tiny_llama(), policy, ids)
    steps(engine, ids, PROMPT, PROMPT + 1)
    step, found = engine.recorded.step, []
    where = [layer.keys.data_ptr() for layer in engine.cache.layers]
    for token in range(PROMPT + 1, PROMPT + 4):
        next_ids = ids[:, token : token + 1].clone()
        with Operations() as operations:
            step.compute(next_ids)
        step.count()
        found.append(operations.seen)
    assert found[0] == found[1] == found[2]
    assert not [each for each in found[0] for name in ASKS if name in each]
    assert where == [layer.keys.data_ptr() for layer in engine.cache.layers]


@pytest.mark.parametrize(
    "policy",
    [
        POLICIES[8],
        *(pytest.param(policy, marks=pytest.mark.long) for policy in (POLICIES[1], POLICIES[5], POLICIES[11])),
    ],
    ids=str,
)
def test_a_compiler_sees_one_graph(policy, tiny_llama, tokens):
    ids, model = tokens(LENGTH, 3)[None], tiny_llama(FLOAT64)
    engine, plain = begun(model, policy, ids), begun(model, policy, ids, steady=False)
    steps(engine, ids, PROMPT, PROMPT + 1)
    torch.compiler.reset()
    counts = CompileCounter()
    engine.recorded.compute = torch.compile(engine.recorded.step.compute, fullgraph=True, dynamic=False, backend=counts)
    logits, theirs = steps(engine, ids, PROMPT + 1, 40), steps(plain, ids, PROMPT, 40)[1:]
    assert_close(torch.cat(logits).flatten(), torch.cat(theirs).flatten(), 1e-9)
    assert counts.frame_count == 1


@torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=2)
def test_each_step_is_compiled_however_many_were(tiny_llama, tokens, monkeypatch):
    """Torch gives up on code that it compiled for several of its callers, and a worker lives for many cells."""
    ids, model = tokens(LENGTH, 3)[None], tiny_llama(FLOAT64)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **how: real(step, backend="eager", **how))
    torch.compiler.reset()
    plain = torch.cat(steps(begun(model, Full(), ids), ids, PROMPT, PROMPT + 2))
    before = set(vars(recorded))
    for _ in range(5):
        engine = begun(model, Full(), ids)
        engine.compiled = True
        assert_close(torch.cat(steps(engine, ids, PROMPT, PROMPT + 2)).flatten(), plain.flatten(), 1e-9)
        assert engine.launched == "compiled"
    assert set(vars(recorded)) == before, "what was made for a step goes with it"


@pytest.mark.long
@pytest.mark.parametrize("policy", [Full(), FixSizeL2(9, 0.5, "keep_low")], ids=str)
def test_compiled_steps_choose_the_same_tokens(policy, tiny_neox, tokens):
    ids, model = tokens(PROMPT, 3), tiny_neox(FLOAT64)
    assert torch.equal(*(generate(model, ids, policy, max_new_tokens=40, compiled=each) for each in (True, False)))


@pytest.mark.long
def test_compiled_steps_decode_to_the_same_losses(tiny_neox, tokens):
    ours, theirs = (decode.decode(tiny_neox(FLOAT64), tokens(PROMPT + 40, 3), Full(), compiled=each).nll_nats
                    for each in (True, False))  # fmt: skip
    assert_close(ours, theirs, 1e-9)


class Strays(TorchDispatchMode):
    """Writes down operations that take or make a tensor on a CPU, or bring one from there.

    A number, of no dimension, may be anywhere, as long as it is not copied.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        copied = "copy" in str(function) and len({each.device for each in tensors}) > 1
        if copied or any(each.device.type == "cpu" and each.dim() for each in tensors):
            self.seen.append(str(function))
        return result


class Literals(TorchFunctionMode):
    """Writes down what makes a tensor of Python's numbers: on the CPU, wherever it is to go, and unseen by `Strays`."""

    MAKING = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.new_tensor)

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.MAKING:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


def moved(step, device):
    """A copy of a step, its model and its cache, all of whose tensors are on another device."""

    def there(tensor, memo):
        new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        if isinstance(tensor, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=False)
        memo[id(tensor)] = new
        return new

    with (
        patch.object(torch.Tensor, "__deepcopy__", there),
        patch.object(torch.nn.Parameter, "__deepcopy__", there),
        patch.object(admission, "_looks", lambda _: ()),  # it reads weights
    ):
        step = copy.deepcopy(step)
    for layer in step.steady_layers:
        layer.tables.model_rotates = False  # which no copy takes along
        rope = layer.of.tables.rope
        layer.of.device, layer.of.backend = device, Reference(device)
        rope.frequencies, rope._copies = torch.zeros(rope.frequencies.shape, dtype=torch.float64), {}
        rope._frequencies_on(device)  # as steps before this one have asked
    return step


@PLAIN
def test_a_step_is_all_on_its_device(policy, tiny_llama, tokens):
    """Here on one that has no numbers, which would refuse any question, too: a graph can copy nothing from a CPU."""
    ids = tokens(LENGTH, 3)[None]
    engine, device = begun(tiny_llama(), policy, ids), torch.device("meta")
    steps(engine, ids, PROMPT, PROMPT + 1)
    step = moved(engine.recorded.step, device)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with Strays() as strays, Literals() as literals:
        logits = step.compute(ids)
    assert logits.device == device
    assert not strays.seen
    assert not literals.seen


def test_a_stray_would_be_noticed():
    with Strays() as strays:
        there = torch.ones(2, device="meta") + torch.ones(())
        torch.ones(2).to("meta")
        torch.ones(()).to("meta")
        there.copy_(torch.ones(()))
    copied = "aten._to_copy.default"
    assert strays.seen == ["aten.ones.default", copied, copied, "aten.copy_.default"]
    with Literals() as literals:
        torch.tensor(1.0, device="meta")
        there.new_tensor([1.0])
    assert literals.seen == ["tensor", "new_tensor"]


def test_a_question_would_be_noticed():
    with Operations() as operations:
        torch.ones(2).sum().item()
    assert [each for each in operations.seen for name in ASKS if name in each]


@PLAIN
def test_steps_predict_what_the_caches_own_do(policy, tiny_llama, tokens):
    ids, model = torch.stack([tokens(LENGTH, seed) for seed in range(3)]), tiny_llama(FLOAT64)
    engine, plain = begun(model, policy, ids), begun(model, policy, ids, steady=False)
    for first, stop in ((PROMPT, 40), (30, 50), (50, LENGTH - 1)):
        if first == 30:
            engine.rewind()
            plain.rewind()
        ours, theirs = steps(engine, ids, first, stop), steps(plain, ids, first, stop)
        assert engine.recorded
        assert not plain.recorded
        assert_close(torch.cat(ours).flatten(), torch.cat(theirs).flatten(), 1e-9)
    assert [layer.seen for layer in engine.cache.layers] == [layer.seen for layer in plain.cache.layers]


@PLAIN
def test_the_cache_goes_on_by_itself(policy, tiny_llama, tokens):
    ids, model = tokens(LENGTH, 3)[None], tiny_llama(FLOAT64)
    engine = begun(model, policy, ids)
    steps(engine, ids, PROMPT, 60)
    engine.rest()
    cache = copy.deepcopy(engine.cache)
    with torch.inference_mode():
        after = model.get_output_embeddings()(cache.hidden_states(model, ids[:, 60:75])[0])
    truth = replay(model, ids[0, :76], policy)
    assert_close(score_logits(after, ids[0, 61:76]).nll_nats, truth[60:75], 1e-9, "a chunk")
    more = steps(engine, ids, 60, 75)
    assert_close(score_logits(torch.cat(more), ids[0, 61:76]).nll_nats, truth[60:75], 1e-9, "steps again")


@PLAIN
def test_the_twin_is_the_caches_own(policy, tiny_llama, tokens):
    ids, found = tokens(LENGTH, 3)[None], []
    for steady in (True, False):
        twin = HeldDecodeEngine(tiny_llama(FLOAT64), policy, prompt_tokens=PROMPT, steady=steady)
        twin.prefill(ids[:, :PROMPT])
        found.append(torch.cat(steps(twin, ids, PROMPT, 30)).flatten())
        twin.rewind()
        assert bool(twin.recorded) == steady
    assert_close(*found, 1e-9)


@pytest.mark.parametrize("policy", [SnapKV(16, 3, 3, 8), L2Compress(0.3, 14)], ids=str)
def test_the_step_at_which_many_leave_is_the_caches_and_nothing_is_made_anew(policy, tiny_llama, tokens):
    ids = tokens(LENGTH, 3)[None]
    engine, kept, apart = begun(tiny_llama(), policy, ids), set(), []
    full, left = policy.shed(policy.regions)
    for token in range(PROMPT, LENGTH):
        steps(engine, ids, token, token + 1)
        kept.add(engine.recorded)
        if engine.paused:
            apart.append(token)
    held, expected = 0, []
    for token in range(LENGTH):
        held += 1
        if held == full:
            expected.append(token)
            held = left
    assert apart == [token for token in expected if token >= PROMPT]
    assert len(kept) == 1
    assert engine.recorded.calls == LENGTH - PROMPT - len(apart)


def test_what_a_free_slot_holds_means_nothing(tiny_llama, tokens):
    ids, found = tokens(LENGTH, 3)[None], []
    for value in (0.0, torch.nan):
        engine = begun(tiny_llama(), SnapKV(16, 3, 3, 8), ids)
        for layer in engine.cache.own_layers():
            free_BHF = layer.order_BUS[:, :, layer.held(layer.seen) :]
            assert free_BHF.numel()
            for slots_BHSD in (layer.keys, layer.values):
                slots_BHSD.scatter_(2, free_BHF[..., None].expand(-1, -1, -1, slots_BHSD.shape[-1]), value)
        found.append(torch.cat(steps(engine, ids, PROMPT, PROMPT + 2)))
        assert engine.recorded.calls == 2
    assert torch.equal(*found)


def test_layers_that_cut_in_turn_are_no_steady_steps(tiny_llama, tokens):
    """Else the next step may always be one at which many leave, and settling would never end."""
    policy, ids = L2Compress(0.9, 20, layer_budgets="pyramid"), tokens(LENGTH, 3)[None]
    gaps = [policy.shed(regions) for regions in map(policy.in_layers(3).regions_of, range(3))]
    assert [full - left for full, left in gaps] == [3, 2, 1]
    for one, alike in (policy, False), (L2Compress(0.9, 20), True):  # which cuts at every other step
        engine = begun(tiny_llama(), one, ids)
        steps(engine, ids, PROMPT, 40)
        assert bool(engine.recorded) == alike


def test_many_leave_of_some_layers_alone_is_no_steady_step(tiny_llama, tokens, monkeypatch):
    """A `BoundedLayer` beside them lays plans, which a step that the cache takes would cross."""
    plain = SnapKV.regions_of
    monkeypatch.setattr(SnapKV, "regions_of", lambda self, layer: Regions(0, 0, 9) if layer else plain(self, layer))
    ids, policy = tokens(LENGTH, 3)[None], SnapKV(16, 3, 3, 8)
    engine = begun(tiny_llama(), policy, ids)
    assert {type(layer).__name__ for layer in engine.cache.layers} == {"ScannedLayer", "BoundedLayer"}
    steps(engine, ids, PROMPT, 40)
    assert engine.recorded is None


def test_steps_that_differ_stay_the_caches_own(tiny_llama, tokens):
    ids = tokens(LENGTH, 3)[None]
    engine = begun(tiny_llama(), FixSizeL2(40, 0.2, "keep_low"), ids)  # seats are still free
    steps(engine, ids, PROMPT, 30)
    assert engine.recorded is None
    assert engine.settled


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(2, 40)], ids=str)
def test_room_that_ends_is_made(policy, tiny_llama, tokens):
    ids, model = tokens(LENGTH, 3)[None], tiny_llama(FLOAT64)
    engine = begun(model, policy, ids, capacity=30)
    logits = steps(engine, ids, PROMPT, LENGTH - 1)
    assert engine.recorded
    assert_close(
        score_logits(torch.cat(logits), ids[0, PROMPT + 1 :]).nll_nats, replay(model, ids[0], policy)[PROMPT:], 1e-9
    )


def test_bias_is_as_wide_as_attention_takes_it_and_made_once(tiny_llama, tokens, monkeypatch):
    """A mask of bools, or one of another number of slots, each layer would turn into a bias of its own."""
    seen, attend = [], attending.scaled_dot_product_attention
    monkeypatch.setattr(attending, "scaled_dot_product_attention", lambda *a, **b: seen.append(a[3]) or attend(*a, **b))
    ids, model = tokens(LENGTH, 3)[None], tiny_llama()
    for capacity in (LENGTH, 96):
        engine = begun(model, Full(), ids, capacity=capacity)
        steps(engine, ids, PROMPT, PROMPT + 1)
        bias, *others = seen[-model.config.num_hidden_layers :]
        assert all(other is bias for other in others)
        assert (bias.shape, bias.dtype) == ((1, 96), model.dtype)
        assert bias[0].isinf().tolist() == [False] * (PROMPT + 1) + [True] * (95 - PROMPT)
    assert begun(model, Full(), ids, steady=False).cache.layers[0].keys.shape[2] == LENGTH


def test_few_steps_to_come_are_not_recorded(tiny_llama, tokens):
    """A budget that is full says nothing about how many tokens a request still has; its capacity does."""
    ids, model = tokens(LENGTH, 3)[None], tiny_llama()
    for capacity, alike in ((PROMPT + WORTH, True), (PROMPT + WORTH - 1, False), (None, True)):
        engine = DecodeEngine(model, StreamingLLM(2, 6), capacity=capacity, steady=True)
        engine.prefill(ids[:, :PROMPT])
        steps(engine, ids, PROMPT, PROMPT + 1)
        assert bool(engine.recorded) == alike
        assert engine.launched == "eager"


def test_a_steps_time_ends_before_it_is_scored(tiny_llama, tokens, monkeypatch):
    now, step, score = [0.0], DecodeEngine.step, decode.score_logits

    def taking(seconds, function):
        def call(*given):
            now[0] += seconds
            return function(*given)

        return call

    monkeypatch.setattr(decode, "time", Mock(perf_counter=lambda: now[0]))
    monkeypatch.setattr(DecodeEngine, "step", taking(1, step))
    monkeypatch.setattr(decode, "score_logits", taking(100, score))
    assert decode.decode(tiny_llama(), tokens(5, 3), Full()).step_s.tolist() == [1.0] * 4


def test_what_a_step_reads_was_not_made_in_inference_mode(tiny_llama):
    """A compiler takes no such tensor, and replay, which comes first, runs in that mode."""
    with torch.inference_mode():
        rope = Rope(tiny_llama())
        there = rope._frequencies_on(torch.device("meta"))
        table = SharedTables(rope).distances(5, torch.empty(0))
    assert not any(each.is_inference() for each in (rope.frequencies, there, table.cos, table.sin))


def test_layers_share_the_table_of_their_ranks(tiny_llama, tokens):
    cache, ids = KVStreamCache(tiny_llama(), FixSizeL2(9, 0.5, "keep_low")), tokens(LENGTH, 3)[None]
    tables = set()
    for _ in range(2):
        cache.hidden_states(tiny_llama(), ids)
        tables |= {id(layer.ranks.table) for layer in cache.layers}
        cache.reset()
    assert len(tables) == 1


class Graph:
    """Stands in for a CUDA graph: repeats the step on the ids that were recorded, into the same logits."""

    def replay(self):
        self.owner.logits_BV.copy_(self.owner.compute(self.owner.ids_B1))


def recording(engine, monkeypatch, fails=None):
    """Have an engine record as on a GPU: the graphs, what is put right after a failure, and what draws numbers."""
    graphs, righted, generator = [], [], Mock()

    @contextlib.contextmanager
    def record(graph, pool, stream, capture_error_mode):
        assert (pool, stream, capture_error_mode) == ((0, 7), "own", "thread_local")
        graphs.append(graph)
        if fails:
            raise fails
        graph.owner = engine.recorded
        compute = graph.owner.compute
        graph.owner.compute = lambda ids: torch.zeros(ids.shape[0], engine.model.config.vocab_size, dtype=FLOAT64)
        yield  # recording computes nothing
        graph.owner.compute = compute

    def no_longer_under_way(*call):
        righted.append(call)
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")  # as later torches say

    for name, value in (("CUDAGraph", Graph), ("graph", record), ("device", lambda _: contextlib.nullcontext()),
                        ("graph_pool_handle", lambda: (0, 7)), ("set_stream", righted.append)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", no_longer_under_way, raising=False)
    monkeypatch.setattr(recorded.Recorded, "_beside", lambda self, ids, before: self.step.compute(ids))
    monkeypatch.setattr(notes, "_told", set())
    monkeypatch.setattr(recorded, "generator_of", lambda _: generator)
    monkeypatch.setattr(recorded, "index_of", lambda _: 0)
    engine.step(engine.first)
    side = SimpleNamespace(stream="own", current=lambda: "before", lock=Lock(), spare=None)
    engine.recorded.records, engine.recorded.side = True, side
    return graphs, righted, generator


REFUSED = RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize("fails", [None, REFUSED], ids=["recorded", "refused"])
def test_a_recorded_step_takes_each_token_and_its_logits_stay(fails, tiny_llama, tokens, monkeypatch, capsys):
    ids, model, policy = tokens(LENGTH, 3)[None], copy.deepcopy(tiny_llama(FLOAT64)), StreamingLLM(2, 6)
    engine = begun(model, policy, ids)
    engine.first = ids[:, PROMPT : PROMPT + 1]
    graphs, righted, generator = recording(engine, monkeypatch, fails)
    assert not engine.settled
    logits = steps(engine, ids, PROMPT + 1, 60)
    assert engine.settled
    assert engine.launched == ("eager" if fails else "CUDA graph")
    assert (len(graphs), righted) == (1, ["before", (0, (0, 7))] if fails else [])
    assert engine.recorded.side.spare == ((0, 7) if fails else None)
    given_back = [call(generator.clone_state.return_value)] if fails else []
    assert generator.graphsafe_set_state.call_args_list == given_back
    assert_close(
        score_logits(torch.cat(logits), ids[0, PROMPT + 2 : 61]).nll_nats,
        replay(model, ids[0, :61], policy)[PROMPT + 1 :],
        1e-9,
    )
    said = capsys.readouterr().out
    assert said.count("no CUDA graph of a step, each is launched anew (operation not permitted") == bool(fails)
    assert engine.recorded.calls == 60 - PROMPT > WARM_UP
    engine.rewind()
    assert engine.settled
    assert not recorded.Recorded(engine.recorded.step, torch.device("cpu")).records
    monkeypatch.setattr(recorded, "side_of", lambda *_: None)
    again = recorded.Recorded(engine.recorded.step, torch.device("cuda"))
    assert again.records == (not fails), "a model that cannot be recorded is not tried for each request"


@pytest.mark.parametrize("hidden", [False, True])
def test_a_recording_that_lacks_memory_says_so(hidden, tiny_llama, tokens, monkeypatch):
    """Also where ending it is an error of its own; what serves the request then decides what to do."""
    ids, model = tokens(LENGTH, 3)[None], copy.deepcopy(tiny_llama(FLOAT64))
    engine = begun(model, StreamingLLM(2, 6), ids)
    engine.first = ids[:, PROMPT : PROMPT + 1]
    error = torch.OutOfMemoryError("CUDA out of memory")
    if hidden:
        error, error.__context__ = RuntimeError("capture was invalidated"), error
    _, righted, _ = recording(engine, monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        steps(engine, ids, PROMPT + 1, 60)
    assert righted == ["before", (0, (0, 7))]
    assert engine.recorded.records
    assert not engine.recorded.in_vain


class Stream:
    """Stands in for a GPU's stream, and writes down whom it waits for."""

    device = "cuda:0"

    def __init__(self, number):
        self.cuda_stream, self.waited = number, []

    def wait_stream(self, other):
        self.waited.append(other.cuda_stream)


def test_steps_of_a_thread_share_a_stream_and_wait_for_each_other(monkeypatch):
    """Whatever they are asked for on: what a library works in belongs to the stream that they were recorded from."""
    own, asked = Stream(9), [Stream(1), Stream(1), Stream(2)]
    for name, value in (("Stream", lambda _: own), ("stream", lambda _: contextlib.nullcontext()),
                        ("current_stream", lambda _: now)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    real = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: real(*shape))
    recorded.side_of.cache_clear()
    sides = {recorded.side_of(0, thread) for thread in (1, 1, 2)}
    assert len(sides) == 2
    side = sides.pop()
    for now in asked:
        assert side.current() is now
    recorded.side_of.cache_clear()
    assert [stream.waited for stream in asked] == [[9], [], [1]]


@pytest.mark.parametrize("policy", [Full(), StreamingLLM(2, 6), SnapKV(9, 3, 3, 4)], ids=str)
def test_generate_chooses_what_transformers_would(policy, tiny_llama, tokens):
    ids, model = torch.stack([tokens(PROMPT, seed) for seed in (3, 4)]), tiny_llama(FLOAT64)
    cache = KVStreamCache(model, policy)
    theirs = model.generate(ids, past_key_values=cache, max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert torch.equal(generate(model, ids, policy, max_new_tokens=30), theirs[:, PROMPT:])


def test_generate_refuses_what_it_cannot_go_on_from(tiny_llama, tokens):
    model = tiny_llama()
    nothing, unknown = torch.zeros(0, dtype=torch.long), torch.tensor([10**6])
    cases = (tokens(5, 3), 0, "max_new_tokens=0"), (nothing, 3, "at least one"), (unknown, 3, "no token")
    for ids, new, words in cases:
        with pytest.raises(ValueError, match=words):
            generate(model, ids, Full(), max_new_tokens=new)
    assert generate(model, tokens(5, 3), StreamingLLM(1, 2), max_new_tokens=1).shape == (1,)


def test_layers_that_go_back_differently_count_apart(tiny_llama, tokens):
    """Of layers that had seen as many tokens a full one stays where it is, and one that grows goes back."""
    policy, ids, model = StreamingLLM(2, 16, layer_budgets="pyramid"), tokens(LENGTH, 3)[None], tiny_llama(FLOAT64)
    budgets = [policy.in_layers(3).regions_of(layer).budget for layer in range(3)]
    assert budgets[0] > PROMPT + 4 > PROMPT > budgets[1]
    engine, plain = begun(model, policy, ids), begun(model, policy, ids, steady=False)
    for _ in range(12):
        ours, theirs = (torch.cat(steps(each, ids, PROMPT, PROMPT + 4)).flatten() for each in (engine, plain))
        assert engine.recorded
        assert_close(ours, theirs, 1e-9)
        engine.rewind()
        plain.rewind()
        assert [layer.seen for layer in engine.cache.layers] == [layer.seen for layer in plain.cache.layers]


@pytest.mark.parametrize("policy", [*POLICIES[:6], FixSizeL2(9, 0.5, "keep_low", position="absolute")], ids=str)
@pytest.mark.parametrize("held", [False, True])
def test_steps_by_products_are_those_of_fused_attention(policy, held, tiny_llama, tokens, monkeypatch):
    ids, model, found = tokens(30, 3)[None], tiny_llama(FLOAT64), []
    for way in (attending.by_products, attending.fused):
        monkeypatch.setattr(layers, "attention_for", lambda *_, way=way: way)
        engine = begun(model, policy, ids)
        if held:
            engine = HeldDecodeEngine(model, policy, prompt_tokens=PROMPT, steady=True)
            engine.prefill(ids[:, :PROMPT])
        steps(engine, ids, PROMPT, PROMPT + 1)
        for layer in engine.recorded.step.steady_layers:  # as on a GPU, where it is asked at once
            layer.choose_attention(4)
            assert layer.attention is way
        found.append(torch.cat(steps(engine, ids, PROMPT + 1, 30)).flatten())
    assert_close(*found, 1e-12)


@pytest.mark.parametrize(("ms", "way", "told"), [((2.0, 0.5), "by_products", 1), ((1.0, 0.97), "fused", 0)])
def test_products_are_taken_where_a_card_is_clearly_quicker_with_them(ms, way, told, monkeypatch, capsys):
    """Asked once for each power of two, with queries of all heads, and with a bias where free slots are hidden."""
    given, times = [], iter(ms * 3)
    monkeypatch.setattr(attending, "chosen", {})
    monkeypatch.setattr(notes, "_told", set())
    monkeypatch.setattr(timing, "timed", lambda work, device: (given.append(work.args), next(times))[1])

    def on_a_card(slots, dtype=torch.float32):
        keys = torch.zeros(2, 3, slots, 8, dtype=dtype)
        about = {"dtype": keys.dtype, "shape": keys.shape, "new_zeros": keys.new_zeros, "reshape": keys.reshape}
        return SimpleNamespace(device=torch.device("cuda"), **about), keys

    for name in ("fused", "by_products"):
        monkeypatch.setattr(attending, name, Mock(name=name))
    assert attending.attention_for(6, *on_a_card(600, torch.bfloat16), True) is attending.fused, (
        "scores would be rounded"
    )
    found = [attending.attention_for(6, *on_a_card(slots), True) for slots in (600, 1000)]
    assert found == [getattr(attending, way)] * 2
    assert capsys.readouterr().out.count("products (0.500 ms) in place of fused attention (2.000 ms)") == told
    for q, _, _, _, bias in given:
        assert (q.shape, bias.shape) == ((2, 3, 2, 1, 8), (1, 600))
    assert attending.attention_for(6, *on_a_card(1030), True) == attending.attention_for(6, *on_a_card(600), False)
    assert [call[4] is None for call in given] == [False, False, False, False, True, True]


def test_trying_in_vain_makes_nothing(tiny_llama, tokens, monkeypatch):
    monkeypatch.setattr("kvstream.engine.steady.step.Counter", None)
    ids = tokens(LENGTH, 3)[None]
    engine = begun(tiny_llama(), FixSizeL2(40, 0.2, "keep_low", skip_layers=(0,)), ids)
    steps(engine, ids, PROMPT, 25)
    assert engine.recorded is None


def test_full_caches_are_given_room_little_by_little(tiny_llama, tokens, monkeypatch):
    monkeypatch.setattr("kvstream.engine.decode_engine.ROOM", 16)
    ids, model = tokens(LENGTH, 3)[None], tiny_llama(FLOAT64)
    engine, found = begun(model, Full(), ids), []
    logits = []
    for token in range(PROMPT, LENGTH - 1):
        logits += steps(engine, ids, token, token + 1)
        found.append(engine.recorded.step.steady_layers[0].shown)
    assert sorted(set(found)) == [32, 48, 64, 80, 96]
    truth = replay(model, ids[0], Full())[PROMPT:]
    assert_close(score_logits(torch.cat(logits), ids[0, PROMPT + 1 :]).nll_nats, truth, 1e-9)


@dataclass(frozen=True)
class Outcast(BoundedPolicy):
    """Some tokens are to leave before all others."""

    name = "outcast"

    @property
    def regions(self):
        return Regions(1, 5, 3)

    @property
    def scored_by(self):
        return "token"

    def token_scores(self, keys_BHSD, values_BHSD):
        first = keys_BHSD[..., 0]
        return torch.where(first > 0, -torch.inf, first)


def test_of_infinitely_low_scores_the_oldest_leaves_as_in_the_caches_own_steps(tiny_llama, tokens):
    ids, model = tokens(LENGTH, 3)[None], tiny_llama(FLOAT64)
    engine, plain = begun(model, Outcast(), ids), begun(model, Outcast(), ids, steady=False)
    ours, theirs = (torch.cat(steps(each, ids, PROMPT, 60)).flatten() for each in (engine, plain))
    assert_close(ours, theirs, 1e-9)


def test_choosing_may_write_on_its_logits_and_gives_an_id_a_text(tiny_llama, tokens):
    model, prompt = tiny_llama(), tokens(PROMPT, 3)

    def second(logits):
        logits.scatter_(1, logits.argmax(-1, keepdim=True), -torch.inf)
        return logits.argmax(-1)

    assert generate(model, prompt, StreamingLLM(2, 6), max_new_tokens=9, choose=second).shape == (9,)
    with pytest.raises(ValueError, match=r"choose: it gave shape \(1, 1\); give one id for each text"):
        generate(model, prompt, Full(), max_new_tokens=2, choose=lambda logits: logits.argmax(-1, keepdim=True))
    with pytest.raises(ValueError, match="input_ids: list"):
        generate(model, [1, 2], Full(), max_new_tokens=2)
