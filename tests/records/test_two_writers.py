"""Two sweeps that write the same cells at once: in whatever order their files land, a record names whole rows.

Object stores have no locks, so there it may happen. What each write leaves is looked at, for both kinds of place.
"""

from itertools import combinations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from record_cases import AFTER, BEFORE, KEY, rows_of

from analysis.read import fetching
from kvstream.measure.quality import Evaluated
from kvstream.records.long_cells import Parts, tidy
from kvstream.records.storage import Bucket
from kvstream.records.store import Records

WRITES = 2  # of a commit: rows, then the record


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    return str(tmp_path / "records") if request.param == "disk" else request.getfixturevalue("bucket")


class Waiting:
    """A place that makes nothing of what is written, but keeps it to be written later, in order."""

    def __init__(self, storage):
        self.storage, self.kept = storage, []

    def write(self, name, data):
        self.kept.append(lambda: self.storage.write(name, data))

    def remove(self, name):
        self.kept.append(lambda: self.storage.remove(name))

    def __getattr__(self, name):
        return getattr(self.storage, name)


def writes_of(place, act):
    """What an action writes and removes, each as a call."""
    records = Records(place)
    records.storage = Waiting(records.storage)
    act(records)
    return records.storage.kept


def orders(first, second):
    """All ways in which two sequences may come one within the other."""
    for places in combinations(range(len(first) + len(second)), len(first)):
        one, other = iter(first), iter(second)
        yield [next(one if n in places else other) for n in range(len(first) + len(second))]


@pytest.mark.parametrize(("rows", "before"), [(AFTER, True), (BEFORE, False)])
def test_a_record_names_whole_rows_after_every_write(place, rows, before):
    """Of other rows, as times are, where the cell is there; of the same where it is new."""
    records, held = Records(place), [BEFORE, rows]
    first = writes_of(place, lambda records: records.commit(KEY, {"n": 1}, [BEFORE], 0.5, {}))[:WRITES]
    second = writes_of(place, lambda records: records.commit(KEY, {"n": 2}, [rows], 0.5, {}))[:WRITES]
    for order in orders(first, second):
        for name in records.storage.names():
            records.storage.remove(name)
        if before:
            records.commit(KEY, {"n": 1}, [BEFORE], 0.5, {})
        for write in order:
            write()
            if f"{KEY}.json" in records.storage.names():
                record, found = rows_of(records, KEY)
                assert found.equals(held[record["fields"]["n"] - 1])
                assert records.finished([KEY])
        with fetching.at_hand(place) as folder:  # a report
            assert pq.read_table(folder / record["file"]).equals(held[record["fields"]["n"] - 1])


def part(number):
    """One of the three parts of a long cell, and what its sweep computes."""
    return Evaluated(BEFORE.slice(number, 1), 0.5, {"kept": torch.arange(number)})


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_sweep_that_ends_a_long_cell_first_costs_the_other_nothing(place, ahead):
    """It removes the cell's parts, the other's among them."""
    one, other = (Parts(Records(place), KEY) for _ in range(2))
    for number in range(ahead):
        other.add(part(number), number + 1)
    for parts in (one, other):
        for number in range(len(parts.parts), 2):
            parts.add(part(number), number + 1)
        tables, seconds = parts.all_with(part(2))
        assert pa.concat_tables(tables).equals(BEFORE)
        assert seconds == 1.5
        parts.records.commit(KEY, {"n": 1}, tables, seconds, {})
        parts.clear()
    assert rows_of(one.records, KEY)[1].equals(BEFORE)
    assert len(one.records.storage.names()) == 2


def test_what_it_leaves_of_parts_goes_with_the_next_sweep(place):
    slow = Parts(Records(place), KEY)
    slow.add(part(0), 1)
    slow.records.commit(KEY, {"n": 1}, [BEFORE], 0.5, {})
    Parts(slow.records, KEY).clear()
    slow.add(part(1), 2)  # and is killed
    with pytest.raises(ValueError, match=r"\.1\..*\.part\.parquet cannot be read"):
        Parts(slow.records, KEY).load()
    assert tidy(slow.records, {KEY}, {KEY}) == 0
    assert len(slow.records.storage.names()) == 2


def test_two_sweeps_may_hold_a_bucket(bucket):
    with Records(bucket).locked(), Records(bucket).locked():
        stray, _ = Records(bucket).write_named(KEY, "parquet", b"rows whose record comes next")
    with Records(bucket).locked():
        assert Bucket(bucket).names() == [stray], "nobody removes what another sweep is about to name"
