"""The scheduler's rules, without Ray: workers are a list, and what happens to them is made up."""

import hashlib
from collections import deque
from dataclasses import dataclass, field, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM
from kvstream.engine.chunks import PART_TOKENS
from kvstream.grid.axes import Repeats
from kvstream.grid.cells import LatencyCell, QualityCell
from kvstream.grid.memory_needed import weights_bytes
from kvstream.inputs.documents import Document
from kvstream.inputs.models import resolve
from kvstream.measure.quality import Evaluated
from kvstream.sweep.driver import Driver
from kvstream.sweep.interrupt import Interrupt
from kvstream.sweep.jobs import Job, jobs_of
from kvstream.sweep.memory_limits import MemoryLimits
from kvstream.sweep.pool import Done, Failed, Lost, Node, Slots, Told, WorkerInfo
from kvstream.sweep.results import Results
from kvstream.sweep.scheduler import Scheduler, phases
from kvstream.sweep.work import Check, Timing

INFO, OTHER = resolve("shape:pythia-70m"), resolve("shape:pythia-160m")
ERROR = RuntimeError("on purpose")
NO_MEMORY = MemoryError("none left")
FULL, LONG = Full(), StreamingLLM(4, 1020)
THREE = (FULL, RecentOnly(8), RecentOnly(9))
ONE_MACHINE = (Node("n", 2, 0, 1e12),)


def cell(policy=FULL, name="a", tokens=300, info=INFO):
    ids = np.random.default_rng(len(name)).integers(0, 97, tokens, dtype=np.int32)
    document = Document(name, ids, hashlib.sha256(ids.tobytes()).hexdigest())
    return QualityCell(info, "cpu", "float32", "t", document, (tokens,), policy)


def timed(context=32, info=INFO):
    return LatencyCell(info, "cpu", "float32", (RecentOnly(8),), context, 1, Repeats(), None)


def worker(id="w", node="n", memory=1e12, memory_of=None):
    return WorkerInfo(id, node, 1, memory, memory_of or node)


def checked(works, prepare=lambda work: work, say=print):
    """A scheduler whose model has passed."""
    scheduler = Scheduler(Check(cells=tuple(work.cells[0] for work in works)), works, prepare, say)
    one = worker("checker")
    scheduler.settle(Done(one, scheduler.next(one), None, 0, 1))
    scheduler.settle(Lost(one, ERROR))  # it is no more
    return scheduler


def jobs(policies=THREE, names="a", tokens=300):
    return jobs_of([cell(policy, name, tokens) for name in names for policy in policies], 1)


def what(work):
    return str(work.cells[0].policy), work.cells[0].document.name


def done(one, work, state=None):
    return Done(one, work, ([Evaluated(None, 1.0, state)], {}), 0.0, 1.0)


def test_quality_comes_before_latency_and_one_model_after_the_other():
    cells = [timed(), cell(name="a"), cell(name="a", info=OTHER), timed(info=OTHER), cell(name="b", info=OTHER)]
    found = [(type(phase[0]), phase[0].model, len(phase)) for phase in phases(cells)]
    assert found == [(QualityCell, INFO, 1), (QualityCell, OTHER, 2), (LatencyCell, INFO, 1), (LatencyCell, OTHER, 1)]
    assert phases([]) == []


def test_the_model_is_checked_once_before_its_cells():
    scheduler = Scheduler(Check(cells=(cell(),)), jobs())
    first, second = worker("1"), worker("2")
    check = scheduler.next(first)
    assert isinstance(check, Check)
    assert check.call[1]["token_ids_T"].tolist() == cell().document.token_ids.tolist()
    assert scheduler.next(second) is scheduler.next(first) is None, "nothing before it has passed"
    assert scheduler.settle(Done(first, check, None, 0, 1)) is None
    assert isinstance(scheduler.next(first), Job)
    assert isinstance(scheduler.next(second), Job)
    assert Check(cells=(timed(),)).call[1] == {"token_ids_T": None}


