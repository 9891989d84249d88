"""How long a cell still takes, as a log says it; what a bar shows, `rich` estimates."""

import re

import pytest

from kvstream.sweep import progress


@pytest.fixture
def told(monkeypatch, capsys):
    """Factory: (seconds since the sweep began, share) of a long cell → the last line of the log, minutes apart."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "LOG_S", 0.0)
    reporter = progress.Reporter(1, 100)

    def tell(*events):
        for seconds, share in events:
            clock[0] = float(seconds)
            reporter.inside("cell", "a round", share)
        return re.fullmatch(r"cell: (.*), a round", capsys.readouterr().out.splitlines()[-1]).group(1)

    return tell


def test_a_warm_up_tells_nothing_of_the_pace(told):
    assert told((10, 0.0), (600, 0.0)) == "starting"
    assert told((700, 0.25)) == "0:05:00 left"
    assert told((800, 0.5)) == "0:03:20 left"


def test_a_cell_that_is_first_heard_of_in_its_middle_is_timed_from_there(told):
    assert told((10, 0.5)) == "starting"
    assert told((20, 0.75)) == "0:00:10 left"


def test_a_cell_that_is_tried_again_begins_anew(told):
    assert told((10, 0.0), (20, 0.5)) == "0:00:10 left"
    assert told((100, 0.0)) == "starting"
    assert told((140, 0.5)) == "0:00:40 left"
