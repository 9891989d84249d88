"""How many threads a compiled loop gets: as many as are quicker for work of its size, whatever the first call took."""

from types import SimpleNamespace

import pytest
import torch

from kvstream.engine.backends import pace

HANDING = 20e-6  # seconds that it takes to hand work over
FOUND = 2 * pace.FIRST * pace.RUN  # short calls before the first choice


class Machine:
    """Two threads, on a clock that counts work: a unit takes a microsecond, of the first call a second more."""

    def __init__(self, monkeypatch):
        self.asked, self.clock, self.took = [], 0.0, self.plainly
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(pace, "run_all", self.run_all)
        monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: self.clock))

    def run_all(self, jobs):
        self.asked.append(len(jobs))
        compiling = 1.0 if len(self.asked) == 1 else 0.0
        self.clock += compiling + self.took([job.args[0].stop - job.args[0].start for job in jobs])

    def plainly(self, sizes):
        return 1e-6 * max(sizes) + (HANDING if sizes[1:] else 0.0)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def calls(spread, count, work):
    for _ in range(count):
        spread(print, work, work)


@pytest.mark.parametrize(("work", "threads"), [(4, 1), (30, 1), (50, 2), (1500, 2)])
def test_the_quicker_number_of_threads_is_found(machine, work, threads):
    calls(pace.Pace().spread, FOUND + 5, work)
    # The first call, which compiled, was a run by itself.
    assert machine.asked[FOUND - pace.RUN + 1 :] == [threads] * (pace.RUN + 4)


def test_caches_that_the_other_number_left_cold_do_not_decide(machine):
    """Two threads are quicker but in the first three calls after one."""

    def took(sizes):
        alike = machine.asked[-4:] == [len(sizes)] * 4
        return (2e-4, 1e-4 if alike else 3e-4)[len(sizes) - 1]

    machine.took = took
    calls(pace.Pace().spread, FOUND + 100, 4000)
    assert machine.asked[FOUND:] == [2] * 100


def test_long_calls_are_tried_one_by_one(machine):
    """Of a chunk that takes a second none is spent on warming up."""
    calls(pace.Pace().spread, 2 * pace.FIRST + 5, 1_000_000)
    assert machine.asked == [2, 1] * pace.FIRST + [2] * 5


@pytest.mark.parametrize(("work", "run"), [(500, pace.RUN), (10_000, 1)])
def test_what_was_slower_is_asked_again_now_and_then(machine, work, run):
    """At first something else keeps the other core busy, so that two threads take three times as long as one."""
    spread = pace.Pace().spread
    machine.took = lambda sizes: 1e-6 * work * (3 if sizes[1:] else 1)
    calls(spread, FOUND, work)
    assert machine.asked[-5:] == [1] * 5
    machine.took = machine.plainly
    machine.asked[:] = [0]  # nothing is compiled any more
    calls(spread, 40 * pace.AGAIN * run, work)
    assert machine.asked[-5:] == [2] * 5
    first = machine.asked.index(2)
    assert 3 * pace.AGAIN * run - FOUND <= first <= 3 * pace.AGAIN * run, "a third as often as what takes as long"


def test_each_size_has_its_own_answer(machine):
    spread = pace.Pace().spread
    for _ in range(FOUND):
        spread(print, 1500, 1500)
        spread(print, 4, 4)
    machine.asked.clear()
    for work in (4, 1500):
        spread(print, work, work)
    assert machine.asked == [1, 2]


@pytest.mark.parametrize("before", [FOUND // 2, FOUND - 3])
def test_the_number_of_threads_may_change_while_they_are_tried(machine, monkeypatch, before):
    spread = pace.Pace().spread
    calls(spread, before, 1500)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    calls(spread, FOUND + 5, 1500)
    assert machine.asked[-5:] == [4] * 5


def test_work_of_a_size_that_is_cut_into_as_many_in_turns_is_settled(machine):
    """As of layers with two sets and with three."""
    spread = pace.Pace().spread
    for _ in range(2 * FOUND):
        for sets in (2, 3, 1):
            spread(print, sets, 4000)
    assert not any(spread.__self__.tries.values())


def test_another_number_of_threads_is_tried_when_torch_has_it(machine, monkeypatch):
    spread = pace.Pace().spread
    for threads in (2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        calls(spread, FOUND + 5, 1500)
        assert machine.asked[-5:] == [threads] * 5


def test_one_set_is_never_cut(machine):
    spread = pace.Pace().spread
    for _ in range(FOUND):
        spread(print, 1, 10_000)
    assert set(machine.asked) == {1}