def test_a_check_whose_worker_died_is_asked_again_and_a_refused_model_computes_nothing():
    scheduler = Scheduler(Check(cells=(cell(),)), jobs())
    first, second = worker("1"), worker("2")
    scheduler.next(first)
    assert scheduler.settle(Lost(first, ERROR)) is None
    again = scheduler.next(second)
    assert (type(again), again.attempt) == (Check, 2)
    failure = scheduler.settle(Failed(second, again, ERROR))
    assert failure is again
    assert scheduler.over
    assert scheduler.next(second) is None


def test_what_workers_noted_of_their_machines_is_told_once():
    told, reporter = [], Mock()
    reporter.part = lambda line, tokens: told.append(line)
    results = Results(None, reporter)
    for notes in (("no kernel", "no kernel"), ("no kernel", "no graph"), ()):
        results.take(Done(worker(), Check(cells=(cell(),)), None, 0, 1, notes))
    assert told == ["no kernel", "no graph"]


def test_a_worker_has_one_piece_of_work_and_one_behind_it_while_more_wait_than_there_are_workers():
    scheduler, one, two = checked(jobs([RecentOnly(budget) for budget in range(1, 8)])), worker("1"), worker("2")
    running = [scheduler.next(one), scheduler.next(two)]
    behind = [scheduler.next(one), scheduler.next(two)]
    assert None not in running + behind
    assert scheduler.next(one) is scheduler.next(two) is None, "no third"
    assert (scheduler.in_flight, scheduler.waiting) == (4, 3)
    scheduler.settle(done(one, running[0]))
    assert scheduler.next(one), "three wait, two workers"
    scheduler.settle(done(two, running[1]))
    assert scheduler.next(two), "two wait, two workers"
    scheduler.settle(done(two, behind[1]))
    assert scheduler.next(two) is None, "the last one waits for whoever is idle first"
    assert scheduler.waiting == 1


def test_workers_stay_with_their_text():
    scheduler, one, two = checked(jobs(names="abc")), worker("1"), worker("2")
    texts = {"1": [], "2": []}
    for _ in range(3):
        for each in (one, two):
            work = scheduler.next(each)
            texts[each.id].append(what(work)[1])
            scheduler.settle(done(each, work))
    assert texts == {"1": list("aaa"), "2": list("bbb")}
    third = scheduler.next(one)
    assert what(third)[1] == "c"
    assert what(scheduler.next(two))[1] == "c", "who has nothing of its own helps where most is left"


def test_a_long_text_goes_on_from_its_last_part_before_others_begin():
    scheduler, one = checked(jobs(names="ab", tokens=2 * PART_TOKENS + 2)), worker()
    first = scheduler.next(one)
    assert (first.start, first.stop, first.ends) == (0, PART_TOKENS, False)
    scheduler.settle(done(one, first, state={"seen": torch.tensor(1)}))
    second = scheduler.next(one)
    assert what(second) == what(first)
    assert (second.start, second.begun.tokens, second.shared) == (PART_TOKENS, PART_TOKENS, 0)
    assert second.begun.state == {"seen": torch.tensor(1)}
    scheduler.settle(Lost(one, ERROR))
    again = scheduler.next(worker("other"))
    assert (again.start, again.begun, again.attempt) == (second.start, second.begun, 2), "not from the beginning"


def test_work_is_prepared_when_it_is_sent_and_not_before():
    prepared = []
    scheduler = checked(jobs(), lambda work: prepared.append(work) or work)
    assert not prepared
    assert scheduler.next(worker()) is prepared[0]
    assert len(prepared) == 1


def test_a_cell_whose_worker_died_is_tried_twice_and_what_waited_behind_it_loses_no_attempt():
    scheduler = checked(jobs([RecentOnly(budget) for budget in range(1, 6)]))
    running, behind = scheduler.next(worker("1")), scheduler.next(worker("1"))
    assert scheduler.settle(Lost(worker("1"), ERROR)) is None
    again = [scheduler.next(worker("2")), scheduler.next(worker("2"))]
    assert sorted((what(work), work.attempt) for work in again) == sorted([(what(running), 2), (what(behind), 1)])
    once_more = next(work for work in again if work.attempt == 2)
    other = next(work for work in again if work.attempt == 1)
    scheduler.settle(done(worker("2"), other))
    failure = scheduler.settle(Lost(worker("2"), ERROR))
    assert failure is once_more
    assert scheduler.in_flight == 0


