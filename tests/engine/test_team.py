"""Jobs in the threads of torch's own loops: each done once, and no error lost on the way through C."""

import sys
import threading
import time

import pytest
import torch

from kvstream.engine.backends import team


@pytest.fixture(params=["torch's own", "a pool"])
def run_all(request, monkeypatch):
    if request.param == "a pool":
        monkeypatch.setattr(team, "torch_openmp", lambda: None)
    elif team.torch_openmp() is None:
        pytest.skip("torch's OpenMP cannot be asked for a team here")
    return team.run_all


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch may be linked with another OpenMP")
def test_torchs_openmp_is_found_on_linux():
    assert team.torch_openmp() is not None


@pytest.mark.parametrize(("size", "jobs"), [(1, 3), (2, 1), (2, 2), (2, 5), (3, 2)])
def test_every_job_is_done_once(run_all, threads, size, jobs):
    threads(size)
    done = []
    for _ in range(3):
        run_all([lambda n=n: done.append(n) for n in range(jobs)])
    assert sorted(done) == sorted(list(range(jobs)) * 3)


def test_two_jobs_run_at_the_same_time(run_all, threads):
    threads(2)
    both = threading.Barrier(2, timeout=20)
    run_all([both.wait, both.wait])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", [0, 1])
def test_what_a_job_raises_is_raised(run_all, threads, error, place):
    def fail():
        raise error("told")

    threads(2)
    jobs = [lambda: None, lambda: None]
    jobs[place] = fail
    with pytest.raises(error, match="told"):
        run_all(jobs)


def test_ctrl_c_is_told_before_another_error(run_all, threads):
    failed = threading.Event()

    def fail():
        failed.set()
        raise ValueError

    def stop():
        failed.wait(20)
        time.sleep(0.1)
        raise KeyboardInterrupt

    threads(2)
    with pytest.raises(KeyboardInterrupt):
        run_all([stop, fail])


def test_a_job_that_was_dropped_is_not_passed_over(threads, monkeypatch):
    class Drops:
        """An OpenMP whose first thread was stopped before its job."""

        omp_get_thread_num = staticmethod(lambda: 1)
        omp_get_num_threads = staticmethod(lambda: 2)
        GOMP_parallel = staticmethod(lambda member, *_: member(None))

    threads(2)
    monkeypatch.setattr(team, "torch_openmp", Drops)
    with pytest.raises(KeyboardInterrupt):
        team.run_all([lambda: None, lambda: None])
