"""The machines a sweep runs on: finds or starts Ray, and looks at its nodes."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvstream.sweep.interrupt import put_off
from kvstream.sweep.ray_address import unanswered
from kvstream.sweep.slots import Node

NODE_ID = "ray.io/node-id"  # Ray's label of each machine


def device_here() -> str:
    """Choose the device that "auto" means on this machine alone."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


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
            with put_off():  # torn in two, it leaves processes behind
                ray.init(logging_level=logging.ERROR, log_to_driver=False, **own)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray would kill its head first, then abort
            # Asked for last, so done first when the program ends: a Ctrl-C must not tear Ray's end in two either.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = str(error).strip().splitlines()[0]
        if where is None:
            raise ValueError(f"ray: none could be started on this machine ({why})") from None
        raise ValueError(
            f"ray: the cluster at {where} lets nobody in ({why}); a sweep runs on one of its machines, with its "
            "version of Ray, and with RAY_AUTH_MODE=token if it asks for a token"
        ) from None
    nodes = [node for node in machines() if node.cores]
    if not nodes:
        raise ValueError("ray: no node of the cluster has a CPU for tasks; add one, or start Ray with --num-cpus")
    cores, gpus = sum(node.cores for node in nodes), sum(node.gpus for node in nodes)
    print(f"Ray: {len(nodes)} node(s) with {cores} CPUs and {gpus} GPUs")
    return nodes


def joined() -> bool:
    """Whether this process uses a Ray already."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def machines() -> list[Node]:
    """The machines of the cluster that live, with or without a CPU for tasks."""
    import ray

    return [
        Node(node["NodeID"], int(has.get("CPU", 0)), int(has.get("GPU", 0)), has.get("memory", 0))
        for node in ray.nodes()
        if node["Alive"] and (has := node["Resources"]) is not None
    ]


def here() -> str:
    """Ray's id of this machine."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def silence() -> str | None:
    """Why the head of the cluster cannot be reached; None if it can."""
    import ray

    return unanswered(ray.get_runtime_context().gcs_address)


class Lifeline:
    """Tells at once whether the Ray on this machine has ended.

    Ray itself may notice after 15 seconds only. As soon as the driver, or a thread of Ray's in it, uses the object
    store of a Ray that has ended, Ray ends the driver without a word (`src/ray/object_manager/plasma/connection.cc`).
    So this holds a connection to that store and never sends on it: it breaks with the driver's own.
    """

    def __init__(self) -> None:
        import ray

        [path] = [node["ObjectStoreSocketName"] for node in ray.nodes() if node["NodeID"] == here()]
        self._connection = socket.socket(socket.AF_UNIX)
        with suppress(OSError):  # it is then said to have ended
            self._connection.connect(path)
        self._connection.setblocking(False)

    def broken(self) -> bool:
        """Whether it has ended."""
        try:
            return not self._connection.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True


def choose_device(device: str, dtype: str, nodes: list[Node]) -> str:
    """Turn "auto" into the cluster's GPUs where it has any, else its CPUs; ValueError if no node has the device."""
    if device == "mps" and (sys.platform != "darwin" or dtype == "float64"):
        raise ValueError(f"device: 'mps' needs Apple silicon and computes no float64; use --device cpu (dtype {dtype})")
    gpus = any(node.gpus for node in nodes)
    if device == "auto":  # Ray counts Apple's GPU as one, too
        return "cpu" if not gpus else "mps" if sys.platform == "darwin" else "cuda"
    if device != "cpu" and not gpus:
        raise ValueError(f"device: {device!r} asked, but no node of the cluster has a GPU; use --device cpu")
    return device


_gpu_memory: dict[str, float] = {}  # by machine, as each takes a fresh process to ask


def fit_for(device: str, nodes: list[Node], threads: int | None) -> list[Node]:
    """Keep the nodes that have the cores and the device, with its memory in place of the machine's where it is a GPU.

    Raises ValueError if there is none.
    """
    largest = max(node.cores for node in nodes)
    if threads and threads > largest:
        raise ValueError(f"threads: {threads} asked, the largest node has {largest} CPUs; give no more than that")
    able = [node for node in nodes if node.cores >= (threads or 1)]
    if device == "cpu":
        return able
    import ray

    from kvstream.measure.peak_memory import gpu_bytes

    if not (able := [node for node in able if node.gpus]):
        largest = max(node.cores for node in nodes if node.gpus)
        raise ValueError(
            f"threads: {threads} asked, the largest node with a GPU has {largest} CPUs; give no more than that"
        )
    ask = ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(gpu_bytes)
    new = [node.id for node in able if node.id not in _gpu_memory]
    asked = [ask.options(label_selector={NODE_ID: id}).remote(device) for id in new]
    _gpu_memory.update((id, ray.get(memory)) for id, memory in zip(new, asked))
    able = [replace(node, memory=_gpu_memory[node.id]) for node in able if _gpu_memory[node.id]]
    if not able:
        raise ValueError(
            f"device: {device!r} asked, and Ray counts GPUs, but torch finds none there; "
            "install a build of torch for them, or use --device cpu"
        )
    return able


def refuse_lacking(device: str, threads: int | None) -> None:
    """Raise ValueError for what this machine certainly lacks, before a Ray is started on it, which takes long."""
    if "RAY_OVERRIDE_RESOURCES" in os.environ:
        return
    fit_for("cpu", [Node("", os.cpu_count() or 1, 0, 0)], threads)
    if device == "cuda" and device_here() != "cuda":
        raise ValueError(
            "device: 'cuda' asked, but torch finds no GPU on this machine; "
            "install a build of torch for it, or use --device cpu"
        )


def refuse_lost(out: str) -> None:
    """Raise ValueError for records that would lie in a Ray job's own copy of its working directory: Ray removes it."""
    if "://" not in out and "working_dir_files" in (folder := Path(out).resolve()).parts:
        raise ValueError(
            f"out: {out!r} lies in this job's temporary folder {folder}, which Ray removes; "
            "give --out an absolute path or a URL, such as /home/ray/records or s3://bucket/prefix"
        )