@pytest.mark.parametrize("shared", ["side by side", "first tokens"])
def test_cells_that_were_computed_together_are_tried_once_more_alone(shared):
    if shared == "side by side":
        works = jobs_of([cell(FixSizeL2(64, 0.5, "keep_low"), name) for name in "ab"], 2)
    else:
        works = jobs((FULL, LONG), tokens=2000)
    scheduler, one = checked(works), worker()
    work = scheduler.next(one)
    assert len(work.cells) == 2 or work.shared == 1024
    assert scheduler.settle(Failed(one, work, ERROR)) is None
    again = scheduler.next(one)
    assert (what(again), len(again.cells), again.shared, again.attempt) == (what(work), 1, 0, 2)
    assert scheduler.settle(Failed(one, again, ERROR)) is again


def computed_alone(scheduler, one, error_of):
    """Have one worker compute everything: all it was sent, in that order, and what failed for good."""
    sent, failed, held = [], [], deque()
    while not scheduler.over:
        while work := scheduler.next(one):
            sent.append(work)
            held.append(work)
        work = held.popleft()
        error = error_of(work)
        if given_up := scheduler.settle(Failed(one, work, error) if error else done(one, work)):
            failed.append(given_up)
    return sent, failed


def crowded(most):
    """More texts than so many lack memory."""
    return lambda work: NO_MEMORY if len(work.cells) > most else None


def side_by_side(names, policies=(FULL,), tokens=300):
    return jobs_of([cell(policy, name, tokens) for name in names for policy in policies], 8)


def test_texts_that_run_out_of_memory_are_halved_and_later_ones_before_they_are_sent():
    """Eight were sent behind the first eight, and four behind these; the third eight were not."""
    said, names = [], "abcdefghijklmnopqrstuvwx"
    works = side_by_side(names)
    scheduler = checked(works, say=said.append)
    sent, failed = computed_alone(scheduler, worker(), crowded(2))
    assert [len(work.cells) for work in sent] == [8, 8, 4, 4, *[2] * 12]
    assert sorted(name for work in sent[4:] for name in work.text) == list(names)
    assert {work.attempt for work in sent} == {1}
    assert not failed
    assert said == [
        f"shape:pythia-70m · full: out of memory with {count} texts side by side, goes on with {count // 2} at a time; "
        "what needs about as much is halved from here on"
        for count in (8, 4)
    ]


def test_what_ran_out_of_memory_tells_of_what_needs_about_as_much_where_there_is_no_more():
    said = []
    limits, one = MemoryLimits(said.append), worker()
    [much], [later], [fewer] = (side_by_side(names, tokens=5000) for names in ("abcdefgh", "ijklmnop", "qrstuvw"))
    [nearly], [little] = (side_by_side("abcdefgh", [RecentOnly(budget)], 5000) for budget in (4500, 8))
    [alone] = side_by_side("a", tokens=5000)
    for work, event in (
        (much, Failed(one, much, ERROR)), (much, Lost(one, NO_MEMORY)), (alone, Failed(one, alone, NO_MEMORY)),
    ):  # fmt: skip
        assert not limits.met(work, event)
        assert not limits.exceeded(later, one)
    for _ in range(2):
        assert limits.met(much, Failed(one, much, NO_MEMORY))
    assert len(said) == 1
    small, large = worker(memory=1e11), worker(memory=1e13)
    found = {(name, where): limits.exceeded(work, where) for where in (small, one, large) for name, work in
             {"later": later, "nearly": nearly, "fewer": fewer, "little": little, "alone": alone}.items()}  # fmt: skip
    assert {each for each, is_so in found.items() if is_so} == {
        (name, where) for name in ("later", "nearly") for where in (small, one)
    }
    assert limits.met(later, Failed(large, later, NO_MEMORY))
    assert limits.exceeded(nearly, large)
    assert not any(limits.exceeded(check, one) for check in (Check(cells=much.cells), Timing(cells=(timed(),))))


