"""Runs Python functions in the threads of torch's own loops.

Those threads go on looking for work for a while after each of torch's loops, at full speed (libgomp's GOMP_SPINCOUNT:
https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). Other threads would share the cores with that, so that
several may take as long as one. Where torch's OpenMP cannot be asked, a pool of threads it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

Job = Callable[[], None]
MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # what each thread of a team is called with, the data, means nothing


def run_all(jobs: list[Job]) -> None:
    """Run jobs, which hold no lock of Python's as they work: several in torch's threads. Raises their errors."""
    openmp = torch_openmp()
    if len(jobs) == 1:
        jobs[0]()
    elif openmp is None:
        list(_pool(torch.get_num_threads()).map(lambda job: job(), jobs))
    else:
        _run_in_team(openmp, jobs)


@cache
def torch_openmp() -> Any:
    """The OpenMP that torch runs on, if it can start a team as GCC's does; else None.

    Where the process preloaded one that is it; else the one that torch's library was linked with, through which it is
    found.
    """
    for place in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(place)
            for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
                getattr(library, name)
            return library
    return None


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
    try:
        if failed:
            raise next((error for error in failed if not isinstance(error, Exception)), failed[0])
        if len(done) < len(jobs):  # Ctrl-C came outside the `try`, where ctypes drops it
            raise KeyboardInterrupt
    finally:
        failed.clear()  # an error's traceback leads here, and would from here to the error


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
