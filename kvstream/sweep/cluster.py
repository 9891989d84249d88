"""The machines a sweep runs on: finds or starts Ray, and looks at its nodes."""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvstream.engine.notes import first_line
from kvstream.grid.terminal import counted
from kvstream.sweep.pool import Node

NODE_ID = "ray.io/node-id"  # Ray's label of each machine
HERE = "here"  # of this machine, without a Ray that names it
PATIENCE_S = 3.0  # with an address; Ray itself would wait for minutes
SILENCE_S = 20.0  # while GPUs are waited for; a process that asks for their memory first has torch to load


def device_here() -> str:
    """Choose the device that "auto" means on this machine alone."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def answering() -> str | None:
    """Where a running Ray answers: RAY_ADDRESS, else what the last `ray start` here left behind; None if nowhere.

    Raises ValueError if RAY_ADDRESS is set and nobody answers there: a sweep must not run elsewhere than it was told.
    """
    asked = os.environ.get("RAY_ADDRESS")
    if asked == "local":
        return None
    if asked and "://" in asked:
        use = "`ray job submit` alone" if asked.startswith("http") else "Ray Client, which sweeps do not use"
        raise ValueError(
            f"RAY_ADDRESS: {asked!r} is an address for {use}; "
            "give host:port of the cluster's head, on a machine of the cluster, or unset RAY_ADDRESS"
        )
    address = asked if asked and asked != "auto" else _left_behind()
    why = _unanswered(address) if address else "no Ray was started on this machine"
    if not why:
        return address
    if asked:
        raise ValueError(
            f"RAY_ADDRESS: no Ray answers at {asked!r} ({why}); run `ray start --head` first, or unset RAY_ADDRESS"
        )
    if address:
        print(f"Ray: an earlier cluster left the address {address} behind, and {why}; it is not joined")
    return None


def _left_behind() -> str | None:
    """What `ray start` wrote into Ray's folder, whether or not that cluster still runs."""
    folder = Path(os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp")
    try:
        return (folder / "ray" / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def _unanswered(address: str) -> str | None:
    """Why nobody seems to be there; None if a connection is taken."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 65536):
        return "it is not host:port, such as 10.0.0.1:6379"
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()
    except TimeoutError:
        return f"no answer within {PATIENCE_S:.0f} s"
    except (OSError, UnicodeError) as error:  # the latter for names that are none
        return (getattr(error, "strerror", None) or str(error)).lower()
    return None


def connect(where: str | None) -> list[Node]:
    """Join the Ray that answers there, or start one that this machine alone can reach, and look at its machines."""
    import ray
    from ray._private import ray_constants

    if where is None:
        # Else Ray listens on all interfaces: what it starts reads this, and it read it when it was imported.
        os.environ.setdefault(name := ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
        ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(name, False)
    try:
        if not ray.is_initialized():
            own: Any = {} if where else {"address": "local", "include_dashboard": False}
            _undisturbed(lambda: ray.init(logging_level=logging.ERROR, log_to_driver=False, **own))
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray would kill its head first, then abort
            # Asked for last, so done first when the program ends: a Ctrl-C must not tear Ray's end in two either.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    except Exception as error:  # Ray raises plain ones where a busy machine starts it too slowly
        why = first_line(error)
        if where is None:
            raise ValueError(
                f"ray: none could be started on this machine ({why}); if it is busy, try again later"
            ) from None
        raise ValueError(
            f"ray: the cluster at {where} lets nobody in ({why}); a sweep runs on one of its machines, with its "
            "version of Ray, and with RAY_AUTH_MODE=token if it asks for a token"
        ) from None
    if not (nodes := machines()):
        raise ValueError("ray: no node of the cluster has a CPU for tasks; add one, or start Ray with --num-cpus")
    cores, gpus = sum(node.cores for node in nodes), sum(node.gpus for node in nodes)
    print(f"Ray: {counted(len(nodes), 'node')} with {counted(cores, 'CPU')} and {counted(gpus, 'GPU')}")
    return nodes


def _undisturbed(start: Callable[[], Any]) -> None:
    """Put a Ctrl-C off until Ray has started: torn in two, that leaves processes behind."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        start()
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def uses_ray() -> bool:
    """Whether this process uses a Ray already."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def machines() -> list[Node]:
    """The machines of the cluster that live and have CPUs for tasks."""
    import ray

    alive = [(node["NodeID"], node["Resources"] or {}) for node in ray.nodes() if node["Alive"]]
    return [
        Node(id, int(has["CPU"]), int(has.get("GPU", 0)), has.get("memory", 0)) for id, has in alive if has.get("CPU")
    ]


def this_machine() -> Node:
    """This machine as a Ray that `connect` starts would count it, while none is started."""
    try:
        from ray._private.resource_and_label_spec import ResourceAndLabelSpec
    except ImportError:  # where Ray has it, it promises nobody
        import psutil
        import torch

        return Node(HERE, os.cpu_count() or 1, torch.cuda.device_count(), float(psutil.virtual_memory().available))
    has = ResourceAndLabelSpec().resolve(is_head=True, node_ip_address="127.0.0.1")
    return Node(HERE, int(has.num_cpus or 0), int(has.num_gpus or 0), float(has.memory or 0))


def choose_device(device: str, dtype: str, nodes: list[Node], *, compiled: bool = False) -> str:
    """Turn "auto" into the cluster's GPUs where it has any, else its CPUs; ValueError if no node has the device."""
    if device == "mps" and sys.platform != "darwin":
        raise ValueError(f"device: 'mps' needs Apple silicon; use --device cpu (dtype {dtype})")
    gpus = any(node.gpus for node in nodes)
    if device not in ("auto", "cpu") and not gpus:
        raise ValueError(f"device: {device!r} asked, but no node of the cluster has a GPU; use --device cpu")
    if device == "auto":  # Ray counts Apple's GPU as one, too
        device = "cpu" if not gpus else "mps" if sys.platform == "darwin" else "cuda"
    require_suited(device, dtype, compiled=compiled)
    return device


def require_suited(device: str, dtype: str, *, compiled: bool = False) -> None:
    """ValueError if no machine with such a device computes in that dtype, or times steps that are compiled."""
    if device == "mps" and dtype == "float64":
        raise ValueError("dtype: 'float64' does not exist on mps; use --dtype float32, or --device cpu")
    if dtype == "tf32" and device != "cuda":
        raise ValueError(f"dtype: 'tf32' is how NVIDIA GPUs multiply float32; use --dtype float32 (device {device})")
    if compiled and device != "cuda":
        raise ValueError(f"compiled: only NVIDIA GPUs repeat a step as one, and this is {device}; use --no-compiled")


_gpu_memory: dict[str, float] = {}  # by machine, as each takes a fresh process to ask


def fit_for(device: str, nodes: list[Node], threads: int | None, *, wait: bool = True) -> list[Node]:
    """Keep the nodes that have the cores and the device, with its memory in place of the machine's where it is a GPU.

    wait: for GPUs that others hold, to ask; else what no GPU has told yet is infinite. Raises ValueError if there is
    none.
    """
    kind = "node" if device == "cpu" else "node with a GPU"
    able = [node for node in nodes if device == "cpu" or node.gpus]
    largest = max(node.cores for node in able)
    if threads and threads > largest:
        raise ValueError(f"threads: {threads} asked, the largest {kind} has {counted(largest, 'CPU')}; give no more")
    able = [node for node in able if node.cores >= (threads or 1)]
    if device == "cpu":
        return able
    if not wait:
        return [replace(node, memory=_gpu_memory.get(node.id, math.inf)) for node in able]
    if new := [node.id for node in able if node.id not in _gpu_memory]:
        _ask_memory(device, new)
    able = [replace(node, memory=_gpu_memory[node.id]) for node in able if _gpu_memory.get(node.id)]
    if not able:
        raise ValueError(
            f"device: {device!r} asked, and Ray counts GPUs, but torch finds none there; "
            "install a build of torch for them, or use --device cpu"
        )
    return able


def _ask_memory(device: str, nodes: list[str]) -> None:
    """Have each machine tell what a GPU of it has, as soon as one is free."""
    from kvstream.measure.peak_memory import gpu_bytes

    if nodes == [HERE]:
        _gpu_memory[HERE] = gpu_bytes(device)
        return
    import ray

    ask = ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(gpu_bytes)
    asked = {ask.options(label_selector={NODE_ID: id}).remote(device): id for id in nodes}
    seconds: float | None = SILENCE_S
    while asked:
        done, _ = ray.wait(list(asked), timeout=seconds)
        if not done:
            seconds = None
            late = ", ".join(asked.values())
            print(f"waiting for a free GPU of {late}: do other jobs of this Ray hold them?", flush=True)
        for memory in done:
            id = asked.pop(memory)
            try:
                _gpu_memory[id] = ray.get(memory)
            except ray.exceptions.RayError as error:  # it may be lost, or have no kvstream
                why = first_line(getattr(error, "cause", None) or error)
                print(f"left out: machine {id} does not tell its GPU's memory ({why})", file=sys.stderr, flush=True)


def refuse_lost(out: str) -> None:
    """Raise ValueError for records that would lie in a Ray job's own copy of its working directory: Ray removes it."""
    if "://" not in out and "working_dir_files" in (folder := Path(os.path.realpath(out))).parts:
        raise ValueError(
            f"out: {out!r} lies in this job's temporary folder {folder}, which Ray removes; "
            "give --out an absolute path or a URL, such as /home/ray/records or s3://bucket/prefix"
        )