def test_policies_on_texts_that_are_halved_go_on_sharing_first_tokens():
    works = side_by_side("abcdefgh", (FULL, LONG), tokens=2000)
    sent, failed = computed_alone(checked(works), worker(), crowded(4))
    assert [len(work.cells) for work in sent[:2]] == [8, 8]
    halves = [("".join(work.text), str(work.cells[0].policy), work.shared) for work in sent[2:]]
    assert sorted(halves) == [(text, str(policy), 1024) for text in ("abcd", "efgh") for policy in (FULL, LONG)]
    scheduler = checked([*works, *side_by_side("ijklmnop", (FULL, LONG), tokens=2000)])
    sent, failed = computed_alone(scheduler, worker(), crowded(4))
    later = ["".join(work.text) for work in sent[-4:]]
    assert later == ["ijkl", "ijkl", "mnop", "mnop"] or later == ["mnop", "mnop", "ijkl", "ijkl"], "text by text"
    assert not failed


@pytest.mark.parametrize(("policies", "attempts"), [((FULL,), [1]), ((FULL, LONG), [1, 1, 2, 2])])
def test_a_text_that_lacks_memory_alone_is_given_up_and_the_others_finish(policies, attempts):
    """Once more without what it shared, if it shared anything."""
    works = side_by_side("abcdefgh", policies, tokens=2000)
    sent, failed = computed_alone(checked(works), worker(), lambda work: NO_MEMORY if "c" in work.text else None)
    alone = [work for work in sent if work.text == ("c",)]
    assert [work.attempt for work in alone] == attempts
    assert [work.shared for work in alone] == [
        0 if attempt == 2 or len(policies) == 1 else 1024 for attempt in attempts
    ]
    assert [work.text for work in failed] == [("c",)] * len(policies)
    finished = [(name, work.cells[0].policy) for work in sent if "c" not in work.text for name in work.text]
    assert len(finished) == len(set(finished)) == 7 * len(policies)


def test_a_latency_cell_that_lacks_memory_is_given_up_at_once_and_the_next_is_timed():
    first, second = Timing(cells=(timed(32),)), Timing(cells=(timed(64),))
    scheduler, one = checked([first, second], say=pytest.fail), worker()
    assert scheduler.settle(Failed(one, scheduler.next(one), NO_MEMORY)) is first
    assert scheduler.next(one) is second


def test_a_killed_worker_costs_texts_side_by_side_one_of_two_attempts_and_says_nothing_of_others():
    """Also where its machine's memory was full: who filled that is not known."""
    works = [*side_by_side("abcdefgh"), *side_by_side("ijklmnop")]
    scheduler, one = checked(works, say=pytest.fail), worker()
    work = scheduler.next(one)
    assert scheduler.settle(Lost(one, NO_MEMORY)) is None
    again = [scheduler.next(worker(str(number))) for number in range(9)]
    assert [(len(work.cells), work.attempt) for work in again] == [(1, 2)] * 8 + [(8, 1)]
    assert "".join(one.text[0] for one in again[:8]) == "".join(work.text)
    assert scheduler.settle(Lost(worker("0"), NO_MEMORY)) is again[0]
    halved, one = checked(side_by_side("abcd")), worker()
    assert halved.settle(Failed(one, halved.next(one), NO_MEMORY)) is None
    assert [len(halved.next(one).cells) for _ in range(2)] == [2, 2]
    assert halved.settle(Lost(one, ERROR)) is None
    again = [halved.next(worker(str(number))) for number in range(3)]
    assert sorted((len(work.cells), work.attempt) for work in again) == [(1, 2), (1, 2), (2, 1)]


def test_work_goes_where_there_is_memory_for_it():
    small, large = jobs([RecentOnly(8), Full()], tokens=PART_TOKENS)
    if small.memory_bytes > large.memory_bytes:
        small, large = large, small
    room = (small.memory_bytes + large.memory_bytes) / 2
    scheduler = checked([large, small])
    assert scheduler.next(worker("1", "little", room)) is small
    assert scheduler.next(worker("2", "little", room)) is None
    assert scheduler.next(worker("3", "big", 1e12)) is large


