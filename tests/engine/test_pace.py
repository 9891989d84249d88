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
    """At first something else keeps the other core busy."""
    spread, beside = pace.Pace().spread, 1.0
    monkeypatch.setattr(
        pace,
        "_seconds",
        lambda piece, pieces, alone=pace._seconds: alone(piece, pieces) + (beside if pieces[1:] else 0.0),
    )
    for _ in range(30):
        spread(lambda part: None, 4000, 4000)
    assert machine[-5:] == [1] * 5
    beside = 0.0
    for _ in range(pace.TRIES * pace.AGAIN):
        spread(lambda part: None, 4000, 4000)
    assert machine[-5:] == [2] * 5


def test_each_size_has_its_own_answer(machine):
    spread = pace.Pace().spread
    for work in [4000, 4] * (2 * pace.TRIES):
        spread(lambda part: None, work, work)
    machine.clear()
    for work in (4, 4000):
        spread(lambda part: None, work, work)
    assert machine == [1, 2]


def test_one_set_is_never_cut(machine):
    spread = pace.Pace().spread
    for _ in range(3 * pace.TRIES):
        spread(lambda part: None, 1, 10_000)
    assert set(machine) == {1}
