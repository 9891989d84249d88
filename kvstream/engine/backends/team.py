"""Runs Python functions in the threads of torch's own loops.

Those threads go on looking for work for milliseconds after each of torch's loops, at full speed (libgomp's
GOMP_SPINCOUNT: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). Other threads beside them would share
the cores with that: two then take as long as one. Where torch's OpenMP cannot be asked, a pool of threads it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

Job = Callable[[], None]
MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # what each thread of a team is called with, the data, means nothing


def run_all(jobs: list[Job]) -> None:
    """Run jobs, which hold no lock of Python's as they work, in as many threads as torch uses; raises what one does."""
    openmp = torch_openmp()
    if len(jobs) == 1:
        jobs[0]()
    elif openmp is None:
        list(_pool(torch.get_num_threads()).map(lambda job: job(), jobs))
    else:
        _run_in_team(openmp, jobs)


@cache
def torch_openmp() -> Any:
    """The OpenMP that torch was linked with, if it can start a team as GCC's does; else None."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
            getattr(library, name)  # found in what the library itself was linked with
    except (OSError, AttributeError):
        return None
    return library


def _run_in_team(openmp: Any, jobs: list[Job]) -> None:
    done: list[Job] = []
    failed: list[BaseException] = []

    def member(_: Any) -> None:
        try:
            for job in jobs[openmp.omp_get_thread_num() :: openmp.omp_get_num_threads()]:
                job()
                done.append(job)
        except BaseException as error:  # Ctrl-C reaches the first thread, and no error may cross C
            failed.append(error)

    # A team of another size than torch's would be made anew, at this loop and at torch's next.
    openmp.GOMP_parallel(MEMBER(member), None, torch.get_num_threads(), 0)
    if failed:
        raise failed[0]
    if len(done) < len(jobs):  # Ctrl-C came outside the `try`, where ctypes drops it
        raise KeyboardInterrupt


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