def test_workers_of_one_machine_share_its_memory_and_those_of_gpus_have_their_own():
    first, second = jobs([RecentOnly(8), RecentOnly(9)])
    room = 1.5 * first.memory_bytes
    scheduler = checked([first, second])
    assert scheduler.next(worker("1", memory=room)) is first
    assert scheduler.next(worker("2", memory=room)) is None
    assert scheduler.next(worker("3", memory=room, memory_of="a GPU")) is second


def test_a_gpu_holds_the_weights_beside_its_texts():
    """The CPU workers of a machine share them. A model is checked on a GPU that holds it."""
    beside = replace(cell(), device="cuda")
    assert Job(cells=(cell(),)).memory_bytes < weights_bytes(cell())
    assert Job(cells=(beside,)).memory_bytes > weights_bytes(beside)
    check = Check(cells=(beside,))
    scheduler = Scheduler(check, jobs_of([beside], 1))
    little, large = worker("1", "little", weights_bytes(beside) - 1), worker("2", "big", 1e12)
    assert scheduler.next(little) is None
    assert scheduler.next(large) is check
    scheduler.settle(Done(large, check, None, 0, 1))
    assert scheduler.next(little) is None
    assert scheduler.next(large).cells == (beside,)


def test_told_changes_nothing():
    scheduler, one = checked([Timing(cells=(timed(),))]), worker()
    work = scheduler.next(one)
    assert work.call == ("latency", {"cell": work.cells[0]})
    assert scheduler.settle(Told(one, work, "half")) is None
    assert scheduler.in_flight == 1


@dataclass
class Book:
    """What would be written down."""

    taken: list = field(default_factory=list)
    lost: list = field(default_factory=list)
    lines: list = field(default_factory=list)

    @property
    def reporter(self):
        return self

    def say(self, line):
        self.lines.append(line)

    note = say

    def resumed(self, work):
        return work

    def take(self, event):
        self.taken.append(event)

    def failed(self, work, error):
        self.lost.append((what(work), work.attempt, str(error)))

    def refused(self, cells, error, told):
        self.lost.append((len(cells), str(error), told))


class FakePool:
    """Workers that finish what they have, one piece at each wait, unless something else is to happen to it."""

    def __init__(self, slots, nodes, happens=lambda work: None):
        self.slots, self.happens, self.closed, self.sent, self.number = slots, happens, False, {}, 0
        self.workers = [worker(f"{node.id}{n}", node.id, node.memory) for node in nodes for n in range(slots.on(node))]
        self.all_sent = []

    def load(self, cell, say):
        if cell.model == OTHER and self.happens == "cannot load":
            raise ERROR
        say(f"loading {cell.model.spec}")

    def idle(self):
        return sorted(self.workers, key=lambda one: len(self.sent.get(one.id, [])))

    def starting(self):
        return False

    def send(self, one, work):
        self.sent.setdefault(one.id, []).append(work)
        self.all_sent.append((one.id, work))

    def wait(self, seconds):
        events = []
        for one in list(self.workers):
            if held := self.sent.get(one.id):
                error = self.happens(held[0]) if callable(self.happens) else None
                if isinstance(error, Lost):
                    self.number += 1
                    self.sent.pop(one.id)
                    self.workers[self.workers.index(one)] = worker(f"new{self.number}", one.node, one.memory_bytes)
                    events.append(Lost(one, error.error))
                elif error:
                    events.append(Failed(one, held.pop(0), error))
                else:
                    events.append(done(one, held.pop(0)))
        assert events or self.workers, "it hangs"
        return events

    def close(self):
        self.closed = True


def driven(cells, happens=lambda work: None, nodes=ONE_MACHINE, interrupt=None):
    """Compute cells with such a pool: what was written down, and the pools, of quality and of latency."""
    book, pools = Book(), {}

    def pool_for(slots, given):
        return pools.setdefault(slots.whole, FakePool(slots, given, happens))

    driver = Driver(
        Slots("cpu", 1), Slots("cpu", None, whole=True), list(nodes), pool_for, book, interrupt or Interrupt()
    )
    driver.measure(cells)
    return book, pools


