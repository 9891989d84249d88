"""Forks Python scripts from a process that has imported torch and transformers, which each would take some six seconds.

Sweeps are forked so, and the workers of their Rays: tests start hundreds. All else is as if each had been started by
itself: a session (workers are in their Ray's), an environment and files for what it says of its own, signals, and an
exit code. Neither Ray nor kvstream is imported before, as they read the environment when they are.
"""

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import psutil

NEST = "KVSTREAM_NEST"  # in an environment: the folder where its Ray's workers are to ask for being forked

MACHINE = "KVSTREAM_MACHINE"  # in an environment: the network namespace of the machine on which a script is to run
NURSERY = 0  # its process

NEW_NETWORK, NEW_MOUNTS, NEW_NAME = 0x40000000, 0x00020000, 0x04000000  # Linux's CLONE_NEWNET, …NEWNS and …NEWUTS

# Takes the place of the `python` with which Ray starts workers, and others.
STUB = """#!{python} -IS
import json, os, socket, sys
workers = [place for place, word in enumerate(sys.argv) if word.endswith("/default_worker.py")]
if not workers:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as nest:
    nest.connect({address!r})
    nest.sendall(json.dumps([sys.argv[workers[0]:], dict(os.environ), os.getcwd()]).encode())
"""


def become(arguments, environment, folder):
    """Be that script from here on."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:] = arguments
    sys.path[:1] = [os.path.dirname(arguments[0]), *filter(None, environment.get("PYTHONPATH", "").split(":"))]
    runpy.run_path(arguments[0], run_name="__main__")
    sys.exit()


def nested(folder, owner):
    """Fork a process for the workers of the Ray that this process will start; it ends with its owner, or the folder."""
    python, stub = sys.executable, os.path.join(folder, f"python{os.getpid()}")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address := f"{stub}.nest")
    listening.listen(64)
    Path(stub).write_text(STUB.format(python=python, address=address))
    os.chmod(stub, 0o755)
    if os.fork():
        listening.close()
        sys.executable = stub
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray does for all that it starts
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    listening.settimeout(0.3)
    while os.path.exists(address) and psutil.pid_exists(owner):
        with suppress(TimeoutError):
            asked, _ = listening.accept()
            asked.settimeout(None)
            with asked, asked.makefile() as file:
                arguments, environment, folder = json.load(file)
            if not os.fork():
                break
    else:
        os._exit(0)
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgrp()
    setups = ("--language=", "--serialized-runtime-env-context=")
    become([word for word in arguments if not word.startswith(setups)], environment, folder)


def move(namespace, folder):
    """Be on another machine: with a network and a name of its own, and a Ray folder, in which Ray keeps its address."""
    libc = ctypes.CDLL(None)
    with open(f"/var/run/netns/{namespace}") as file:
        assert libc.setns(file.fileno(), NEW_NETWORK) == 0
    assert libc.unshare(NEW_MOUNTS | NEW_NAME) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    socket.sethostname("further")


def begin(command, environment, folder, out, err):
    """Be a script in a session of its own."""
    os.setsid()
    for number, (path, how) in enumerate(((os.devnull, os.O_RDONLY), (out, os.O_RDWR), (err, os.O_RDWR))):
        os.dup2(os.open(path, how | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if machine := environment.get(MACHINE):
        move(machine, environment["RAY_TMPDIR"])
    if nest := environment.get(NEST):
        ends_its_ray = command[0].endswith(".py")  # a sweep does, `ray start` does not
        nested(nest, owner=os.getpid() if ends_its_ray else NURSERY)
    become(command, environment, folder)


def keep(code, tell, *start):
    """Wait for a script, so that nobody else has to, and leave its exit code in a file."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (pid := os.fork()):
        begin(*start)
    os.write(tell, str(pid).encode())
    status = os.waitpid(pid, 0)[1]
    with open(code + ".new", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
    os.rename(code + ".new", code)
    os._exit(0)


def serve():
    """Each line of input is a start."""
    global NURSERY
    NURSERY = os.getpid()
    gc.freeze()  # else the first collection in each fork copies all that is shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    for line in sys.stdin:
        code, *start = json.loads(line)
        told, tell = os.pipe()
        if not os.fork():
            keep(code, tell, *start)
        print(int(os.read(told, 20)), flush=True)
        os.close(told)
        os.close(tell)


class Forked:
    """A script on its way, with what a `subprocess.Popen` has of it."""

    def __init__(self, pid: int, code: Path) -> None:
        self.pid, self.code = pid, code

    def poll(self):
        return int(self.code.read_text()) if self.code.exists() else None

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", seconds)
            time.sleep(0.02)
        return code

    def kill(self):
        psutil.Process(self.pid).kill()

    def terminate(self):
        psutil.Process(self.pid).terminate()


@cache
def _parent():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], **pipes)


def fork(command, environment, folder, out, err, code) -> Forked:
    """Start `script arguments…`; what it says is added to two files, and its exit code left in a third."""
    parent = _parent()
    print(json.dumps([code, command, dict(environment), str(folder), out, err]), file=parent.stdin, flush=True)
    return Forked(int(parent.stdout.readline()), Path(code))


def nest(folder) -> tuple[str, int]:
    """The `python` by which a Ray of this process, whose folder this is, has its workers forked, and their session."""
    (script := Path(folder) / "nest").touch()
    begun = fork([str(script)], os.environ | {NEST: str(folder)}, folder, os.devnull, os.devnull, f"{script}.code")
    assert begun.wait(30) == 0
    return f"{folder}/python{begun.pid}", begun.pid


if __name__ == "__main__":
    for name in (
        "aiohttp",
        "numba",
        "pyarrow.parquet",
        "rich.progress",
        "safetensors.torch",
        "transformers.modeling_utils",
    ):
        import_module(name)
    for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "DynamicCache", "GPTNeoXForCausalLM"):
        getattr(sys.modules["transformers"], name)
    serve()
