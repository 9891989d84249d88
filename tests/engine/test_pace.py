"""How many threads a compiled loop gets: as many as are quicker for work of its size, whatever the first call took."""

import pytest
import torch

from kvstream.engine.backends import pace

HANDING = 20e-6  # seconds that it takes to hand work over


@pytest.fixture
def machine(monkeypatch):
    """Two threads, on a clock that counts work: a unit takes a microsecond; what it was asked for, by threads."""
    asked = []

    def seconds(piece, pieces):
        asked.append(len(pieces))
        compiling = 1.0 if len(asked) == 1 else 0.0
        largest = max(part.stop - part.start for part in pieces)
        return compiling + 1e-6 * largest + (HANDING if pieces[1:] else 0.0)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(pace, "_seconds", seconds)
    return asked


@pytest.mark.parametrize(("work", "threads"), [(4, 1), (30, 1), (50, 2), (4000, 2)])
def test_the_quicker_number_of_threads_is_found(machine, work, threads):
    spread = pace.Pace().spread
    for _ in range(2 * pace.TRIES + 5):
        spread(lambda part: None, work, work)
    assert machine[2 * pace.TRIES :] == [threads] * 5


def test_what_was_slower_is_asked_again_now_and_then(machine, monkeypatch):
    """At first something else keeps the other core busy, so that two threads take three times as long as one."""
    spread, alone, beside = pace.Pace().spread, pace._seconds, 0.01
    monkeypatch.setattr(pace, "_seconds", lambda *of: alone(*of) + (beside if of[1][1:] else 0.0))
    for _ in range(30):
        spread(lambda part: None, 4000, 4000)
    assert machine[-5:] == [1] * 5
    beside = 0.0
    machine.clear()
    for _ in range(pace.TRIES * 4 * pace.AGAIN):
        spread(lambda part: None, 4000, 4000)
    assert machine[-5:] == [2] * 5
    first = "".join(map(str, machine)).index("22222")
    assert machine[:first].count(2) == pace.TRIES // 2, "until with one more most of what is remembered is of now"
    assert first > 3 * pace.AGAIN * (pace.TRIES // 2), "what takes three times as long is tried a third as often"


def test_each_size_has_its_own_answer(machine):
    spread = pace.Pace().spread
    for work in [4000, 4] * (2 * pace.TRIES):
        spread(lambda part: None, work, work)
    machine.clear()
    for work in (4, 4000):
        spread(lambda part: None, work, work)
    assert machine == [1, 2]


def test_another_number_of_threads_is_tried_when_torch_has_it(machine, monkeypatch):
    spread = pace.Pace().spread
    for threads in (2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for _ in range(2 * pace.TRIES + 5):
            spread(lambda part: None, 4000, 4000)
        assert machine[-5:] == [threads] * 5


def test_one_set_is_never_cut(machine):
    spread = pace.Pace().spread
    for _ in range(3 * pace.TRIES):
        spread(lambda part: None, 1, 10_000)
    assert set(machine) == {1}
