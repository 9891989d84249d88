"""Which processes belong to a stand-in machine: those that carry its mark, and all that write into its folder."""

from contextlib import suppress

import psutil


def inside(folder):
    """Processes started there. Some of Ray's rewrite their environment: those are known by the logs they hold open."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            marked = environment.get("STANDIN") == str(folder) and "STANDIN_CONTAINER" in environment
            if marked or any(file.path.startswith(f"{folder}/t/") for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            pass
    return found


def stop(processes):
    """Kill processes and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
