"""Two sweeps on one records folder, at once or one after the other's death: no row twice, none of another's."""

import json
import signal
from collections import Counter

import pyarrow.parquet as pq
import pytest
from apart import CELLS, RECORD, failures, gated, head, told, until, workers
from driving import digest


def rows_are_their_own(records):
    """Each file holds its cell's rows, each position once."""
    for path in records.glob(RECORD):
        record = json.loads(path.read_text())
        table = pq.read_table(records / record["file"])
        assert set(table["cell"].to_pylist()) == {record["cell"]}
        assert table["position"].to_pylist() == list(range(1, 300))


@pytest.mark.long
def test_the_second_of_two_sweeps_says_who_holds_the_folder_and_leaves_the_first_alone(start, world, tmp_path, whole):
    command = gated(world, tmp_path)
    first = start(command)
    until(lambda: len({pid for pid, *_ in told(tmp_path)}) == 2, 60, "two cells of the first")
    second = start(command)
    assert second.ended(60) == 2
    [line] = [line for line in second.err().splitlines() if line.startswith("error: ")]
    assert f"is being written by process {first.process.pid} on " in line
    assert line.endswith("wait or give another --out")
    assert "Traceback" not in second.out() + second.err()
    (tmp_path / "gate").unlink()
    assert first.ended(120) == 0, first.err()
    assert digest(tmp_path / "records") == whole
    rows_are_their_own(tmp_path / "records")


@pytest.mark.long
def test_a_dead_drivers_tasks_do_not_reach_the_records_of_the_next(start, world, tmp_path, whole):
    """Ray goes on without the driver, and so may its workers for a moment; the next driver computes the same cells."""
    ray, address = head(start)
    command = gated(world, tmp_path, before="pass")
    first = start(command, RAY_ADDRESS=address)
    until(lambda: len({pid for pid, *_ in told(tmp_path)}) == 2, 60, "two cells of the first")
    first.process.kill()
    assert first.ended() == -signal.SIGKILL
    (tmp_path / "gate").unlink()  # now they could end
    second = start(command, RAY_ADDRESS=address)
    assert second.ended(120) == 0, second.err()
    assert digest(tmp_path / "records") == whole
    assert not failures(tmp_path)
    rows_are_their_own(tmp_path / "records")
    lines = Counter(line.partition("] ")[2] for line in second.out().splitlines() if ": PPL" in line)
    assert len(lines) <= CELLS
    assert max(lines.values()) == 1
    until(lambda: not workers(ray.session), 30, "the end of all workers")
