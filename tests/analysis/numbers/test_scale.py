"""Ten million token rows in a thousand cells: the whole report, charts and page included, in 2 GB on two cores.

Charts, statistics and imports take as long however many tokens a cell has. With them, ten million rows take at most two
and a half times what fifty thousand take, in processor time: this holds on slow processors and beside other work, too.
By the clock they took 13 s where a minute is allowed here. Memory is that of the whole process tree, as charts are
drawn by other processes.

    python -m pytest -n 0 -m long -s tests/analysis/numbers/test_scale.py      prints what it took
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from golden import FULL, GOLDEN, ROOT, Latency, l2, recent, streaming, write

CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
ROWS = 10_000
LARGE = replace(
    GOLDEN,
    policies=(
        FULL,
        *(streaming(start, budget - start, 0.1) for budget in (256, 1024) for start in (0, 1, 4)),
        *(recent(budget, 0.6) for budget in (256, 1024)),
        l2(256, "keep_low", 0.4),
    ),
    documents=tuple(f"book {number:02}" for number in range(50)),
    tokens=ROWS + 1,
    lengths=(512, 1024, 2048, 4096, 8192, ROWS + 1),
    latency=Latency(contexts=(512, 2048, 8192)),
    diverges=True,
)
SMALL = replace(LARGE, tokens=51, lengths=(5, 10, 20, 30, 40, 51))


def reported(plan, folder: Path) -> tuple[float, float, float]:
    """Processor seconds, seconds by the clock, and gigabytes at most, that the report of a plan takes."""
    write(replace(plan, invalid=False, failed=0, missing=0), folder / "records")
    command = [sys.executable, str(ROOT / "analysis" / "report.py"), "--records", str(folder / "records")]
    begin, most = time.monotonic(), 0
    child = subprocess.Popen(
        [*command, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, CORES),
    )
    while (ended := os.wait4(child.pid, os.WNOHANG))[0] == 0:
        most = max(most, held(child.pid))
        time.sleep(0.05)
    _, status, used = ended
    assert status == 0
    return used.ru_utime + used.ru_stime, time.monotonic() - begin, most / 1e9


def held(pid: int) -> int:
    """Bytes of a process and of all that it began; pages that they share count once, in shares."""
    place, total = Path(f"/proc/{pid}"), 0
    try:
        sizes = (place / "smaps_rollup").read_text()
        total = 1024 * next(int(line.split()[1]) for line in sizes.splitlines() if line.startswith("Pss:"))
        children = [int(one) for task in (place / "task").iterdir() for one in (task / "children").read_text().split()]
    except (OSError, StopIteration):  # it has just ended
        return total
    return total + sum(map(held, children))


@pytest.mark.long
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores and a kernel that pins processes to them")
def test_ten_million_rows_take_little_more_than_few_and_two_gigabytes(tmp_path):
    few, *_ = reported(SMALL, tmp_path / "small")
    many, seconds, gigabytes = reported(LARGE, tmp_path / "large")
    print(f"processor time {few:.1f} s for few rows, {many:.1f} s for many")
    print(f"these took {seconds:.1f} s on two cores and {gigabytes:.2f} GB")
    assert len(list((tmp_path / "large" / "records").glob("*.parquet"))) == 1000 + 2 * 3
    assert "10,000,000" in (tmp_path / "large" / "index.html").read_text(encoding="utf-8")
    assert many <= 2.5 * few
    assert seconds <= 60
    assert gigabytes <= 2