def computed(book):
    return [event.work.cells[0] for event in book.taken if isinstance(event, Done) and event.work.call[0] != "check"]


def test_the_driver_has_everything_computed_and_latency_alone_on_its_machine():
    cells = [timed(), *(cell(policy, name) for name in "ab" for policy in (Full(), RecentOnly(8))), timed(64)]
    book, pools = driven(cells, nodes=(Node("n", 2, 0, 1e12), Node("m", 1, 0, 1e12)))
    assert set(computed(book)) == set(cells)
    assert [type(each) for each in computed(book)] == [QualityCell] * 4 + [LatencyCell] * 2
    assert len(pools[False].workers) == 3
    assert [one.node for one in pools[True].workers] == ["n", "m"], "one on each machine"
    assert book.lines.count("checking shape:pythia-70m") == 2
    assert not book.lost


def test_the_driver_writes_down_what_failed_for_good_only():
    def happens(work):
        policy = str(getattr(work.cells[0], "policy", ""))
        return {"recent_only(8)": ERROR, "recent_only(9)": Lost(worker(), ERROR)}.get(
            policy if work.call[0] == "quality" else ""
        )

    book, _ = driven([cell(RecentOnly(budget)) for budget in (7, 8, 9, 10, 11)], happens)
    assert sorted(book.lost) == [
        (("recent_only(8)", "a"), 1, "on purpose"),
        (("recent_only(9)", "a"), 2, "on purpose"),
    ]
    assert {str(each.policy) for each in computed(book)} == {f"recent_only({budget})" for budget in (7, 10, 11)}


@pytest.mark.parametrize("when", ["checked", "loaded"])
def test_a_refused_model_costs_only_its_own_cells(when):
    def refuse(work):
        return ERROR if work.call[0] == "check" and work.cells[0].model == OTHER else None

    cells = [cell(info=OTHER), cell(RecentOnly(8), info=OTHER), cell(), timed(info=OTHER), timed()]
    book, _ = driven(cells, refuse if when == "checked" else "cannot load")
    assert book.lost == [(2, "on purpose", False), (1, "on purpose", True)], "said once"
    assert {each.model for each in computed(book)} == {INFO}
    assert len(computed(book)) == 2


def test_what_fits_on_no_machine_that_is_left_fails_and_does_not_hang():
    cells = [cell(RecentOnly(8)), cell(Full(), tokens=PART_TOKENS)]
    book, _ = driven(cells, nodes=(Node("n", 2, 0, Job(cells=cells[:1]).memory_bytes + 1),))
    assert book.lost == [(("full", "a"), 1, "no machine that is left has the memory that it needs")]
    assert computed(book) == cells[:1]


def test_a_first_ctrl_c_drains_and_a_second_stops(monkeypatch):
    cells = [cell(RecentOnly(budget)) for budget in range(1, 9)]
    for count, finishes in ((1, True), (2, False)):
        interrupt = Interrupt()

        def happens(work, interrupt=interrupt, count=count):
            interrupt.count = count if work.call[0] == "quality" else 0

        book, pools = driven([*cells, timed()], happens, interrupt=interrupt)
        begun = [work for _, work in pools[False].all_sent if work.call[0] == "quality"]
        assert len(begun) == 4, "two run and two are queued"
        assert len(computed(book)) == (4 if finishes else 2)
        assert pools[False].closed != finishes
        assert True not in pools, "no latency cell"


def test_an_error_in_the_driver_leaves_no_worker_at_work():
    class FullDisk(Book):
        def take(self, event):
            raise OSError("no space left")

    pools = []

    def pool_for(slots, nodes):
        pools.append(FakePool(slots, nodes))
        return pools[-1]

    driver = Driver(Slots("cpu", 1), Slots("cpu", None), [Node("n", 1, 0, 1e12)], pool_for, FullDisk(), Interrupt())
    with pytest.raises(OSError, match="no space"):
        driver.measure([cell()])
    assert pools[0].closed
